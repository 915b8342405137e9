import io
import re
import time
from random import Random

import pytest
from PIL import Image

from sd.pipeline.infotext import parse_infotext, read_infotext, write_infotext
from sd.utils.errors import UserError
from sd.utils.files import save_png

SETTINGS = {
    "Steps": 20,
    "Sampler": "DPM++ 2M",
    "Schedule type": "Karras",
    "CFG scale": 7.0,
    "Seed": 965400086,
    "Size": "512x768",
    "Model hash": "cc6cb27103",
    "Model": "v1-5-pruned-emaonly",
}


def test_the_form():
    assert write_infotext("a cat", "blurry, ugly", SETTINGS) == (
        "a cat\n"
        "Negative prompt: blurry, ugly\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, "
        "Model hash: cc6cb27103, Model: v1-5-pruned-emaonly"
    )
    assert write_infotext("a cat", "", {"Steps": 1}) == "a cat\nSteps: 1"
    assert write_infotext("", "", {"Steps": 1}) == "Steps: 1"


def test_the_webuis_order_whatever_order_is_given():
    labels = (
        "Steps, Sampler, Schedule type, CFG scale, Image CFG scale, Seed, Face restoration, Size, Model hash, Model, "
        "VAE hash, VAE, Variation seed, Variation seed strength, Seed resize from, Denoising strength, "
        "Conditional mask weight, Clip skip, ENSD, Token merging ratio, Token merging ratio hr, Init image hash, RNG, "
        "NGMS, Tiling, Lora hashes, Hires upscale, Hires steps, Hires upscaler, Version, User"
    ).split(", ")
    extra = ["Lora hashes", "Hires upscale", "Hires steps", "Hires upscaler"]  # in the order given
    settings = dict.fromkeys([*extra, *sorted(set(labels) - set(extra))], 5)
    assert write_infotext("", "", settings) == ", ".join(f"{label}: 5" for label in labels)


def test_what_is_left_out_and_what_is_not():
    def line(**settings):
        return write_infotext("", "", {label.replace("_", " "): value for label, value in settings.items()})

    assert line(Steps=20, VAE=None) == "Steps: 20"
    assert line(Steps=20, Clip_skip=1, RNG="GPU") == "Steps: 20"
    assert line(Steps=20, Clip_skip=2, RNG="CPU", Tiling=True) == "Steps: 20, Clip skip: 2, RNG: CPU, Tiling: True"
    assert line(Steps=0, CFG_scale=0.0, Seed=0) == "Steps: 0, CFG scale: 0, Seed: 0"
    assert line(CFG_scale=7.25, Denoising_strength=1e-05) == "CFG scale: 7.25, Denoising strength: 1e-05"
    assert line(Flag="Flag") == "Flag"


def test_quotes_where_a_value_would_break_the_line():
    text = write_infotext("", "", SETTINGS | {"Model": 'a, "b": c\nd', "Hires prompt": "日本: x", "VAE": 'say "x"'})
    assert r'Model: "a, \"b\": c\nd", VAE: say "x", Hires prompt: "日本: x"' in text
    read = parse_infotext(text)
    assert read["Model"] == 'a, "b": c\nd'
    assert read["VAE"] == 'say "x"'
    assert read["Hires prompt"] == "日本: x"


def test_read_a_text_of_the_webui():
    read = parse_infotext(
        "a castle on a hill, (sunset:1.2), [fog], <lora:ink:0.8>\n"
        "Negative prompt: lowres, ((blurry)), text: any\n"
        "Steps: 28, Sampler: DPM++ 2M SDE Karras, CFG scale: 6.5, Seed: 1234567890, Size: 640x448, "
        "Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Variation seed: 77, Variation seed strength: 0.25, "
        'Denoising strength: 0.55, Clip skip: 2, RNG: CPU, Lora hashes: "ink: 0123456789ab, two: ba9876543210", '
        "Hires resize: 1280x896, Hires steps: 12, Hires upscaler: Latent (nearest-exact), Version: v1.8.0"
    )
    assert read == {
        "Prompt": "a castle on a hill, (sunset:1.2), [fog], <lora:ink:0.8>",
        "Negative prompt": "lowres, ((blurry)), text: any",
        "Steps": "28",
        "Sampler": "DPM++ 2M SDE Karras",
        "CFG scale": "6.5",
        "Seed": "1234567890",
        "Size-1": "640",
        "Size-2": "448",
        "Model hash": "6ce0161689",
        "Model": "v1-5-pruned-emaonly",
        "Variation seed": "77",
        "Variation seed strength": "0.25",
        "Denoising strength": "0.55",
        "Clip skip": "2",
        "RNG": "CPU",
        "Lora hashes": "ink: 0123456789ab, two: ba9876543210",
        "Hires resize-1": "1280",
        "Hires resize-2": "896",
        "Hires steps": "12",
        "Hires upscaler": "Latent (nearest-exact)",
        "Version": "v1.8.0",
    }


