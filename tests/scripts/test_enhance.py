"""--enhance, --style and wildcards in the scripts that generate, as a person runs them with the bundled model."""

from pathlib import Path

import pytest
from chat_server import GOOD, ChatServer, drop, says, status
from PIL import Image

from sd.pipeline.infotext import parse_infotext, read_infotext
from sd.pipeline.stable_diffusion import BUNDLED
from sd.prompts.wildcards import expand_wildcards


@pytest.fixture
def generate(run, monkeypatch):
    """As `run`, with one step of the bundled model and no endpoint in the environment."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return lambda script, *flags: run(script, *flags, "--ckpt", BUNDLED, "--steps", 1)


def settings(path: str) -> dict[str, str]:
    return parse_infotext(read_infotext(path))


def test_a_chat_model_writes_the_prompts_and_names_the_file(generate):
    with ChatServer(says(GOOD | {"title": "../Sour: a Lemon"})) as server:
        flags = ["--enhance", "--llm-url", server.url, "--llm-model", "toy", "--negative-prompt", "blur", "--seed", 3]
        for number in range(2):
            code, out, err = generate("txt2img.py", "something sour", *flags)
            assert code == 0, err
            assert f"prompt: {GOOD['prompt']}\noutputs/sour-a-lemon-0000{number}.png  seed 3" in out
            assert "note" not in out
        system = server.asked[0]["messages"][0]["content"]
    assert "red apple" in system  # the bundled model's names
    assert sorted(path.name for path in Path("outputs").iterdir()) == [f"sour-a-lemon-0000{i}.png" for i in range(2)]
    found = settings("outputs/sour-a-lemon-00000.png")
    assert found["Prompt"] == GOOD["prompt"]
    assert found["Negative prompt"] == "blur, text"
    assert found["Template"] == "something sour"
    assert Path("outputs").resolve().parent == Path.cwd()
    assert [path.name for path in Path.cwd().iterdir()] == ["outputs"]


@pytest.mark.parametrize(("behave", "said"), [(status(500), "500"), (says("Sorry."), "Sorry"), (drop, "reached")])
def test_no_image_is_lost(generate, monkeypatch, behave, said):
    with ChatServer(behave) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_MODEL", "toy")
        code, out, err = generate("txt2img.py", "a red apple", "--enhance", "--style", "emoji 3d")
    assert code == 0, err
    assert [line for line in out.splitlines() if line.startswith("note: ")] == [out.splitlines()[0]]
    assert said in out.splitlines()[0]
    assert settings("outputs/a-red-apple-00000.png")["Prompt"] == "a red apple, fluent 3d emoji"


def test_without_an_endpoint_a_style_of_the_models_own_is_chosen_by_seed(generate):
    for folder in ("one", "two"):
        code, out, err = generate("txt2img.py", "a cat", "--enhance", "--seed", 1, "--n_samples", 3, "--outdir", folder)
        assert code == 0, err
        assert out.count("note: no chat endpoint is set") == 1
    prompts = [settings(f"one/a-cat-0000{i}.png")["Prompt"] for i in range(3)]
    assert prompts == [settings(f"two/a-cat-0000{i}.png")["Prompt"] for i in range(3)]
    assert all(prompt.startswith("a cat, ") and prompt.endswith("emoji") for prompt in prompts)


def test_a_style_alone_asks_nobody(generate):
    code, out, err = generate("txt2img.py", "a cat", "--style", "emoji flat")
    assert code == 0, err
    assert out.startswith("prompt: a cat, fluent flat emoji\noutputs/00000.png")
    assert settings("outputs/00000.png")["Template"] == "a cat"


def test_wildcards_by_each_images_seed_and_the_same_pixels_again(generate):
    code, _, err = generate("txt2img.py", "a __animal__", "--seed", 5, "--n_samples", 2, "--n_iter", 2)
    assert code == 0, err
    prompts = [settings(f"outputs/0000{i}.png")["Prompt"] for i in range(4)]
    assert prompts == [expand_wildcards("a __animal__", seed) for seed in (5, 6, 7, 8)]
    code, _, err = generate("txt2img.py", "--from-png", "outputs/00002.png", "--outdir", "again")
    assert code == 0, err
    assert settings("again/00000.png")["Prompt"] == prompts[2]
    assert Image.open("again/00000.png").tobytes() == Image.open("outputs/00002.png").tobytes()


def test_from_file_expands_each_line_by_its_seed(generate):
    Path("prompts.txt").write_text("a __animal__\na __color__ car\n", encoding="utf-8")
    code, _, err = generate("txt2img.py", "--from-file", "prompts.txt", "--seed", 5, "--skip-grid")
    assert code == 0, err
    assert settings("outputs/00000.png")["Prompt"] == expand_wildcards("a __animal__", 5)
    assert settings("outputs/00001.png")["Prompt"] == expand_wildcards("a __color__ car", 6)


def test_img2img_and_inpaint_have_them_too(generate, photo):
    photo.save("photo.png")
    Image.new("L", photo.size, 255).save("mask.png")
    flags = ["a __animal__", "--image", "photo.png", "--style", "emoji fx", "--seed", 2]
    for script, more in (("img2img.py", []), ("inpaint.py", ["--mask", "mask.png"])):
        code, _, err = generate(script, *flags, *more, "--outdir", script)
        assert code == 0, err
        assert settings(f"{script}/00000.png")["Prompt"] == expand_wildcards("a __animal__, fxemoji", 2)


@pytest.mark.parametrize(
    ("flags", "said"), [(["a __nobody__"], "animal, "), (["x", "--style", "nothing"], "watercolor, ")]
)
def test_mistakes_are_one_sentence_that_names_what_there_is(generate, flags, said):
    code, out, err = generate("txt2img.py", *flags)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
