"""The README and the guides as a test: their commands work, in their order, in a fresh clone of the project."""

import importlib.util
import itertools
import os
import re
import shutil
import socket
import subprocess

import pytest
import readme_commands as readme
from chat_server import GOOD, ChatServer, says

from sd.pipeline.infotext import parse_infotext, read_infotext
from sd.tokenizer import contains_placeholder

COMMANDS = readme.commands()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    if not shutil.which("git") or not shutil.which("make"):
        pytest.skip("git or make is not installed")
    folder = tmp_path_factory.mktemp("clone")
    readme.copy_project(folder)
    readme.add_what_a_user_has(folder)
    return folder


@pytest.fixture(scope="module")
def chat():
    with ChatServer(says(GOOD)) as server:
        yield server.url


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=[f"{i:02}" for i in range(len(COMMANDS))])
def test_each_command_works_after_those_before_it(project, chat, command):
    for pattern, why in readme.SKIPPED.items():
        if re.search(pattern, command):
            pytest.skip(f"README: {why}")
    port = free_port()
    command = readme.changed(command, port=port, chat=chat)
    print(command)
    if command.startswith("make app"):
        readme.serve(command, project, port)
    else:
        readme.run(command, project)


@pytest.mark.slow
def test_what_was_trained_on_the_way_is_not_what_later_commands_generate_with(project):
    """The bundled model generates, but where a page names another, also after `train_dreambooth.py`."""
    generated = [read_infotext(path) for path in sorted((project / "outputs").glob("[0-9]*.png"))]
    if not generated:
        pytest.skip("the commands were not run")
    models = [parse_infotext(text)["Model"] for text in generated]
    assert set(models) <= {"emoji", "v1-5-pruned-emaonly", "my-model"}
    assert (models.count("v1-5-pruned-emaonly"), models.count("my-model")) == (1, 1)


def test_a_command_that_fails_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match="ended with 2"):
        readme.run(f"python {readme.ROOT}/scripts/txt2img.py", tmp_path)
    server = subprocess.Popen(["bash", "-c", "exit 3"])
    server.wait()
    with pytest.raises(AssertionError, match="ended with 3"):
        readme.wait_for(server, "http://127.0.0.1:9/")


def test_all_commands_are_found():
    fenced = readme.blocks()[0][1].splitlines()
    assert fenced == ['make txt2img PROMPT="a red apple"', "make test"]
    assert {language for language, _ in readme.blocks()} == {"", "python", "inline"}
    for script in (
        "txt2img",
        "img2img",
        "inpaint",
        "download",
        "convert",
        "train_ti",
        "train_lora",
        "train_dreambooth",
    ):
        assert any(f"scripts/{script}.py" in command for command in COMMANDS), script
    assert not any("#" in command for command in COMMANDS if not command.startswith("python -c"))


def test_each_training_has_a_name_of_its_own():
    """Prompts find an embedding, a LoRA and a checkpoint by their names; a later one would be used with the earlier."""
    trained = [command for command in COMMANDS if re.search(r"scripts/train_(ti|lora|dreambooth)\.py", command)]
    names = [re.search(r"--name (\S+)|--word (\S+)", command)[0].split()[1] for command in trained]
    assert len(names) >= 3
    for one, other in itertools.permutations(names, 2):
        assert not contains_placeholder(one, other), f"a prompt with {one} uses {other} too"
    used = re.findall(r"(?:loras|embeddings)/([\w-]+)\.|<lora:([\w-]+):", "\n".join(COMMANDS))
    assert {name for pair in used for name in pair if "dog" in name} <= set(names)


def test_no_substitute_is_left_over():
    for pattern in [*readme.SKIPPED, *(pattern for pattern, _, _ in readme.CHANGES)]:
        assert any(re.search(pattern, command) for command in COMMANDS), pattern


PAGES = [readme.ROOT / "README.md", readme.ROOT / "CONTRIBUTING.md", *sorted((readme.ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(readme.ROOT).as_posix())
def test_every_file_that_a_page_links_to_is_there(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link


def test_every_guide_is_tested_and_linked():
    assert {path.stem for path in (readme.ROOT / "docs" / "guides").glob("*.md")} == set(readme.GUIDES)
    everything = "".join(readme.PAGES)
    for guide in readme.GUIDES:
        assert f"{guide}.md" in everything, guide


def test_the_generated_pages_are_fresh():
    """`python docs/write_reference.py` writes them."""
    pytest.importorskip("fastapi", reason="the web server's flags need its packages: make test installs them")
    spec = importlib.util.spec_from_file_location("write_reference", readme.ROOT / "docs" / "write_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, text in module.pages().items():
        assert (module.FOLDER / name).read_text(encoding="utf-8") == text, f"run python docs/write_reference.py: {name}"


def test_the_oldest_python_is_the_same_everywhere():
    makefile, project = ((readme.ROOT / name).read_text() for name in ("Makefile", "pyproject.toml"))
    (oldest,) = re.findall(r"^OLDEST := (.+)$", makefile, re.MULTILINE)
    assert f"Python {oldest} or later" in readme.README
    assert f'requires-python = ">={oldest}"' in project
    assert f'target-version = "py{oldest.replace(".", "")}"' in project


def test_lint_sees_what_the_oldest_python_has_not(tmp_path):
    vermin = pytest.importorskip("vermin", reason="vermin is not installed: make test installs it")
    path = tmp_path / "new.py"
    path.write_text("from typing import Self\n")
    assert vermin.detect(path.read_text())[1] == (3, 11)


def test_a_python_that_is_too_old_is_named(tmp_path):
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(readme.ROOT / name, tmp_path)
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    environ = {name: value for name, value in os.environ.items() if name not in ("VENV", "MAKEFLAGS", "PYTHON")}
    for python in (old, "no-such-python"):
        command = ["make", "txt2img", f"PYTHON={python}"]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 2
        assert f"Python 3.10 or later is needed, and {python} is older or missing" in done.stderr
        assert not (tmp_path / ".venv").exists()
