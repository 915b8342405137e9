"""The commands of the README and then of the guides, in their order, and a copy of the project to run them in.

A command runs as it stands, but for `CHANGES`: what would take hours, or ask another machine, has a substitute there.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = (
    "checkpoints lora-and-embeddings fine-tuning prompts img2img-and-inpainting regions grids controlnet same-image "
    "low-memory many-gpus web-ui troubleshooting reverse-proxy"
).split()  # in this order: some use what those before them leave
PAGES = [README, *((ROOT / f"docs/guides/{name}.md").read_text(encoding="utf-8") for name in GUIDES)]
COMMAND_BLOCKS = ("", "python")  # languages of fenced blocks that are run; others, such as "text", are not commands
SUBJECTS = ROOT / ".." / "shared" / "data" / "subjects"  # photographs, where there are any
V1_5 = "weights/v1-5-pruned-emaonly.safetensors"

NEW_CONTROLNET = """
from pathlib import Path
from sd import StableDiffusion
from sd.control.controlnet import controlnet_from_unet
from sd.control.controlnet_files import save_controlnet
pipe = StableDiffusion.from_pretrained()
Path("weights/controlnet").mkdir()
network = controlnet_from_unet(pipe.unet, pipe.sizes["unet"])
save_controlnet("weights/controlnet/control_v11p_sd15_canny.safetensors", network, {})
"""
# For the bundled model, with a small image encoder.
NEW_IP_ADAPTER = """
import json
from pathlib import Path
from safetensors.torch import save_file
from sd import StableDiffusion
from sd.control.ip_adapter.network import ImageProjection, IPAdapterModel, cross_attentions
from sd.vision.clip_vision import CLIPVisionModel
from sd.vision.image_encoder import ImageEncoder
pipe = StableDiffusion.from_pretrained()
text, dims = pipe.sizes["unet"]["context_dim"], [layer.to_q.in_features for layer in cross_attentions(pipe.unet)]
adapter = IPAdapterModel(ImageProjection(32, text), text, dims)
save_file(adapter.state_dict(), "weights/controlnet/ip-adapter_sd15.safetensors")
encoder = Path("weights/controlnet/image_encoder")
encoder.mkdir()
tower = CLIPVisionModel(image_size=28, patch_size=14, width=64, layers=2, heads=4)
save_file(ImageEncoder(tower, 32).state_dict(), encoder / "model.safetensors")
config = {"model_type": "clip_vision_model", "num_attention_heads": 4, "hidden_act": "gelu"}
(encoder / "config.json").write_text(json.dumps(config))
"""
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python3? scripts/|torchrun [^`]*scripts/|make |pip install )[^`]+)`")

SKIPPED = {  # a pattern of commands, and why they are not run
    r"requirements-train\.txt": "asks the package index for what the tests do without",
    r"evaluate_finetuning": "needs the whole dataset, and an hour",
    r"prepare_scenes|train_scenes|--scenes|evaluate_(scenes|controlnet)": "needs the cut-outs of all emoji, and hours",
}
CHANGES = [  # a pattern, what takes its place, and why
    (r"^make test$", r"PYTEST_ADDOPTS=--collect-only make test", "these tests are inside it: it only lists them"),
    (r"^make app$", r'make app ARGS="--port {port}"', "a port that is free"),
    (r'^make app ARGS="(?!--port)', r'make app ARGS="--port {port} ', "a port that is free"),
    (
        r"^pip install .*",
        r"\g<0> --dry-run --no-build-isolation",
        "changes nothing in the environment that the tests run in",
    ),
    (r"^python scripts/download\.py", rf"cp weights/emoji.safetensors {V1_5}", "the bundled model stands for 4 GB"),
    (r"^.*--ckpt v1-5-pruned-emaonly .*", rf"\g<0> --steps 2 && rm {V1_5}", "and goes, as if nothing was fetched"),
    (
        r"^python scripts/prepare_emoji\.py",
        r"mkdir -p data && cp -r a-few-emoji data/emoji",
        "the dataset is fetched from npm",
    ),
    (r"^python scripts/train_scratch\.py.*", r"\g<0> --steps 2 --batch 4", "hours otherwise"),
    (r"^python scripts/train_(ti|lora|dreambooth)\.py.*", r"\g<0> --steps 2 --saves 1 --batch 1", "minutes otherwise"),
    (r"^python scripts/train_dreambooth\.py.*", r"\g<0> --class-images 2", "likewise"),
    (r"^python scripts/train_controlnet\.py.*", r"\g<0> --steps 2 --batch 1 --previews 1", "hours otherwise"),
    (r"^.*--from-file .*", r"\g<0> --steps 2", "dozens of images"),
    (r"^python scripts/compare\.py.*", r"\g<0> --steps 2", "three models"),
    (r"http://localhost:8080/v1", r"{chat}", "a chat model of our own that answers always the same"),
]


def blocks() -> list[tuple[str, str]]:
    """(language, text) of each fenced block of commands, or ("inline", command in a sentence), in the pages' order."""
    return [block for page in PAGES for block in blocks_of(page)]


