"""Limits that hold over many requests: wrong passwords of one address, and bodies that are still arriving."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.exceptions import HTTPException

from sd.web.jobs.limits import MAX_BODY

MOST_WRONG, WRONG_WINDOW = 10, 60.0  # wrong passwords of one address, and the seconds in which they count
MOST_ADDRESSES = 10_000  # that are remembered
MAX_IN_FLIGHT = 256 << 20  # bytes of all bodies that are held at once
SLOWEST_PIECE, SLOWEST_BODY = 20.0, 120.0  # seconds without a byte of a body, and for all of it
TOO_LONG = f"the request exceeds {MAX_BODY >> 20} MB: send less."
TOO_MUCH = "the server is receiving too many large requests at once: send it again in a moment."
TOO_SLOW = "the request's body did not arrive in time: send it again."


class WrongPasswords:
    """Counts the wrong passwords of each address. After MOST_WRONG of them none of it is tried for a minute."""

    def __init__(self) -> None:
        self.counts: OrderedDict[str, tuple[int, float]] = OrderedDict()  # address -> (count, time of the first)

    def is_blocked(self, address: str) -> bool:
        count, since = self.counts.get(address, (0, 0.0))
        return count >= MOST_WRONG and time.monotonic() - since < WRONG_WINDOW

    def add(self, address: str) -> None:
        count, since = self.counts.pop(address, (0, 0.0))
        fresh = time.monotonic() - since < WRONG_WINDOW
        self.counts[address] = (count + 1, since) if fresh else (1, time.monotonic())
        while len(self.counts) > MOST_ADDRESSES:
            self.counts.popitem(last=False)


class Bodies:
    """The bodies that are held at once. `limited` wraps a request's `receive`; `release` ends what it counts."""

    def __init__(self) -> None:
        self.held = 0  # bytes of all requests

    def limited(self, receive: Callable, counted: list[int]) -> Callable:
        """Return a `receive` that refuses a body that is too long or too slow, or beyond what all may hold.

        counted: a list of one number, to which it adds the bytes.
        """
        until, complete = time.monotonic() + SLOWEST_BODY, False

        async def receive_some() -> dict:
            nonlocal complete
            if complete:  # what comes now is the end of the connection, which may take as long as it likes
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), min(SLOWEST_PIECE, max(until - time.monotonic(), 0.001)))
            except asyncio.TimeoutError:
                raise HTTPException(408, TOO_SLOW, {"Connection": "close"}) from None
            complete = not message.get("more_body", False)
            size = len(message.get("body", b""))
            counted[0] += size
            self.held += size
            if counted[0] > MAX_BODY:
                raise HTTPException(413, TOO_LONG)
            if self.held > MAX_IN_FLIGHT:
                raise HTTPException(503, TOO_MUCH, {"Retry-After": "5"})
            return message

        return receive_some

    def release(self, counted: list[int]) -> None:
        self.held -= counted[0]
        counted[0] = 0
