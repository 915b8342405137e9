"""Fetching against a server on loopback that misbehaves in every way we know."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sd.checkpoints import download
from sd.checkpoints.download import download_file
from sd.utils.errors import UserError

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT as `ways`, one a request and the last one for ever, tell it to; notes each request's Range."""

    def __init__(self, *ways):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ways, self.ranges = list(ways), []
        self.url = f"http://127.0.0.1:{self.server_port}/model"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        way = self.server.ways.pop(0) if len(self.server.ways) > 1 else self.server.ways[0]
        if isinstance(way, int):
            return self.send_error(way)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and way != "no ranges" else 0
        if way == "moved" and self.path == "/model":
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            return self.end_headers()
        if start >= len(CONTENT):
            return self.send_error(416)
        body = CONTENT if way != "other bytes" else bytes(len(CONTENT))
        self.send_response(206 if wanted and way != "no ranges" else 200)
        if wanted and way != "no ranges":
            first = 0 if way == "another place" else start
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if way != "no length":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = start + 100_000 if way == "cut" else len(body)
        self.wfile.write(b"" if way == "cut at once" else body[start:stop])
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(*ways):
        servers.append(Server(*ways))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(server, path, **options):
    download_file(server.url, path, SHA256, pause=0, **options)
    assert path.read_bytes() == CONTENT
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]


def test_plain(serve, tmp_path):
    server = serve("well")
    run(server, tmp_path / "model")
    assert server.ranges == [None]


def test_a_connection_that_is_cut_again_and_again_is_taken_up_where_it_was(serve, tmp_path):
    server = serve("cut")
    run(server, tmp_path / "model", patience=1)
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_a_call_goes_on_where_an_earlier_one_stopped(serve, tmp_path):
    server = serve("cut", "cut at once")
    with pytest.raises(UserError, match=r"run this again later, which resumes after 0\.1 MB"):
        run(server, tmp_path / "model", patience=3)
    assert len(server.ranges) == 1 + 3
    assert (tmp_path / "model.part").stat().st_size == 100_000
    again = serve("well")
    run(again, tmp_path / "model")
    assert again.ranges == ["bytes=100000-"]


@pytest.mark.parametrize("way", ["no ranges", "moved", "no length", "another place"])
def test_servers_with_manners_of_their_own(serve, tmp_path, way):
    (tmp_path / "model.part").write_bytes(CONTENT[:1000])
    run(serve(way), tmp_path / "model")


def test_a_passing_fault_of_the_server(serve, tmp_path):
    server = serve(503, 500, 429, "well")
    run(server, tmp_path / "model")
    assert len(server.ranges) == 4


def test_a_lasting_fault_of_the_server(serve, tmp_path):
    server = serve(503)
    with pytest.raises(UserError, match=r"503.*run this again later"):
        run(server, tmp_path / "model", patience=3)
    assert len(server.ranges) == 3


@pytest.mark.parametrize("code", [404, 401, 403])
def test_a_refusal_is_not_repeated(serve, tmp_path, code):
    server = serve(code)
    with pytest.raises(UserError, match=f"answers {code}"):
        run(server, tmp_path / "model")
    assert len(server.ranges) == 1


def test_a_part_that_is_whole_already(serve, tmp_path):
    (tmp_path / "model.part").write_bytes(CONTENT)
    run(serve("well"), tmp_path / "model")  # the server answers 416: there is nothing behind it


def test_a_part_of_another_file_that_is_longer(serve, tmp_path):
    (tmp_path / "model.part").write_bytes(bytes(len(CONTENT) + 5))
    server = serve("well")
    run(server, tmp_path / "model")
    assert server.ranges == [f"bytes={len(CONTENT) + 5}-", None]


def test_a_server_that_answers_416_to_everything(serve, tmp_path):
    with pytest.raises(UserError, match="answers 416"):
        run(serve(416), tmp_path / "model")


@pytest.mark.parametrize("part", [b"", b"another file"])
def test_wrong_bytes_are_thrown_away(serve, tmp_path, part):
    (tmp_path / "model.part").write_bytes(part)
    with pytest.raises(UserError, match="its SHA-256 differs"):
        run(serve("other bytes"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_fetched_again(serve, tmp_path):
    server = serve("well")
    (tmp_path / "model").write_bytes(CONTENT)
    run(server, tmp_path / "model")
    (tmp_path / "model").write_bytes(b"mine")
    with pytest.raises(UserError, match="is another file: move it away first"):
        run(server, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == b"mine"
    assert server.ranges == []


def test_nobody_there(tmp_path, capsys):
    server = Server("well")
    server.shutdown()
    server.server_close()
    words = r"cannot be reached \(Connection refused\): check the network, and run this again later"
    with pytest.raises(UserError, match=rf"{words}\.$"):
        run(server, tmp_path / "model", patience=3)
    said = [f"no answer (Connection refused): trying again in {seconds} s" for seconds in (0, 0)]
    assert capsys.readouterr().err.splitlines() == said
    (tmp_path / "model.part").write_bytes(bytes(3_000_000))
    with pytest.raises(UserError, match=rf"{words}, which resumes after 3\.0 MB\.$"):
        run(server, tmp_path / "model", patience=1)


def test_ctrl_c_says_that_the_same_command_goes_on(serve, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download.time, "sleep", lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(serve("cut"), tmp_path / "model")
    assert capsys.readouterr().err.splitlines()[-1] == "to go on: run the same command, which resumes after 0.1 MB"
    assert (tmp_path / "model.part").stat().st_size == 100_000


def test_no_room_and_no_right_to_write(serve, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="could not be written"):
        run(serve("well"), tmp_path / "file" / "model")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: download.shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UserError, match=r"has no room for 0\.0 GB more"):
        run(serve("well"), tmp_path / "new" / "model")


def test_the_script(serve, tmp_path):
    script = Path(__file__).resolve().parents[2] / "scripts" / "download.py"
    arguments = [sys.executable, script, "--outdir", tmp_path]
    done = subprocess.run([*arguments, "--url", serve("well").url], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "its SHA-256 differs" in done.stderr
    assert "Traceback" not in done.stderr
    assert "downloading" in done.stderr
    done = subprocess.run([*arguments, "--ckpt", "--url", serve(404).url], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "v1-5-pruned-emaonly.ckpt" in done.stdout
    assert "answers 404" in done.stderr
