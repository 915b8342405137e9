"""Uploaded images are decoded in other processes: the server's own never opens one."""

import base64
import io
import os
import time

import pytest
from PIL import Image
from web_client import Web, base64_of, opened, png, post

from sd.utils.errors import UserError
from sd.web.jobs import uploads
from sd.web.jobs.file_reader import FileReader
from sd.web.jobs.limits import TooLarge, decode_image, image_size, uploaded_infotext
from sd.web.jobs.uploads import decodes_uploads

RED = Image.new("RGB", (24, 16), "red")


@pytest.fixture(scope="module")
def readers():
    readers = [FileReader(), FileReader()]
    yield readers
    for reader in readers:
        reader.stop()


@pytest.fixture
def apart(readers):
    uploads.decode_by(readers)
    yield readers
    uploads.decode_by([])


@decodes_uploads
def where(data):
    return os.getpid(), len(data)


@decodes_uploads
def end(data):
    os._exit(3)


@decodes_uploads
def hang(data):
    time.sleep(1000)


@decodes_uploads
def nested(data):
    return where(data)[0] == os.getpid()


def test_decorated_functions_run_in_another_process_once_there_is_one(apart):
    pid, length = where(b"abc")
    assert pid != os.getpid()
    assert length == 3
    assert nested(b"abc")
    assert apart[1].process is None  # the second one starts only while the first is busy
    uploads.decode_by([])
    assert where(b"abc") == (os.getpid(), 3)


def test_an_image_that_ends_or_holds_its_reader_costs_its_request_only(apart):
    with pytest.raises(UserError, match="the image ended the process that read it: send another one"):
        end(b"")
    where(b"")  # starts it again, which takes longer than the patience below
    apart[0].patience = 0.2
    with pytest.raises(UserError, match="the image takes too long to read"):
        hang(b"")
    apart[0].patience = 60
    assert where(b"")[0] != os.getpid()


def test_errors_keep_their_kind_and_sentence(apart):
    large = Image.new("1", (4097, 4096))
    with pytest.raises(TooLarge, match="over 16 million pixels"):
        image_size(png(large))
    with pytest.raises(UserError, match="cannot be opened as an image"):
        decode_image(base64.b64encode(b"no image").decode())
    with pytest.raises(UserError, match=r"photo\.png holds no settings"):
        uploaded_infotext(png(RED), "photo.png")


def test_no_address_opens_an_image_in_the_server_s_process(apart, tmp_path, pipe, monkeypatch):
    web = Web(tmp_path, pipe)
    monkeypatch.setattr(web.jobs, "runs", [])
    text, mask = base64_of(RED), base64_of(Image.new("L", (24, 16), 255))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened in the server's process"))
    monkeypatch.setattr(web.jobs, "submit", submitted := Submitted())
    info = post(web, "png-info", image=text)
    assert info["info"] == ""
    upscaled = post(web, "extra-single-image", image=text, upscaler_1="Lanczos", upscaling_resize=2)
    found = web.client.post(
        "/controlnet/detect", json={"controlnet_module": "canny", "controlnet_input_images": [text]}
    )
    unit = {"args": [{"image": text, "mask": mask, "model": "none", "enabled": False}]}
    scripts = {"controlnet": unit}
    web.client.post("/jobs", json={"prompt": "a", "image": text, "mask": mask})
    web.client.post("/sdapi/v1/img2img", json={"init_images": [text], "mask": mask, "alwayson_scripts": scripts})
    monkeypatch.undo()
    web.jobs.close()
    assert opened(upscaled["image"]).size == (48, 32)
    assert found.status_code == 200, found.text
    assert len(submitted.jobs) == 2
    assert all(Image.open(io.BytesIO(files["image"])).size == (24, 16) for files in submitted.jobs)


class Submitted:
    """In place of the queue: keeps the files of each job and refuses it."""

    def __init__(self):
        self.jobs = []

    def __call__(self, kind, request, files):
        self.jobs.append(files)
        raise UserError("not now.")
