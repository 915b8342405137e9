"""A client for OpenAI-compatible chat endpoints, with error handling."""

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TIMEOUT = 60.0  # seconds; a model on a CPU is slow


class LLMError(Exception):
    """An unusable answer. The message is a clause, which `enhance` completes to a sentence."""


class EndpointError(LLMError):
    """A failure of the endpoint itself, for which a second request would fail as well."""


@dataclass(frozen=True)
class Endpoint:
    """The address of a chat endpoint. url: such as http://localhost:8080/v1; "" is OpenAI's own.

    key: "" where none is needed. timeout: in seconds.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = TIMEOUT


def find_endpoint(url: str | None = None, model: str | None = None) -> Endpoint | None:
    """Returns the endpoint of `url` (else OPENAI_BASE_URL), `model` (else OPENAI_MODEL) and OPENAI_API_KEY.

    Returns None without a model, or with neither an address nor a key.
    """
    key = os.environ.get("OPENAI_API_KEY", "")
    url = url or os.environ.get("OPENAI_BASE_URL", "")
    model = model or os.environ.get("OPENAI_MODEL", "")
    return Endpoint(url, model, key) if model and (url or key) else None


def chat_completion(endpoint: Endpoint, messages: list[dict[str, str]]) -> str:
    """Returns the model's answer. messages: {"role", "content"} each. Raises LLMError and nothing else."""
    try:
        import openai  # an optional package, and slow to load
    except ImportError as error:
        raise EndpointError("the openai package is missing (pip install -r requirements-prompts.txt)") from error

    def call() -> Any:
        key = endpoint.key or "none"  # the package requires one
        settings = dict(base_url=endpoint.url or None, timeout=endpoint.timeout, max_retries=0)
        with openai.OpenAI(api_key=key, **settings) as client:
            return client.chat.completions.create(model=endpoint.model, messages=messages)

    try:
        choice = call_with_timeout(endpoint.timeout, call).choices[0]
        text, refusal, finish = choice.message.content, choice.message.refusal, choice.finish_reason
    except (TimeoutError, openai.APITimeoutError) as error:
        raise EndpointError(f"the chat endpoint did not answer within {endpoint.timeout:g} s") from error
    except openai.AuthenticationError as error:
        raise EndpointError("the chat endpoint does not accept the key (OPENAI_API_KEY)") from error
    except openai.APIStatusError as error:
        raise EndpointError(f"the chat endpoint answered with HTTP status {error.status_code}") from error
    except openai.APIConnectionError as error:
        raise EndpointError("the chat endpoint cannot be reached") from error
    except Exception as error:  # a malformed URL, or a page instead of JSON; generation continues without it
        raise EndpointError(f"the chat endpoint does not speak the chat protocol ({type(error).__name__})") from error
    if refusal or finish == "content_filter":
        raise LLMError("the chat model refused")
    return text if isinstance(text, str) else ""


def call_with_timeout(seconds: float, call: Callable[[], Any]) -> Any:
    """Returns the result of `call`, or raises TimeoutError.

    A client's own timeout restarts with each read, so that a slow stream would never end.
    """
    results: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((call(), None))
        except Exception as error:  # raised again below, in the caller's thread
            results.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty as late:
        raise TimeoutError from late
    if error is not None:
        raise error
    return result
