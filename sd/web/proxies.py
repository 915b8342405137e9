"""A reverse proxy in front of the server: what it says about the client, where it comes from this machine.

Header                 becomes
X-Forwarded-For        the client's address (its last entry, the one that the proxy itself has added)
X-Forwarded-Proto      the scheme
X-Forwarded-Prefix     the path under which the proxy has the server; `--root-path` says it once for all requests
X-Forwarded-Host       what `guard` compares the Origin with; the Host header stays as it is

Anybody can send such headers, so they are taken from loopback only, and removed from all others.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable

from sd.utils.errors import UserError

Asgi = Callable[[dict, Callable, Callable], Awaitable[None]]
PREFIX = re.compile(r"(/[\w.~-]+)+")
SCHEMES = {"http": {"http": "http", "https": "https"}, "websocket": {"http": "ws", "https": "wss"}}
FORWARDED = (b"x-forwarded-", b"forwarded")


class ProxyHeaders:
    """root_path: the path under which a proxy has the server, such as "/sd"; "" for none."""

    def __init__(self, app: Asgi, root_path: str = ""):
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] not in SCHEMES:
            await self.app(scope, receive, send)
            return
        scope = scope.copy()
        prefix = self.root_path
        if is_loopback_address((scope.get("client") or ("",))[0]):
            prefix = read_forwarded_headers(scope) or prefix
        else:
            scope["headers"] = [one for one in scope["headers"] if not one[0].lower().startswith(FORWARDED)]
        if prefix:
            add_prefix(scope, prefix)
        await self.app(scope, receive, send)


def read_forwarded_headers(scope: dict) -> str:
    """Takes over what the proxy says; returns the prefix that it says, or "" where it says none."""
    said = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if address := said.get("x-forwarded-for", "").rpartition(",")[2].strip():
        scope["client"] = (address, 0)
    scheme = said.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    scope["scheme"] = SCHEMES[scope["type"]].get(scheme, scope["scheme"])
    prefix = said.get("x-forwarded-prefix", "").partition(",")[0].strip().rstrip("/")
    return prefix if PREFIX.fullmatch(prefix) else ""


def add_prefix(scope: dict, prefix: str) -> None:
    """ASGI has the prefix in the path as well; some proxies leave it there and others cut it off."""
    scope["root_path"] = prefix
    path = scope["path"]
    if path != prefix and not path.startswith(prefix + "/"):
        scope["path"] = prefix + path
        scope["raw_path"] = prefix.encode() + scope.get("raw_path", path.encode())


def is_loopback_address(host: str) -> bool:
    """An address of this machine itself, as digits: 127.0.0.1, 127.0.0.2, ::1."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def parse_root_path(text: str) -> str:
    """The value of `--root-path`: "/sd", "sd/" and "/sd/" are the same; "" is none."""
    prefix = "/" + text.strip("/")
    if prefix == "/":
        return ""
    if not PREFIX.fullmatch(prefix):
        raise UserError(f"--root-path {text!r} is not a path such as /sd: use letters, digits, . _ ~ - and slashes.")
    return prefix
