"""Access control: the Host header, the Origin header, the password and the size of every request.

It is an ASGI middleware before everything: the API, the page, its files and its events.

Why a page of another site can do nothing, whatever the Content-Type of its request: browsers send its Origin with every
POST and every WebSocket, and only this server's own and those of `--cors-allow-origins` may pass. A page that makes its
own name mean 127.0.0.1 (DNS rebinding) has the right Origin, but its name in the Host header; X-Forwarded-Host never
replaces it, because a rebinding page could send it.
"""

import base64
import binascii
import hmac
import json
import re
from collections.abc import Awaitable, Callable

from sd.utils.errors import UserError
from sd.web.attempts import TOO_LONG, Bodies, WrongPasswords
from sd.web.jobs.limits import MAX_BODY
from sd.web.problems import problem_content, report
from sd.web.proxies import is_loopback_address

HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?")  # a Host header, the whole of it
ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\\\s]+")  # a scheme and a host
LOOPBACK = ("127.0.0.1", "localhost", "::1")
Asgi = Callable[[dict, Callable, Callable], Awaitable[None]]


class Guard:
    """The middleware that refuses requests.

    auth: (user, password), or None for no password. hosts: names that the Host header may have beside this machine's
    loopback addresses, or None for any. origins: other sites whose pages may use the server, such as
    "https://sd.example"; "*" for all.
    """

    def __init__(
        self,
        app: Asgi,
        auth: tuple[str, str] | None = None,
        hosts: tuple[str, ...] | None = LOOPBACK,
        origins: tuple[str, ...] = (),
    ):
        self.app, self.auth, self.hosts, self.origins = app, auth, hosts, origins
        self.wrong, self.bodies = WrongPasswords(), Bodies()

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self.refuse(headers, (scope.get("client") or ("",))[0]):
            return await answer(scope, receive, send, *refusal)
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        counted = [0]
        try:
            return await self.app(scope, self.bodies.limited(receive, counted), send)
        finally:
            self.bodies.release(counted)

    def refuse(self, headers: dict[str, str], address: str) -> tuple[int, str] | None:
        """Return (HTTP status, one sentence), or None where the request may pass. address: the client's."""
        if not self.is_allowed_host(hostname(headers.get("host", ""))):
            return 403, (
                "this server answers on this machine only: open it as http://127.0.0.1 or localhost, or start it with "
                "--allow-host NAME."
            )
        if "origin" in headers and not self.is_allowed_origin(headers["origin"], headers):
            return (
                403,
                "pages of other sites may not use this server; --cors-allow-origins lets one in.",
            )
        given = headers.get("authorization", "")
        if self.auth is not None and given and self.wrong.is_blocked(address):
            return 429, "too many wrong passwords: wait a minute, then try again."
        if self.auth is not None and not self.has_credentials(given):
            if given:
                self.wrong.add(address)
            return 401, "this server requires a user and a password."
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > MAX_BODY:
            return 413, TOO_LONG
        return None

    def is_allowed_host(self, name: str) -> bool:
        return self.hosts is None or name in self.hosts or is_loopback_address(name)

    def is_allowed_origin(self, origin: str, headers: dict[str, str]) -> bool:
        """Return whether an origin is the server's own, directly or through a proxy, or allowed by a flag."""
        own = {headers.get("host", "").lower(), headers.get("x-forwarded-host", "").partition(",")[0].strip().lower()}
        site = origin.partition("://")[2].lower()
        return (bool(site) and site in own) or origin in self.origins or "*" in self.origins

    def has_credentials(self, header: str) -> bool:
        """Check HTTP basic credentials (RFC 7617) in constant time, so that timing reveals nothing of the password."""
        scheme, _, given = header.partition(" ")
        try:
            user, _, password = base64.b64decode(given.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return False
        right = hmac.compare_digest(user, self.auth[0].encode()), hmac.compare_digest(password, self.auth[1].encode())
        return scheme.lower() == "basic" and all(right)


async def answer(scope: dict, receive: Callable, send: Callable, status: int, sentence: str) -> None:
    report(scope, f"refused ({status}): {sentence}")
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": sentence})
        return
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="sd", charset="UTF-8"'))
    if status == 429:
        headers.append((b"retry-after", b"60"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(problem_content("Refused", sentence)).encode()})


def hostname(host: str) -> str:
    """Return the name in a Host header: localhost for "localhost:7860", ::1 for "[::1]:7860"."""
    found = HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def parse_origins(texts: list[str]) -> tuple[str, ...]:
    """Parse `--cors-allow-origins`: origins, separated by commas, or "*". Raises UserError."""
    origins = [one.strip().rstrip("/") for text in texts for one in text.split(",") if one.strip()]
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise UserError(
                f"--cors-allow-origins {origin[:100]!r} is no origin: give one such as http://localhost:5173, "
                "or '*' for all."
            )
    return tuple(origin.lower() for origin in origins)


def parse_auth(text: str) -> tuple[str, str]:
    """Parse the value of `--auth`, user:password. Raises UserError."""
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise UserError("invalid value for --auth: give a user and a password, --auth user:password.")
    return user, password
