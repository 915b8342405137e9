"""The server behind nginx and Caddy as docs/guides/reverse-proxy.md configures them, and which headers are trusted."""

import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import contextmanager, suppress

import pytest
from conftest import ROOT
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from web_client import listening, opened

from sd.utils.errors import UserError
from sd.web.proxies import ProxyHeaders, is_loopback_address, parse_root_path
from sd.web.server import create_app

NAME = "sd.example.com"
SMALL = {"prompt": "a red apple", "steps": 2, "seed": 7, "width": 64, "height": 64}
BLOCKS = re.findall(r"```(nginx|caddy)\n(.*?)```", (ROOT / "docs/guides/reverse-proxy.md").read_text(), re.DOTALL)
CASES = [pytest.param(kind, text, id=f"{kind}{'-path' * ('/sd/' in text)}") for kind, text in BLOCKS]


@pytest.fixture(scope="module")
def port(web):
    """Of the server with its page."""
    pytest.importorskip("gradio")
    with listening(create_app(web.jobs, web.models)) as port:
        yield port


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def nginx_command(folder, text: str, server: int, own: int) -> list[str]:
    key, certificate = folder / "sd.key", folder / "sd.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{own} ssl").replace(
        "127.0.0.1:7860", f"127.0.0.1:{server}"
    )
    text = text.replace(f"/etc/ssl/{NAME}.pem", str(certificate)).replace(f"/etc/ssl/{NAME}.key", str(key))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder / kind};\n" for kind in kinds)
    head = f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
    (folder / "nginx.conf").write_text(f"{head}http {{\naccess_log off;\n{places}{text}}}\n")
    return ["nginx", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]


def caddy_command(folder, text: str, server: int, own: int) -> list[str]:
    head = f"{{\nadmin off\nskip_install_trust\nauto_https disable_redirects\nstorage file_system {folder}/store\n}}\n"
    text = text.replace(f"{NAME} {{", f"https://{NAME}:{own} {{\ntls internal\nbind 127.0.0.1", 1)
    (folder / "Caddyfile").write_text(head + text.replace("127.0.0.1:7860", f"127.0.0.1:{server}"))
    return ["caddy", "run", "--adapter", "caddyfile", "--config", f"{folder}/Caddyfile"]


@contextmanager
def proxy(kind: str, text: str, server: int, folder):
    """Runs it; gives its port."""
    if shutil.which(kind) is None or (kind == "nginx" and shutil.which("openssl") is None):
        pytest.skip(f"{kind} is not installed")
    own = free_port()
    make = nginx_command if kind == "nginx" else caddy_command
    command = make(folder, text, server, own)
    with open(folder / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_for(own, process, folder)
            yield own
        finally:
            process.terminate()


def wait_for(port: int, process: subprocess.Popen, folder) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError, ssl.SSLError):
            secure_socket(port).close()
            return
        time.sleep(0.1)
    pytest.fail((folder / "log").read_text()[-2000:])


def secure_socket(port: int) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=60), server_hostname=NAME)


class Visitor:
    """A browser's requests to the public name, over TLS."""

    def __init__(self, port: int, prefix: str):
        self.port, self.prefix, self.origin = port, prefix, f"https://{NAME}:{port}"

    def ask(self, method: str, path: str, body: dict | None = None, origin: str | None = None):
        """(status, bytes)"""
        connection = http.client.HTTPConnection(NAME, self.port)
        connection.sock = secure_socket(self.port)
        headers = {"Host": f"{NAME}:{self.port}", "Origin": origin or self.origin, "Content-Type": "application/json"}
        connection.request(method, self.prefix + path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content


@pytest.mark.parametrize(("kind", "text"), CASES)
def test_behind_a_proxy_as_the_documentation_has_it(kind, text, port, tmp_path):
    prefix = "/sd" if "/sd/" in text else ""
    with proxy(kind, text, port, tmp_path) as own:
        visitor = Visitor(own, prefix)
        status, page = visitor.ask("GET", "/")
        assert status == 200
        assert f'"root":"{visitor.origin}{prefix}"'.encode() in page, "where the page sends its events"
        script = re.search(rb'src="\./(assets/[^"]+\.js)"', page)[1].decode()
        assert visitor.ask("GET", f"/{script}")[0] == 200
        assert b"/static-offline-docs/" in visitor.ask("GET", "/docs")[1]
        assert visitor.ask("GET", "/static-offline-docs/swagger-ui.css")[0] == 200

        status, answer = visitor.ask("POST", "/sdapi/v1/txt2img", SMALL)
        assert status == 200, answer
        assert opened(json.loads(answer)["images"][0]).size == (64, 64)
        job = json.loads(visitor.ask("POST", "/jobs", SMALL)[1])
        events = visitor.ask("GET", f"/jobs/{job['id']}/events")[1].decode().split("\n\n")
        assert json.loads(events[-2].removeprefix("data: "))["state"] == "done"

        body = {"data": [], "fn_index": 10**6, "session_hash": "x"}
        assert visitor.ask("POST", "/gradio_api/queue/join", body)[0] not in (403, 502), "an event of the page arrives"
        assert visitor.ask("POST", "/sdapi/v1/txt2img", SMALL, origin="https://evil.example")[0] == 403


@pytest.mark.parametrize("kind", ["nginx", "caddy"])
def test_the_documentation_has_a_host_and_a_path_for_each(kind):
    texts = [text for one, text in BLOCKS if one == kind]
    assert ["/sd/" in text for text in texts] == [False, True]


async def show(request: Request):
    scope = request.scope
    return JSONResponse([scope["client"][0], scope["scheme"], scope["root_path"], scope["path"]])


def seen(headers=None, peer="127.0.0.1", root_path="", path="/x"):
    app = Starlette(routes=[Route("/x", show)])
    client = TestClient(ProxyHeaders(app, root_path), base_url="http://127.0.0.1", client=(peer, 1))
    return client.get(path, headers=headers or {}).json()


FORWARDED = {
    "X-Forwarded-For": "1.1.1.1, 9.9.9.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": "/sd/",
}


def test_a_proxy_on_this_machine_is_believed():
    assert seen(FORWARDED) == ["9.9.9.9", "https", "/sd", "/sd/x"]
    assert seen(FORWARDED, path="/sd/x") == ["9.9.9.9", "https", "/sd", "/sd/x"]


def test_another_machine_is_not_believed():
    assert seen(FORWARDED, peer="10.0.0.9") == ["10.0.0.9", "http", "", "/x"]


@pytest.mark.parametrize("prefix", ["//evil.example", "/a b", "/..%2f", "javascript:x", "/<script>"])
def test_a_prefix_that_is_no_path_is_not_taken(prefix):
    assert seen({"X-Forwarded-Prefix": prefix})[2] == ""


@pytest.mark.parametrize("path", ["/x", "/sd/x"])
def test_a_root_path_works_whether_the_proxy_cuts_it_off_or_not(path):
    assert seen(root_path="/sd", path=path) == ["127.0.0.1", "http", "/sd", "/sd/x"]


def test_root_paths():
    assert [parse_root_path(text) for text in ("", "/", "/sd", "sd/", "/a/b/")] == ["", "", "/sd", "/sd", "/a/b"]
    for text in ("/a b", "http://x", "/a?b"):
        with pytest.raises(UserError, match="--root-path"):
            parse_root_path(text)


def test_loopback_addresses():
    assert all(map(is_loopback_address, ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1"]))
    assert not any(map(is_loopback_address, ["localhost", "10.0.0.1", "", "::2"]))
