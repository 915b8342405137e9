"""A server on loopback that speaks the chat protocol, well or badly, and remembers what it was asked."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sd.prompts.llm import Endpoint

GOOD = {"prompt": "a lemon on a table, soft light", "negative_prompt": "text", "title": "Lemon"}


def completion(content: str | None, finish: str = "stop", **more: object) -> bytes:
    """The body of a chat completion, as OpenAI's reference describes it."""
    message = {"role": "assistant", "content": content, "refusal": None} | more
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "toy", "choices": [choice]}
    return json.dumps(body).encode()


def says(content: str | dict | None, **more: object) -> Callable:
    """A handler that answers with this; a dict as JSON."""
    text = json.dumps(content) if isinstance(content, dict) else content
    return lambda handler: send(handler, 200, completion(text, **more))


def status(code: int) -> Callable:
    body = json.dumps({"error": {"message": "no, sk-secret", "type": "x"}}).encode()
    return lambda handler: send(handler, code, body)


def send(handler: BaseHTTPRequestHandler, code: int, body: bytes, kind: str = "application/json") -> None:
    handler.send_response(code)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def page(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 200, b"<html>hello</html>", "text/html")


def broken_json(handler: BaseHTTPRequestHandler) -> None:
    send(handler, 200, b'{"choices": [')


def drop(handler: BaseHTTPRequestHandler) -> None:
    """Promises a body, sends a part of it and hangs up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.close_connection = True


def trickle(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then, so that no single read is ever late."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        if handler.server.stopped.wait(0.05):
            return
        handler.wfile.write(b" ")
        handler.wfile.flush()


def silent(handler: BaseHTTPRequestHandler) -> None:
    handler.server.stopped.wait(5)


class ChatServer:
    """`with ChatServer(says(GOOD)) as server`: .endpoint to ask, .asked the bodies that came, .keys their keys."""

    def __init__(self, behave: Callable):
        self.behave = behave
        self.asked: list[dict] = []
        self.keys: list[str] = []

    def __enter__(self) -> "ChatServer":
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                outer.keys.append(self.headers["Authorization"])
                if self.path != "/v1/chat/completions":
                    send(self, 404, b"{}")
                else:
                    outer.behave(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.stopped = threading.Event()
        self.server.handle_error = lambda *_: None  # a client that has gone away is what some tests are about
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.url, "toy", "sk-mine", timeout=30)


def elapsed(call: Callable) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began
