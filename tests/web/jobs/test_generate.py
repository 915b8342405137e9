"""The worker's side of an image."""

import signal
from contextlib import suppress

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_models import save_lora
from web_client import Web

from sd.adapters.manager import Adapters
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.web.jobs import generate as generate_job
from sd.web.jobs.generate import ImageGenerator, split_into_batches
from sd.web.jobs.job import Cancelled, Interrupted, Job, JobFailed, Skipped
from sd.web.jobs.model_index import Models
from sd.web.jobs.submit import GenerateRequest, submit_request
from sd.web.jobs.worker import describe_exit


def job_of(tmp_path, **settings):
    request = {"settings": vars(GenerationSettings(steps=3, seed=7, **settings)), "checkpoint": "", "batch_size": 2}
    return Job("id", "draw", request | {"resize_mode": "crop", "title": ""}, tmp_path)


@pytest.fixture
def generator(tmp_path, pipe):
    models = Models(*(tmp_path / name for name in ("weights", "loras", "embeddings")))
    pipe.path = models.checkpoint()
    return ImageGenerator(models, pipe=pipe)


@pytest.mark.parametrize("more", [{}, {"variation_seed": 3, "variation_strength": 0.5}])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_portions_have_the_seeds_of_the_whole(more, batch_size):
    whole = GenerationSettings(seed=10, num_images=5, **more)
    parts = list(split_into_batches(whole, batch_size))
    assert max(part.num_images for part in parts) == min(batch_size, 5)
    assert [seed for part in parts for seed in part.seeds()] == whole.seeds()
    assert [seed for part in parts for seed in part.variation_seeds()] == whole.variation_seeds()


def test_steps_are_counted_over_the_whole_job(generator, tmp_path):
    told = []
    generator(job_of(tmp_path, num_images=3), told.append)
    steps = [(event["step"], event["steps"]) for event in told if "step" in event]
    assert steps == [(step, 9) for step in range(1, 10)]
    assert [len(event["result"]["images"]) for event in told if "result" in event] == [1, 2, 3]


def test_a_lora_in_the_prompt_is_loaded_once_for_all_images_and_cells(generator, tmp_path, monkeypatch):
    save_lora(tmp_path / "loras" / "bent.safetensors")
    generator.pipe.adapters.models = generator.models
    loaded, load = [], Adapters.load_lora
    monkeypatch.setattr(Adapters, "load_lora", lambda self, *given: loaded.append(given[0].stem) or load(self, *given))
    given = {"prompt": "a cat <lora:bent:0.5>", "num_images": 3, "width": 64, "height": 64}
    assert len(generator(job_of(tmp_path, **given), lambda event: None)["seeds"]) == 3
    assert loaded == ["bent"]
    loaded.clear()
    generator(grid_of(tmp_path, ["seed=1, 2, 3"], prompt="a cat <lora:bent:0.5>"), lambda event: None)
    assert loaded == ["bent"] * 2, "once to see that it fits, and once for the three cells"
    assert generator.pipe.adapters.names() == []


def grid_of(tmp_path, axes, **settings):
    job = job_of(tmp_path, width=64, height=64, **settings)
    job.request["axes"] = axes
    return job


def test_a_grid_counts_the_steps_of_all_cells_and_ends_with_its_sheet(generator, tmp_path):
    told = []
    made = generator(grid_of(tmp_path, ["steps=1, 3", "seed=1, 2", ""], prompt="a cat"), told.append)
    steps = [(event["step"], event["steps"]) for event in told if "step" in event]
    assert steps == [(step, 8) for step in range(1, 9)]
    assert made["images"] == ["xyz-00000.png", *(f"0000{i}.png" for i in range(4))]
    assert made["seeds"] == [1, 1, 1, 2, 2]
    assert next(event["result"]["images"] for event in told if "result" in event) == ["00000.png"]