def test_what_is_missing_is_the_webuis_default():
    read = parse_infotext("Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512")
    assert (read["Prompt"], read["Negative prompt"], read["Clip skip"], read["RNG"]) == ("", "", "1", "GPU")


def test_a_text_without_settings_is_all_prompt():
    for text in ("a cat, a dog", "Steps: 20, Sampler: Euler", "style: oil, time: noon", "", "\n\n", "\0:,\"'"):
        read = parse_infotext(text)
        assert read["Prompt"] == text.strip()
        assert "Steps" not in read
    read = parse_infotext("a cat\nNegative prompt: a dog")
    assert (read["Prompt"], read["Negative prompt"]) == ("a cat", "a dog")


PROMPTS = [
    "",
    "a cat",
    "a cat,\n\n  a dog: three, \"four\", 'five'\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1",
    "Steps: 9",
    "a \\(b\\), [c], (d:1.3), <lora:x:0.5>, C:\\dir, 512x512",
    "猫と犬, пёс, é, 🍎, ‮x, line and paragraph",
    'ends in a quote"',
    "a Negative prompt: not at the start of its line",
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("negative", PROMPTS)
def test_round_trip(tmp_path, prompt, negative):
    text = write_infotext(prompt, negative, SETTINGS)
    assert read_infotext(save_png(Image.new("RGB", (8, 8)), tmp_path, text)) == text
    read = parse_infotext(text)
    expected = {label: str(value) for label, value in SETTINGS.items() if label not in ("Size", "CFG scale")}
    expected |= {"Prompt": prompt, "Negative prompt": negative, "CFG scale": "7", "Size-1": "512", "Size-2": "768"}
    assert read == expected | {"Clip skip": "1", "RNG": "GPU"}


def test_png_chunk_by_its_name(tmp_path):
    """The bytes of the file themselves: Latin text in tEXt, other text in iTXt, where every other program looks."""
    plain = save_png(Image.new("RGB", (8, 8)), tmp_path, "an é\nSteps: 1").read_bytes()
    assert b"tEXtparameters\0" + "an é\nSteps: 1".encode("latin-1") in plain
    other = save_png(Image.new("RGB", (8, 8)), tmp_path, "猫\nSteps: 1").read_bytes()
    assert b"iTXtparameters\0\0\0\0\0" + "猫\nSteps: 1".encode() in other


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(b"UNICODE\0", "utf-16-be"), (b"UNICODE\0", "utf-16-le"), (b"ASCII\0\0\0", "utf-8"), (b"\0" * 8, "utf-8")],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_user_comment(kind, mark, encoding, orientation):
    text = write_infotext("猫, a cat", "é", SETTINGS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0x9286] = mark + text.encode(encoding)
    file = io.BytesIO()
    Image.new("RGB", (16, 8)).save(file, kind, exif=exif)
    assert read_infotext(file) == text


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_bytes_give_a_text_or_one_sentence(kind):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat".encode("utf-16-be")
    file, random = io.BytesIO(), Random(0)
    Image.new("RGB", (8, 8)).save(file, kind, exif=exif)
    outcomes = set()
    for changes in list(range(1, 7)) * 25:
        broken = bytearray(file.getvalue())
        for _ in range(changes):
            broken[random.randrange(len(broken))] = random.randrange(256)
        try:
            outcomes.add(type(read_infotext(io.BytesIO(bytes(broken)))))
        except UserError:
            outcomes.add(UserError)
    assert outcomes == {str, UserError}


def test_images_without_settings(tmp_path):
    for name in ("plain.png", "plain.jpg", "plain.webp", "plain.gif"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        with pytest.raises(UserError, match="holds no settings"):
            read_infotext(tmp_path / name)
    with pytest.raises(UserError, match="file not found"):
        read_infotext(tmp_path / "none.png")


@pytest.mark.parametrize("part", ["a", " ", "a ", 'k: "', "k:", '"\\', "a, ", "ab: c, "])
def test_a_hostile_text_takes_linear_time(part):
    text = part * (200_000 // len(part))
    start = time.perf_counter()
    parse_infotext("x" + text + "x")
    # A quadratic search over 200,000 characters takes minutes; the linear one well under a second.
    assert time.perf_counter() - start < 10


def test_the_documented_expression_finds_the_same_fields():
    """An independent reading of our line with the field pattern that the webui documents."""
    line = write_infotext("", "", SETTINGS | {"Lora hashes": "a: 1, b: 2", "Version": "v1"})
    documented = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    fields = dict(documented.findall(line))
    assert list(fields) == [*SETTINGS, "Lora hashes", "Version"]
    assert fields["Lora hashes"] == '"a: 1, b: 2"'
