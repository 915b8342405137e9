"""Who may come in, by sockets, by hosts, by password; and when the server refuses to start."""

import base64

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sd.utils.errors import UserError
from sd.web import attempts
from sd.web import security as guard
from sd.web.security import Guard, parse_auth, parse_origins
from sd.web.server import add_cors, allowed_hosts, check_access, is_loopback, listen, server_parser


async def size(request: Request):
    return PlainTextResponse(str(len(await request.body())))


async def greet(socket):
    await socket.accept()
    await socket.send_text("hello")
    await socket.close()


def client(host="127.0.0.1:7860", **rules):
    app = Starlette(routes=[Route("/", size, methods=["GET", "POST"]), WebSocketRoute("/ws", greet)])
    return TestClient(Guard(app, **rules), base_url=f"http://{host}")


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:7860", "localhost:7860", "[::1]:7860", "LOCALHOST"])
def test_this_machine_may(host):
    assert client().get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1", "a@b@c"]
)
def test_another_name_for_this_machine_may_not(host):
    answer = client().get("/", headers={"Host": host})
    assert answer.status_code == 403
    assert "this machine only" in answer.json()["detail"]


def test_any_host_where_it_is_open():
    assert client(hosts=None).get("/", headers={"Host": "sd.example"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:81", "http://127.0.0.1:7860.evil.example"]
)
def test_pages_of_other_sites_may_not(origin):
    assert client().post("/", headers={"Origin": origin}).status_code == 403


def test_its_own_page_may():
    answer = client().post("/", headers={"Origin": "http://127.0.0.1:7860"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_password():
    closed = client(auth=("me", "sécret:with colon"))
    assert closed.get("/").status_code == 401
    assert closed.get("/").headers["www-authenticate"].startswith("Basic")
    assert closed.get("/", headers=basic("me", "sécret:with colon")).status_code == 200
    for user, password in [("me", "secret"), ("you", "sécret:with colon"), ("me", ""), ("", "")]:
        assert closed.get("/", headers=basic(user, password)).status_code == 401
    for header in ("", "Basic", "Basic !", "Basic QQ==", "Bearer " + basic("me", "x")["Authorization"][6:]):
        assert closed.get("/", headers={"Authorization": header}).status_code == 401


def test_websockets_too():
    closed = client(auth=("me", "secret"), hosts=None)  # the test client calls itself testserver there
    with pytest.raises(WebSocketDisconnect), closed.websocket_connect("/ws"):
        pass
    with closed.websocket_connect("/ws", headers=basic("me", "secret")) as socket:
        assert socket.receive_text() == "hello"


def test_an_endless_body_is_cut(monkeypatch):
    monkeypatch.setattr(guard, "MAX_BODY", 1000)
    monkeypatch.setattr(attempts, "MAX_BODY", 1000)
    assert client().post("/", content=b"x" * 1000).text == "1000"
    assert client().post("/", content=b"x" * 1001).status_code == 413
    chunks = client().post("/", content=(b"x" * 100 for _ in range(11)))  # of no length that it says beforehand
    assert chunks.status_code == 413


def test_auth_pairs():
    assert parse_auth("me:a:b") == ("me", "a:b")
    for text in ("me", "me:", ":x", ""):
        with pytest.raises(UserError):
            parse_auth(text)


@pytest.mark.parametrize(
    ("flags", "auth"),
    [
        ("", None),
        ("--listen 127.0.0.1", None),
        ("--listen ::1", None),
        ("--listen localhost", None),
        ("--listen 0.0.0.0 --auth me:secret", ("me", "secret")),
        ("--listen 0.0.0.0 --no-auth", None),
        ("--auth me:secret", ("me", "secret")),
    ],
)
def test_flags_that_are_clear(flags, auth):
    assert check_access(server_parser().parse_args(flags.split())) == auth


@pytest.mark.parametrize(
    "flags", ["--listen 0.0.0.0", "--listen ::", "--listen 192.168.0.7", "--listen my.host", "--auth me:x --no-auth"]
)
def test_flags_that_leave_it_open(flags):
    with pytest.raises(UserError, match="--no-auth"):
        check_access(server_parser().parse_args(flags.split()))


def test_loopback():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "")] == [False] * 5


def test_a_port_that_is_taken():
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match=r"is in use already: .* --port"):
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.2:7860", "127.9.9.9", "[::1]"])
def test_every_loopback_address_is_its_own(host):
    assert client().get("/", headers={"Host": host}).status_code == 200


