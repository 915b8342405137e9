"""One question to a chat model behind any OpenAI-compatible endpoint, and every way in which no answer comes."""

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

TIMEOUT = 60.0  # seconds; a model on somebody's own CPU takes its time


class LLMError(Exception):
    """Half a sentence: why there is nothing to use. Never shown alone: see `prompt_writer`."""


class EndpointError(LLMError):
    """The endpoint itself fails, so asking it again would only cost time."""


@dataclass(frozen=True)
class Endpoint:
    """url: such as http://localhost:8080/v1; "" is OpenAI's own. key: "" where none is needed. timeout: seconds."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = TIMEOUT


def find_endpoint(url: str | None = None, model: str | None = None) -> Endpoint | None:
    """What is given, or else OPENAI_BASE_URL and OPENAI_MODEL; the key is OPENAI_API_KEY.

    None where there is no model, or neither an address nor a key.
    """
    key = os.environ.get("OPENAI_API_KEY", "")
    url = url or os.environ.get("OPENAI_BASE_URL", "")
    model = model or os.environ.get("OPENAI_MODEL", "")
    return Endpoint(url, model, key) if model and (url or key) else None


def chat_completion(endpoint: Endpoint, messages: list[dict[str, str]]) -> str:
    """The model's answer. messages: {"role", "content"} each. Raises ChatError, and nothing else."""
    try:
        import openai  # an optional package, and slow to load
    except ImportError as error:
        raise EndpointError("the openai package is missing (pip install -r requirements-prompts.txt)") from error

    def call():
        key = endpoint.key or "none"  # the package insists on one
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
    except Exception as error:  # an address that is none, a page instead of JSON: no picture is to be lost for it
        raise EndpointError(f"the chat endpoint does not speak the chat protocol ({type(error).__name__})") from error
    if refusal or finish == "content_filter":
        raise LLMError("the chat model refused")
    return text if isinstance(text, str) else ""


def call_with_timeout(seconds: float, call: Callable):
    """call's result, or TimeoutError. A client's own time-out counts each read anew, so a trickle would never end."""
    results = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((call(), None))
        except Exception as error:  # raised again below, where somebody waits for it
            results.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty as late:
        raise TimeoutError from late
    if error is not None:
        raise error
    return result
