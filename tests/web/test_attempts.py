"""Limits over many requests: wrong passwords, and bodies that are slow or too many at once."""

import asyncio

import pytest
from starlette.exceptions import HTTPException

from sd.web import attempts
from sd.web.attempts import MOST_WRONG, Bodies, WrongPasswords
from sd.web.security import Guard, hostname


@pytest.mark.parametrize(
    "host", ["[::1].evil.com", "[::1]evil", "127.0.0.1@evil", "evil\\@127.0.0.1", "127.0.0.1:x", "[::1]:80:80", "a b"]
)
def test_what_only_begins_like_this_machine_is_no_host(host):
    assert hostname(host) == ""


def test_hosts_as_they_are():
    hosts = {"LOCALHOST:7860": "localhost", "[::1]:7860": "::1", "127.0.0.1": "127.0.0.1", "my_pc.lan": "my_pc.lan"}
    assert {host: hostname(host) for host in hosts} == hosts


def basic(password: str) -> dict[str, str]:
    import base64

    return {"host": "localhost", "authorization": "Basic " + base64.b64encode(f"me:{password}".encode()).decode()}


def test_after_a_few_wrong_passwords_none_is_tried_for_a_minute(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(attempts.time, "monotonic", lambda: now[0])
    guard = Guard(None, auth=("me", "secret"))
    assert [guard.refuse(basic("x"), "10.0.0.7")[0] for _ in range(MOST_WRONG + 2)] == [401] * MOST_WRONG + [429] * 2
    assert guard.refuse(basic("secret"), "10.0.0.7")[0] == 429
    assert guard.refuse(basic("secret"), "10.0.0.8") is None
    now[0] += 61
    assert guard.refuse(basic("secret"), "10.0.0.7") is None


def test_no_password_at_all_is_no_guess():
    """A browser asks once without one before it shows its form."""
    guard = Guard(None, auth=("me", "secret"))
    assert {guard.refuse({"host": "localhost"}, "10.0.0.7")[0] for _ in range(100)} == {401}


def test_few_addresses_are_remembered(monkeypatch):
    monkeypatch.setattr(attempts, "MOST_ADDRESSES", 10)
    wrong = WrongPasswords()
    for number in range(100):
        wrong.add(str(number))
    assert len(wrong.counts) == 10


def pieces(*sizes, then_wait=False):
    left = [{"type": "http.request", "body": b"x" * size, "more_body": True} for size in sizes]

    async def receive():
        if left:
            return left.pop(0)
        await asyncio.sleep(60 if then_wait else 0)
        return {"type": "http.request", "body": b"", "more_body": False}

    return receive


async def read_all(receive):
    while (await receive())["more_body"]:
        pass


def test_bodies_that_all_hold_too_much_are_refused_and_released(monkeypatch):
    monkeypatch.setattr(attempts, "MAX_IN_FLIGHT", 1000)
    bodies, first, second = Bodies(), [0], [0]
    asyncio.run(read_all(bodies.limited(pieces(600), first)))
    with pytest.raises(HTTPException) as caught:
        asyncio.run(read_all(bodies.limited(pieces(600), second)))
    assert caught.value.status_code == 503
    bodies.release(first)
    bodies.release(second)
    assert bodies.held == 0
    asyncio.run(read_all(bodies.limited(pieces(900), [0])))


def test_a_body_that_stops_arriving_is_ended(monkeypatch):
    monkeypatch.setattr(attempts, "SLOWEST_PIECE", 0.05)
    with pytest.raises(HTTPException) as caught:
        asyncio.run(read_all(Bodies().limited(pieces(10, then_wait=True), [0])))
    assert caught.value.status_code == 408


def test_the_end_of_a_connection_may_take_its_time(monkeypatch):
    monkeypatch.setattr(attempts, "SLOWEST_PIECE", 0.01)

    async def both():
        left = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive():
            if left:
                return left.pop()
            await asyncio.sleep(0.1)
            return {"type": "http.disconnect"}

        limited = Bodies().limited(receive, [0])
        await limited()
        return await limited()

    assert asyncio.run(both()) == {"type": "http.disconnect"}