def test_a_name_that_was_allowed():
    named = client(hosts=("localhost", "sd.example.com"))
    assert named.get("/", headers={"Host": "sd.example.com"}).status_code == 200
    assert named.get("/", headers={"Host": "sd.example.com", "Origin": "https://sd.example.com"}).status_code == 200
    assert "--allow-host" in named.get("/", headers={"Host": "other.example"}).json()["detail"]


@pytest.mark.parametrize(
    ("flags", "hosts"),
    [
        ("--listen 127.0.0.2", ("127.0.0.2",)),
        ("--listen ::1 --allow-host SD.example --allow-host b.example", ("::1", "sd.example", "b.example")),
    ],
)
def test_its_own_names(flags, hosts):
    assert set(hosts) <= set(allowed_hosts(server_parser().parse_args(flags.split())))


def test_no_names_are_asked_for_where_other_machines_may_come_in():
    assert allowed_hosts(server_parser().parse_args("--listen 0.0.0.0 --no-auth".split())) is None


def test_a_page_that_is_rebound_to_this_machine_cannot_forge_its_host():
    forged = {"Host": "evil.example", "Origin": "http://evil.example", "X-Forwarded-Host": "127.0.0.1:7860"}
    assert client().post("/", headers=forged).status_code == 403


def test_a_page_behind_a_proxy_is_its_own():
    headers = {"Origin": "https://sd.example.com", "X-Forwarded-Host": "sd.example.com"}
    assert client().post("/", headers=headers).status_code == 200
    assert client().post("/", headers=headers | {"Origin": "https://evil.example"}).status_code == 403
    assert client().post("/", headers={"Origin": "null", "X-Forwarded-Host": ""}).status_code == 403


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


def site(*origins, auth=None):
    app = FastAPI()
    app.add_api_route("/", lambda: "hello", methods=["GET", "POST"])
    app.add_middleware(Guard, auth=auth, origins=parse_origins(list(origins)))
    if origins:
        add_cors(app, parse_origins(list(origins)))
    return TestClient(app, base_url="http://127.0.0.1:7860")


@pytest.mark.parametrize("allowed", ["http://localhost:5173", "https://a.example, http://localhost:5173/", "*"])
def test_a_page_of_a_site_that_was_let_in(allowed):
    """Also with a password, which a preflight request never carries."""
    origin = {"Origin": "http://localhost:5173"}
    open_site = site(allowed, auth=("me", "secret"))
    preflight = open_site.options("/", headers=origin | PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] in (origin["Origin"], "*")
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    answer = open_site.post("/", headers=origin | basic("me", "secret"))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] in (origin["Origin"], "*")
    assert open_site.post("/", headers=origin).status_code == 401
    assert ("access-control-allow-credentials" in answer.headers) == (allowed != "*")


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:51730", "null", "https://localhost:5173"])
def test_a_page_of_another_site_stays_out(origin):
    answer = site("http://localhost:5173").post("/", headers={"Origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert site("http://localhost:5173").options("/", headers={"Origin": origin} | PREFLIGHT).status_code == 400


def test_it_is_closed_unless_it_is_opened():
    preflight = site().options("/", headers={"Origin": "http://localhost:5173"} | PREFLIGHT)
    assert preflight.status_code == 403
    assert not [name for name in preflight.headers if name.startswith("access-control")]


@pytest.mark.parametrize("text", ["localhost:5173", "example.com", "http://a.example/path", "http://"])
def test_what_is_no_origin(text):
    with pytest.raises(UserError, match="--cors-allow-origins"):
        parse_origins([text])