def test_a_grid_that_is_stopped_or_skips_a_cell_has_a_sheet_of_the_others(generator, tmp_path):
    def at(step, stop):
        def tell(event):
            if event.get("step") == step:
                raise stop

        return tell

    for name, stop, seeds in (("a", Skipped, [1, 1, 3]), ("b", Interrupted, [1, 1, 2]), ("c", Cancelled, [1, 1])):
        folder = tmp_path / name
        folder.mkdir()
        job = grid_of(folder, ["seed=1, 2, 3"])
        made: dict = {}
        with suppress(Interrupted):
            made = generator(job, at(4, stop))
        if made:
            assert made["seeds"] == seeds
        assert (folder / "xyz-00000.png").exists()


def test_a_grid_over_checkpoints_loads_each_once_and_sorts_its_images(generator, tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "other.safetensors").touch()
    generator.models.refresh()
    loaded, pipe = [], generator.pipe

    def load(path, *_):
        loaded.append(path.name)
        pipe.path = path
        return pipe

    monkeypatch.setattr(StableDiffusion, "from_pretrained", load)
    made = generator(grid_of(tmp_path, ["checkpoint=emoji, other", "seed=5, 6"]), lambda event: None)
    assert loaded == ["other.safetensors"]
    assert made["seeds"] == [5, 5, 5, 6, 6]
    assert made["images"][1:] == ["00000.png", "00002.png", "00001.png", "00003.png"]


@pytest.mark.parametrize("more", [{}, {"axes": ["steps=1, 2", "", ""]}, {"resize_mode": "stretch"}])
@pytest.mark.parametrize("animated", [["image"], ["image", "mask"]])
def test_a_note_says_which_animation_is_used_in_part(generator, tmp_path, photo, more, animated):
    job = job_of(tmp_path, width=64, height=64)
    job.request |= more
    for name in animated:
        photo.save(tmp_path / name, "GIF", save_all=True, append_images=[photo.rotate(90)])
    named = [{"image": "init image"}.get(name, name) for name in animated]
    said = [f"The file of the {name} has several frames or pages, of which only the first is used." for name in named]
    assert generator(job, lambda event: None)["notes"] == said


@pytest.mark.parametrize("resize_mode", ["crop", "stretch"])
def test_a_note_says_that_a_mask_is_stretched(generator, tmp_path, photo, resize_mode):
    job = job_of(tmp_path, width=64, height=64)
    job.request["resize_mode"] = resize_mode
    photo.save(tmp_path / "image", "PNG")
    Image.linear_gradient("L").resize((64, 16)).save(tmp_path / "mask", "PNG")
    said = ["The mask is 64x16 and is stretched over the image, which is 64x64."]
    assert generator(job, lambda event: None)["notes"] == said


def test_a_skipped_image_is_left_out(generator, tmp_path):
    def skip_the_second(event):
        if event.get("step") == 5:
            raise Skipped

    made = generator(job_of(tmp_path, num_images=3), skip_the_second)
    assert made["seeds"] == [7, 9]
    assert made["files"] == ["00000.png", "00001.png"]


