"""One question to an endpoint, and all the ways in which no answer comes."""

import socket
import sys
from dataclasses import replace

import pytest
from chat_server import ChatServer, broken_json, drop, elapsed, page, says, send, silent, status, trickle

from sd.prompts.llm import Endpoint, EndpointError, LLMError, chat_completion, find_endpoint

QUESTION = [{"role": "user", "content": "hello"}]


def test_a_question_and_its_answer():
    with ChatServer(says("hello yourself")) as server:
        assert chat_completion(server.endpoint, QUESTION) == "hello yourself"
        assert server.asked == [{"model": "toy", "messages": QUESTION}]
        assert server.keys == ["Bearer sk-mine"]


def test_a_local_server_needs_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer(says("hello")) as server:
        assert chat_completion(replace(server.endpoint, key=""), QUESTION) == "hello"


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (status(401), "key"),
        (status(429), "429"),
        (status(500), "500"),
        (status(404), "404"),
        (drop, "cannot be reached"),
        (page, "protocol"),
        (broken_json, "protocol"),
        (lambda handler: send(handler, 200, b'{"choices": []}'), "protocol"),
        (lambda handler: send(handler, 200, b"[1]"), "protocol"),
    ],
)
def test_a_failing_endpoint_is_one_half_sentence(behave, said):
    with ChatServer(behave) as server:
        with pytest.raises(EndpointError, match=said) as caught:
            chat_completion(server.endpoint, QUESTION)
        assert len(server.asked) == 1  # no silent second try
        assert "sk-" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("behave", [silent, trickle], ids=["silent", "trickle"])
def test_a_slow_endpoint_is_given_up_in_time(behave):
    with ChatServer(behave) as server:
        endpoint = replace(server.endpoint, timeout=0.5)

        def slow():
            with pytest.raises(EndpointError, match=r"within 0\.5 s"):
                chat_completion(endpoint, QUESTION)

        slow()  # the first call also loads the package
        # Both servers would go on for 5 s; 3 leaves room for a busy machine.
        assert elapsed(slow) < 3


@pytest.mark.parametrize("more", [{"refusal": "I cannot help with that."}, {"finish": "content_filter"}])
def test_a_refusal(more):
    with ChatServer(says(None, **more)) as server, pytest.raises(LLMError, match="refused"):
        chat_completion(server.endpoint, QUESTION)


@pytest.mark.parametrize("url", ["no address", "ftp://127.0.0.1/v1", "http://[::1/v1", "http://\x00/"])
def test_an_address_that_is_none(url):
    with pytest.raises(EndpointError):
        chat_completion(Endpoint(url, "toy", timeout=30), QUESTION)


def test_nobody_listens():
    with socket.socket() as taken:  # bound and not listening: refused at once
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(EndpointError, match="cannot be reached"):
            chat_completion(Endpoint(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", "toy", timeout=30), QUESTION)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(EndpointError, match=r"requirements-prompts\.txt"):
        chat_completion(Endpoint("http://127.0.0.1:1/v1", "toy"), QUESTION)


def test_the_endpoint_is_found_in_flags_then_in_the_environment(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    assert find_endpoint() is None
    assert find_endpoint("http://here/v1") is None
    assert find_endpoint("http://here/v1", "toy") == Endpoint("http://here/v1", "toy")
    monkeypatch.setenv("OPENAI_MODEL", "big")
    assert find_endpoint() is None
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    assert find_endpoint() == Endpoint("", "big", "sk-mine")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://there/v1")
    assert find_endpoint(model="toy") == Endpoint("http://there/v1", "toy", "sk-mine")
    assert "sk-mine" not in repr(find_endpoint())
