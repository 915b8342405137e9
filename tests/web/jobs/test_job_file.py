"""One damaged entry, whatever it holds, never breaks the list of jobs or the page."""

import json

import pytest
from fake_jobs import count

from sd.web.jobs.job import Missing, load_job
from sd.web.jobs.job_file import plain
from sd.web.jobs.queue import Jobs
from sd.web.ui.follow import JobFollower
from sd.web.ui.job_status import generation_panel
from sd.web.ui.train_tab import training_panel

PAGE = "abcdefgh1234"
GOOD = {
    "id": "20261126-180000-000000-0000",
    "kind": "draw",
    "request": {"settings": {"prompt": "a"}, "page": PAGE},
    "state": "done",
    "created": 1.0,
    "started": 1.0,
    "ended": 2.0,
    "progress": 1.0,
    "eta": None,
    "event": {},
    "result": {"files": ["a.png"], "images": ["a.png"], "infotexts": ["a"], "seeds": [1]},
    "error": "",
    "mendable": False,
}
ODD = [
    {"request": []},
    {"request": {"settings": 5, "page": PAGE}},
    {"request": {"settings": {"prompt": 5}, "page": PAGE}},
    {"request": {"page": 5}},
    {"created": "x"},
    {"created": None},
    {"started": None},
    {"ended": None},
    {"result": []},
    {"result": {"images": 5}},
    {"result": {"images": [1], "infotexts": [None]}},
    {"result": {"files": [[]]}},
    {"result": {"notes": [1]}},
    {"result": {"sheet": 5}},
    {"result": {"seeds": ["x"]}},
    {"state": "flying"},
    {"state": []},
    {"kind": 5},
    {"event": []},
    {"event": {"steps": 0}},
    {"event": {"losses": [], "held_out": []}},
    {"event": {"losses": [[1, "x"]]}},
    {"progress": float("nan")},
    {"error": None},
    {"unknown": 1},
]
RAW = [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a":' * 90_000 + b"1" + b"}" * 90_000, b"[]", b"null", b"5"]


def add(folder, number: int, data: bytes) -> str:
    id = f"20261126-18{number:04}-000000-0000"
    (folder / id).mkdir(parents=True)
    (folder / id / "job.json").write_bytes(data)
    return id


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path, count)
    yield jobs
    jobs.close()


@pytest.mark.parametrize("kind", ["draw", "teach"])
def test_odd_entries_are_left_out_and_good_ones_shown(jobs, tmp_path, kind):
    data = [json.dumps(GOOD | {"kind": kind} | odd).encode() for odd in ODD] + RAW
    odd = [add(tmp_path, number, one) for number, one in enumerate(data)]
    good = add(tmp_path, len(data), json.dumps(GOOD | {"kind": kind}).encode())
    (tmp_path / "20261126-190000-000000-0000" / "job.json").mkdir(parents=True)
    (tmp_path / "20261126-190001-000000-0000").write_text("a file")
    assert [job.id for job in jobs.list()] == [good]
    for id in odd:
        with pytest.raises(Missing):
            jobs.get(id)
    show = generation_panel if kind == "draw" else training_panel
    assert JobFollower(jobs, kind, show).now(PAGE)["ended"] == [good]


def test_half_an_emoji_that_an_earlier_version_kept(tmp_path):
    """It broke GET /jobs for good, since no answer can hold it."""
    half = {"request": {"settings": {"prompt": "half \ud83d"}}, "error": "\ud800", "result": {"infotexts": ["\udfff"]}}
    job = load_job(tmp_path / add(tmp_path, 0, json.dumps(GOOD | half).encode()))
    json.dumps(job.public(), ensure_ascii=False).encode()
    assert job.request["settings"]["prompt"] == "half ?"


def test_a_live_job_shows_encodable_texts_too(jobs):
    job = jobs.submit("count", {"name": "\ud83d"})
    json.dumps(job.public(), ensure_ascii=False).encode()


def test_the_id_and_the_folder_are_where_it_lies(tmp_path):
    id = add(tmp_path, 1, json.dumps(GOOD | {"id": "../../x", "folder": "/etc"}).encode())
    assert (load_job(tmp_path / id).id, load_job(tmp_path / id).folder) == (id, tmp_path / id)


def test_a_huge_file_is_not_read(tmp_path):
    id = add(tmp_path, 1, b"")
    with open(tmp_path / id / "job.json", "wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(Missing):
        load_job(tmp_path / id)


def test_plain_values_stay_as_they_are():
    values = {"a": [1, 2.5, None, True, "ä🍎"], "b": {"c": []}}
    assert plain(values) == values