def blocks_of(page: str) -> list[tuple[str, str]]:
    fenced = [(match.start(), match[1], match[2]) for match in FENCED.finditer(page) if match[1] in COMMAND_BLOCKS]
    prose = FENCED.sub(lambda match: " " * len(match[0]), page)
    inline = [(match.start(), "inline", " ".join(match[1].split())) for match in INLINE.finditer(prose)]
    return [(language, text) for _, language, text in sorted(fenced + inline)]


def commands() -> list[str]:
    """A line of shell each; a block of Python is one command."""
    found = []
    for language, text in blocks():
        if language == "python":
            found.append("python -c '" + text.replace("'", "'\\''") + "'")
        else:
            found += [re.sub(r"\s+# .*", "", line) for line in text.strip().splitlines()]
    return found


def changed(command: str, **places: object) -> str:
    for pattern, substitute, _ in CHANGES:
        command = re.sub(pattern, substitute, command)
    for name, value in places.items():
        command = command.replace(f"{{{name}}}", str(value))
    return command


def copy_files(folder: Path) -> None:
    """Copies all files that git knows of, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def copy_project(folder: Path) -> None:
    """Copies the project, with a `.venv` in which make finds everything installed already."""
    copy_files(folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (packages,) = (folder / ".venv").glob("lib/python*/site-packages")
    (packages / "those-of-the-tests.pth").write_text(sysconfig.get_path("purelib"))
    for made in ("made", "core", "web", "dev"):
        (folder / ".venv" / made).touch()


def add_what_a_user_has(folder: Path) -> None:
    """The files that the README's commands name and that are the user's own."""
    write_photos(folder / "photos")
    shapes = np.zeros((128, 128, 3), np.uint8)
    shapes[32:96, 32:96] = [200, 30, 40]
    Image.fromarray(shapes).save(folder / "sketch.png")
    Image.fromarray(shapes[..., 0] // 200 * 255).save(folder / "scribble.png")
    Image.fromarray(255 - shapes).save(folder / "room.png")
    Image.fromarray(255 - shapes[..., 0] // 200 * 255).save(folder / "pencil.png")
    Image.fromarray(shapes).save(folder / "house.jpg")
    Image.fromarray(shapes[..., 0] // 200 * 255).save(folder / "mask.png")
    (folder / "prompts.txt").write_text("a red apple\na cat\na dog\n")
    write_photos(folder / "captioned")
    for path in list((folder / "captioned").iterdir()):
        path.with_suffix(".txt").write_text("a dog")
    convert = ["scripts/convert.py", "weights/emoji.safetensors", "model.ckpt"]
    subprocess.run([sys.executable, *convert], cwd=folder, check=True, capture_output=True)
    for program in (NEW_CONTROLNET, NEW_IP_ADAPTER):
        subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, capture_output=True)
    few_emoji(folder / "a-few-emoji")


def write_photos(folder: Path) -> None:
    """Five photographs of a dog, or, where there are none, soft noise."""
    folder.mkdir()
    for path in sorted((SUBJECTS / "dog").glob("*.jpg"))[:5]:
        shutil.copy(path, folder)
    for k in range(5 - len(list(folder.iterdir()))):
        noise = np.random.default_rng(k).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{k}.jpg")


def few_emoji(folder: Path) -> None:
    """A dataset as `prepare_emoji.py` lays it out, of eight plain squares."""
    folder.mkdir()
    lines = []
    for k in range(8):
        Image.new("RGB", (128, 128), (30 * k, 255 - 30 * k, 128)).save(folder / f"{k}.png")
        lines.append({"file": f"{k}.png", "name": f"square {k}", "style": "flat", "words": [], "split": "train"})
    (folder / "index.jsonl").write_text("\n".join(map(json.dumps, lines)))


def environment() -> dict[str, str]:
    """The environment of one's own that the README speaks of is that of the tests."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return ours | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def run(command: str, folder: Path) -> None:
    """Raises AssertionError where it fails."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True, timeout=900
    )
    said = textwrap.indent(done.stdout[-3000:] + done.stderr[-3000:], "    ")
    assert done.returncode == 0, f"{command}\nended with {done.returncode}:\n{said}"


def serve(command: str, folder: Path, port: int) -> None:
    """Until it answers; then Ctrl-C, for all processes of the command as a terminal sends it."""
    with open(folder / "server.log", "w+") as log:
        server = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(server, f"http://127.0.0.1:{port}/")
        finally:
            os.killpg(server.pid, signal.SIGINT)
            server.wait(60)
        log.seek(0)
        assert "Traceback" not in log.read()


def wait_for(server: subprocess.Popen, address: str) -> None:
    for _ in range(600):
        assert server.poll() is None, f"the server ended with {server.poll()}"
        if answers(address):
            return
        time.sleep(0.5)
    raise AssertionError("the server never answered")


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=30).close()
    except urllib.error.HTTPError as error:
        return error.code == 401  # it asks for the password
    except OSError:
        return False
    return True
