"""The headers of a reverse proxy on this machine.

Header                 becomes
X-Forwarded-For        the client's address (its last entry, the one that the proxy itself has added)
X-Forwarded-Proto      the scheme
X-Forwarded-Prefix     the path under which the proxy has the server; `--root-path` sets it for all requests
X-Forwarded-Host       `security` compares the Origin with it; the Host header stays as it is

Any client can send such headers, so they are read from loopback clients only and removed from all others.
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
    """The middleware that applies them. root_path: the path under which a proxy serves this server, or ""."""

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
    """Apply the client's address and scheme to the scope; return the prefix, "" where there is none."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if address := headers.get("x-forwarded-for", "").rpartition(",")[2].strip():
        scope["client"] = (address, 0)
    scheme = headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    scope["scheme"] = SCHEMES[scope["type"]].get(scheme, scope["scheme"])
    prefix = headers.get("x-forwarded-prefix", "").partition(",")[0].strip().rstrip("/")
    return prefix if PREFIX.fullmatch(prefix) else ""


def add_prefix(scope: dict, prefix: str) -> None:
    """Set root_path, and add the prefix to the path as ASGI requires; some proxies remove it."""
    scope["root_path"] = prefix
    path = scope["path"]
    if path != prefix and not path.startswith(prefix + "/"):
        scope["path"] = prefix + path
        scope["raw_path"] = prefix.encode() + scope.get("raw_path", path.encode())


def is_loopback_address(host: str) -> bool:
    """Return whether a numeric address is a loopback address: 127.0.0.1, 127.0.0.2, ::1."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def parse_root_path(text: str) -> str:
    """Parse `--root-path`: "/sd", "sd/" and "/sd/" are the same; "" is none. Raises UserError."""
    prefix = "/" + text.strip("/")
    if prefix == "/":
        return ""
    if not PREFIX.fullmatch(prefix):
        raise UserError(f"--root-path {text[:100]!r} is no path such as /sd: use letters, digits, . _ ~ - and slashes.")
    return prefix
