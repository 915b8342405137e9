"""Many images over several processes: the same files as one process makes, also after a stop."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sd.cli.distributed import assign_filenames, broadcast, saved_texts, shard, worker_context
from sd.cli.requests import GenerationRequest, expand_request
from sd.pipeline.infotext import read_infotext
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import BUNDLED
from sd.utils.device import rank_and_world_size
from sd.utils.errors import UserError, plain_errors
from sd.utils.files import save_png

ROOT = Path(__file__).resolve().parents[2]
ONE = ["--steps", "2", "--seed", "5", "--ckpt", str(BUNDLED), "--sampler", "dpmpp_2m"]


def make_requests(count: int = 5, **settings) -> list[GenerationRequest]:
    asked = dict(steps=2, width=64, height=64, variation_seed=0) | settings
    return [
        GenerationRequest(GenerationSettings(f"picture {i}", seed=10 + i * asked.get("num_images", 1), **asked))
        for i in range(count)
    ]


def fill(pipe, folder: Path, planned: list[GenerationRequest]) -> None:
    """Images as `generate_and_save` would name and sign them, without generating them."""
    for one in planned:
        for i, text in enumerate(one.texts(pipe.infotexts(pipe.resolve_size(one.settings, None), from_image=False))):
            save_png(Image.new("RGB", (8, 8)), folder, text, one.prefix, one.number + i)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.png"))


def test_alone_one_is_one_process(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    assert rank_and_world_size() == (0, 1)
    with worker_context():
        print("heard")
    assert capsys.readouterr().out == "heard\n"
    asked = make_requests()
    assert shard(broadcast(lambda: asked)) is asked


def test_shares_are_all_of_it_once_the_largest_first(monkeypatch):
    asked = make_requests(4) + make_requests(3, num_images=2)
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        shares.append(shard(asked))
    assert sorted(str(one) for part in shares for one in part) == sorted(map(str, asked))
    assert [[one.settings.num_images for one in part] for part in shares] == [[2, 1, 1], [2, 1], [2, 1]]


def test_all_but_the_first_are_silent_until_they_fail(monkeypatch, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)

    def fail():
        with worker_context():
            print("not heard")
            print("nor this", file=sys.stderr)
            raise UserError("this is.")

    with pytest.raises(SystemExit):
        plain_errors(fail)()
    assert capsys.readouterr() == ("", "error: this is.\n")


def test_an_image_with_region_masks_is_there_already(pipe, tmp_path):
    (asked,) = make_requests(1)
    (text,) = pipe.infotexts(asked.settings, False, 2)
    save_png(Image.new("RGB", (8, 8)), tmp_path, text)
    assert assign_filenames(pipe, [asked], tmp_path, resume=True, region_masks=2) == []
    assert len(assign_filenames(pipe, [asked], tmp_path, resume=True)) == 1


def test_numbers_go_on_where_the_folder_ends(pipe, tmp_path):
    save_png(Image.new("RGB", (8, 8)), tmp_path, prefix="", number=6)
    planned = assign_filenames(pipe, make_requests(3, num_images=2), tmp_path)
    assert [one.number for one in planned] == [7, 9, 11]
    fill(pipe, tmp_path, reversed(planned))  # in whatever order they are made
    assert names(tmp_path) == [f"{i:05}.png" for i in range(6, 13)]
    for one in planned:
        for i, seed in enumerate(one.settings.seeds()):
            assert f"Seed: {seed}," in read_infotext(tmp_path / f"{one.number + i:05}.png")


def test_titles_count_each_for_themselves(pipe, tmp_path):
    titled = [
        GenerationRequest(one.settings, title=title)
        for one, title in zip(make_requests(4), ["Cat", "Dog", "Cat", "Cat"])
    ]
    assert [(one.prefix, one.number) for one in assign_filenames(pipe, titled, tmp_path)] == [
        ("cat-", 0),
        ("dog-", 0),
        ("cat-", 1),
        ("cat-", 2),
    ]


def test_what_is_there_is_left_out_and_gaps_are_filled(pipe, tmp_path, capsys):
    save_png(Image.new("RGB", (8, 8)), tmp_path)  # somebody's
    asked = expand_request(make_requests(1, num_images=3)[0].settings) + make_requests(3)[1:]
    whole = assign_filenames(pipe, asked, tmp_path)
    fill(pipe, tmp_path, whole)
    for number in (2, 4):
        (tmp_path / f"{number:05}.png").unlink()
    rest = assign_filenames(pipe, asked, tmp_path, resume=True)
    assert capsys.readouterr().out == f"3 of 5 images are in {tmp_path} already.\n"
    assert [(one.number, one.settings.seed, one.settings.num_images) for one in rest] == [(2, 11, 1), (4, 11, 1)]
    fill(pipe, tmp_path, rest)
    assert names(tmp_path) == [f"{i:05}.png" for i in range(6)]
    assert assign_filenames(pipe, asked, tmp_path, resume=True) == []
    again = assign_filenames(
        pipe, asked, tmp_path
    )  # without the flag everything is generated again, beside what there is
    assert [one.number for one in again] == [6, 9, 10]


@pytest.mark.parametrize("change", [dict(steps=3), dict(seed=1), dict(negative_prompt="x"), dict(step_cache=2)])
def test_other_settings_are_another_image(pipe, tmp_path, change):
    asked = make_requests(1)
    fill(pipe, tmp_path, assign_filenames(pipe, asked, tmp_path))
    other = [GenerationRequest(asked[0].settings.replace(**change))]
    assert [one.number for one in assign_filenames(pipe, other, tmp_path, resume=True)] == [1]


def test_a_broken_image_is_generated_again_beside_it(pipe, tmp_path):
    asked = make_requests(2)
    fill(pipe, tmp_path, assign_filenames(pipe, asked, tmp_path))
    (tmp_path / "00001.png").write_bytes((tmp_path / "00001.png").read_bytes()[:-50])  # into the pixels
    rest = assign_filenames(pipe, asked, tmp_path, resume=True)
    fill(pipe, tmp_path, rest)
    assert names(tmp_path) == ["00000.png", "00001.png", "00002.png"]
    assert len(saved_texts(tmp_path)) == 2


def test_resume_without_a_seed_is_one_sentence(run):
    code, _, err = run("txt2img.py", "x", "--resume")
    assert code == 2
    assert "--seed" in err
    assert err.count("\n") == 1


def torchrun(count: int, folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """As a person starts it; a free port, so that tests may run beside each other."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--master-port=0"]
    command += ["--standalone", str(ROOT / "scripts" / "txt2img.py"), "--from-file", "prompts.txt", *ONE, *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_two_processes_generate_what_one_generates(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red apple\na {dog|cat}\na house\na fish\na ghost\n")
    assert run("txt2img.py", "--from-file", "prompts.txt", "--outdir", "one", "--skip-grid", *ONE)[0] == 0
    done = torchrun(2, tmp_path, "--outdir", "two")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "two") == names(tmp_path / "one") == [f"{i:05}.png" for i in range(5)]
    for name in names(tmp_path / "one"):
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        assert read_infotext(one) == read_infotext(two)
        difference = np.asarray(Image.open(one), int) - np.asarray(Image.open(two), int)
        assert abs(difference).max() <= 1  # one process has more threads, and other orders of sums
    assert done.stdout.count("seed") == 3  # the first process's share
    assert "Traceback" not in done.stderr

    (tmp_path / "two" / "00003.png").unlink()
    done = torchrun(2, tmp_path, "--outdir", "two", "--resume")
    assert done.returncode == 0, done.stderr
    assert "4 of 5 images are in two already." in done.stdout
    assert names(tmp_path / "two") == names(tmp_path / "one")
    assert read_infotext(tmp_path / "two" / "00003.png") == read_infotext(tmp_path / "one" / "00003.png")