def test_previews(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(generate_job, "PREVIEW_AFTER", 0)
    told = []
    generator(job_of(tmp_path), told.append)
    assert told[0]["preview"] == "preview.png"
    assert Image.open(tmp_path / "preview.png").size == (64, 64)
    assert "preview" not in told[-1], "after the last step there is the picture itself"


def test_another_checkpoint_takes_the_place_of_the_first(generator, tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "other.safetensors").touch()
    generator.models.refresh()
    loaded, pipe = [], generator.pipe
    monkeypatch.setattr(
        StableDiffusion, "from_pretrained", lambda path, *_: loaded.append((path.name, generator.pipe)) or pipe
    )
    assert generator.load("emoji") is pipe
    assert loaded == []
    generator.load("other")
    assert loaded == [("other.safetensors", None)], "the first is let go before"
    assert pipe.adapters.models.folders["LoRA"] == tmp_path / "loras"


@pytest.mark.parametrize(
    ("title", "name"), [("../Sour: a Lemon", "sour-a-lemon"), ("Зелёное/яблоко?", "зелёное-яблоко"), ("..", "picture")]
)
def test_a_title_names_the_files(tmp_path, pipe, title, name):
    web = Web(tmp_path, pipe)
    asked = GenerateRequest(GenerationSettings(steps=1, num_images=2), title=title)
    job = web.ended(submit_request(web.jobs, web.models, asked).public())
    assert job["result"]["images"] == job["result"]["files"] == [f"{name}-00000.png", f"{name}-00001.png"]
    for file in job["result"]["files"]:
        assert (web.jobs.folder / job["id"] / file).is_file()
        assert web.client.get(f"/jobs/{job['id']}/files/{file}").headers["content-type"] == "image/png"
    web.jobs.close()


def test_running_out_of_memory_costs_one_job(tmp_path, pipe, monkeypatch):
    web = Web(tmp_path, pipe)

    def generate_nothing(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(pipe, "generate", generate_nothing)
        failed = web.ended(submit_request(web.jobs, web.models, GenerateRequest(GenerationSettings(steps=1))).public())
    assert failed["error"].startswith("there was not enough memory")
    done = web.ended(submit_request(web.jobs, web.models, GenerateRequest(GenerationSettings(steps=1))).public())
    assert done["state"] == "done"
    web.jobs.close()


def test_another_vae_is_another_pipeline(generator, tmp_path, monkeypatch):
    (tmp_path / "weights" / "vae").mkdir(parents=True)
    tensors = {f"{part}.conv_in.weight": torch.zeros(1) for part in ("encoder", "decoder")}
    save_file(tensors, tmp_path / "weights" / "vae" / "soft.safetensors")
    generator.models.refresh()
    loaded, pipe = [], generator.pipe

    def load(path, device, dtype, vae, prediction):
        loaded.append(getattr(vae, "name", vae))
        pipe.vae_path = None if vae == "none" else vae
        return pipe

    monkeypatch.setattr(StableDiffusion, "from_pretrained", load)
    for vae in ("", "None", "Automatic", "soft", "Soft.safetensors", "None"):
        generator.load("emoji", vae)
    assert loaded == ["soft.safetensors", "none"]


def rewrite_in_place(path):
    """Other programs would write other bytes; the same ones show as a change, too."""
    with open(path, "r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(first)


def test_a_checkpoint_overwritten_while_in_use_fails_the_job_and_is_read_again(tmp_path, pipe):
    models = Models(*(tmp_path / name for name in ("weights", "loras", "embeddings")))
    path = tmp_path / "weights" / "mine.safetensors"
    pipe.save_pretrained(path)
    generator = ImageGenerator(models)
    job = job_of(tmp_path, num_images=1, width=64, height=64)
    job.request["checkpoint"] = "mine"
    assert generator(job, lambda event: None)["files"] == ["00000.png"]
    loaded = generator.pipe
    assert generator.load("mine") is loaded
    with pytest.raises(JobFailed, match=r"mine\.safetensors was overwritten while it was in use.*renaming"):
        generator(job, lambda event: rewrite_in_place(path) if event.get("step") == 1 else None)
    assert generator(job, lambda event: None)["files"] == ["00002.png"]  # 00001.png is the one that may be wrong
    renamed = tmp_path / "weights" / "new.part"
    renamed.write_bytes(path.read_bytes())
    before = generator.pipe
    renamed.replace(path)  # this one is safe while the old one is in use, and the next job sees the new one
    assert generator.load("mine") is not before


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="Windows has no SIGBUS")
def test_the_end_of_a_worker_whose_file_was_cut_is_explained():
    assert "a model's file changed while it was in use" in describe_exit(-signal.SIGBUS)
    assert "memory runs out" in describe_exit(-signal.SIGKILL)
