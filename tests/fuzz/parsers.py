"""What the project parses beside files of weights: texts, metadata of images, configurations and requests.

`PARSERS` holds a function and its seeds for each. A parser may raise UserError and the error that its docstring names.
"""

import base64
import io
import json
import random
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from fuzz.mutation import mutate
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd.adapters.lora_tags import split_tags
from sd.checkpoints.diffusers_format import check_pipeline_config, read_folder_config
from sd.checkpoints.discovery import Models
from sd.checkpoints.foreign_files import convert_errors, parse_json_object
from sd.checkpoints.merging import parse_blocks
from sd.checkpoints.model_files import folder_content
from sd.checkpoints.pickles.opcodes import scan_program
from sd.checkpoints.pickles.unpickler import RestrictedUnpickler
from sd.control.units import format_units, parse_units
from sd.pipeline.infotext import parse_infotext, read_infotext
from sd.pipeline.metadata.comfyui import Unreadable
from sd.pipeline.metadata.embedded_text import decode_comment, xmp_texts
from sd.pipeline.metadata.foreign_metadata import read_foreign
from sd.pipeline.metadata.settings_infotext import form_values, from_infotext
from sd.pipeline.sampler_names import find_sampler
from sd.pipeline.settings import GenerationSettings
from sd.prompts.editing import schedule_prompt, split_prompts
from sd.prompts.enhance import parse_answer
from sd.prompts.llm import LLMError
from sd.prompts.styles import read_styles
from sd.prompts.weighting import parse_prompt
from sd.prompts.wildcards import expand_wildcards
from sd.tokenizer import Tokenizer
from sd.training.finetune.data.caption_files import read_caption_lists, read_sidecar_caption
from sd.utils.files import is_encodable, read_prompts
from sd.utils.images import PNG_SIGNATURE, open_image

PROMPTS = [
    "a red apple, (shiny:1.2) [dull] <lora:my-dog:0.8> BREAK a table AND a chair:0.7",
    "[a:b:0.5] [cat|dog] [[x:y:3]:z:10] ((very)) \\(plain\\) __color__ {red|green|2$$blue}",
    "__animal__ {0.5::a|b} ${x=1}${x} %{a$$b} # comment\nsecond line <hypernet:x:1:lbw=OUTALL>",
    "\U0001f34e \u5f71 e\u0301 \u202e right to left \ud83c",
]
INFOTEXTS = [
    "a dog\nNegative prompt: a cat\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, "
    'Model hash: 0123456789, Lora hashes: "a: 12, b: 34", Hires upscale: 2, Denoising strength: 0.7, Version: v1.10',
    "x\nSteps: 1, Sampler: Euler a, CFG scale: 1e999, Seed: -1, Size: 8x9, Clip skip: 2, RNG: NV, Eta: 0.5, ENSD: 3",
    'ControlNet 0: "Module: canny, Model: x [1], Weight: 1, Resize Mode: Crop and Resize", Steps: 2, Sampler: DDIM',
]
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog", "clip": ["1", 1]}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
    "4": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20, "cfg": 7.0, "sampler_name": "euler",
          "scheduler": "normal", "denoise": 1.0, "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0],
          "latent_image": ["3", 0]}},
}  # fmt: skip
METADATA = [
    json.dumps(GRAPH),
    json.dumps({"model_weights": "x", "image": {"prompt": [{"prompt": "a"}], "steps": 1, "seed": 1, "sampler": "x"}}),
    json.dumps({"positive_prompt": "a", "negative_prompt": "b", "steps": 3, "cfg_scale": 7, "model": {"name": "x"},
                "loras": [{"model": {"name": "y"}, "weight": 0.5}], "width": 64, "height": 64, "seed": 3}),
    json.dumps({"prompt": "a {b}", "uc": "c", "steps": 28, "scale": 5, "sampler": "k_euler", "v4_prompt": {}}),
    json.dumps({"sui_image_params": {"prompt": "a", "seed": 1, "steps": 20, "cfgscale": 7, "loras": ["x"]}}),
    "a dog --W 512 -S 3 -n 2", "prompt: {}", "[]", "{", "NaN", '{"a": NaN}',
]  # fmt: skip
XMP = [
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="r"><rdf:Description rdf:about="" '
    'xmlns:d="d" d:prompt="a"><d:parameters><rdf:Alt><rdf:li>x\nSteps: 1</rdf:li></rdf:Alt></d:parameters>'
    "</rdf:Description></rdf:RDF></x:xmpmeta>",
    '<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>',
]
CONFIGS = [
    {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "_sd_trained_from": "x"},
    {"in_channels": 4, "out_channels": 4, "block_out_channels": [32, 64], "layers_per_block": 2, "sample_size": 64,
     "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
     "attention_head_dim": 8, "cross_attention_dim": 768, "norm_num_groups": 32},
    {"block_out_channels": [32, 64], "latent_channels": 4, "layers_per_block": 2, "scaling_factor": 0.18215},
    {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408,
     "intermediate_size": 8, "hidden_act": "quick_gelu", "max_position_embeddings": 77},
    {"prediction_type": "epsilon", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000},
]  # fmt: skip
CONFIG_FILES = (
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json", "config.json",
)  # fmt: skip
WORDS = (
    *("(", ")", "[", "]", "{", "}", "|", ":", ",", "<", ">", "\\", '"', "'", "__", "$$", "::", "${", "%{", "\n", "\0"),
    *(
        "AND",
        "BREAK",
        "Steps: ",
        "Size: ",
        "<lora:",
        "Seed: ",
        "Negative prompt: ",
        "Template: ",
        "null",
        "true",
        "NaN",
    ),
    *("1e999", "-1", "0.5", "0", "9" * 30, "9" * 5000, "\ud800", "\udfff", "\U0001f34e", "\u202e", "\u0130", "\ufeff"),
    *("../", "inf", "-inf", "1_0", "\u0663", "\u00b2", "0x10", "((((((((", "[[[[[[[[", "{{{{{{{{", '{"a":', "Infinity"),
)


def change_text(text: str, chance: random.Random, others: list[str]) -> str:
    """Returns a text with one to five changes: a word or letter put in, a piece removed, doubled, or another's."""
    for _ in range(chance.randint(1, 5)):
        place, length = chance.randrange(len(text) + 1), chance.choice((1, 2, 5, 20, 80))
        way = chance.randrange(5)
        if way == 0:
            text = text[:place] + chance.choice(WORDS) + text[place:]
        elif way == 1:
            text = text[:place] + chr(chance.choice((chance.randrange(128), chance.randrange(0x11000)))) + text[place:]
        elif way == 2:
            text = text[:place] + text[place + length :]
        elif way == 3:
            text = text[:place] + text[place : place + length] * chance.choice((1, 2, 50)) + text[place:]
        else:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            text = text[:place] + other[start : start + length] + text[place:]
    return text


def change(value: str | bytes, chance: random.Random, others: list) -> str | bytes:
    return mutate(value, chance, others) if isinstance(value, bytes) else change_text(value, chance, others)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_right_sums(png: bytes) -> bytes:
    """Returns a PNG whose checksums fit its changed chunks, so that its reader looks further."""
    if not png.startswith(PNG_SIGNATURE):
        return png
    pieces, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while place + 12 <= len(png):
        length = min(int.from_bytes(png[place : place + 4], "big"), len(png) - place - 12)
        pieces.append(png_chunk(png[place + 4 : place + 8], png[place + 8 : place + 8 + length]))
        place += 12 + length
    return b"".join(pieces)


def images() -> list[bytes]:
    """Small images of every format that is read, with the texts of several programs."""
    made = []
    for number, text in enumerate([*INFOTEXTS, *METADATA[:4]]):
        info = PngInfo()
        [info.add_text, info.add_itxt][number % 2](
            ["parameters", "prompt", "Comment"][number % 3], text, zip=number > 3
        )
        made.append(saved("PNG", pnginfo=info, mode=["RGB", "P", "LA", "I;16"][number % 4]))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x9C9C] = 6, INFOTEXTS[0], INFOTEXTS[0].encode("utf-16-le")
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + INFOTEXTS[0].encode("utf-16-be")
    made += [saved(format, exif=exif.tobytes()) for format in ("JPEG", "WEBP", "TIFF", "PNG")]
    made += [saved("WEBP", xmp=XMP[0].encode()), saved("GIF", comment=INFOTEXTS[0].encode(), mode="P")]
    return made + [saved("BMP"), saved("PPM"), saved("JPEG", comment=INFOTEXTS[0].encode())]


def saved(format: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (5, 4)).save(file, format, **options)
    return file.getvalue()


@dataclass
class Parser:
    """parse: called with one changed seed. also: errors beside UserError that it may raise. most: letters of an input,
    where something before it bounds them. weight: how often its turn comes."""

    parse: Callable[[str], object] | Callable[[bytes], object]
    seeds: list
    also: tuple[type[Exception], ...] = ()
    most: int = 1 << 20
    weight: int = 1
    finish: Callable = field(default=lambda value: value)


def run_program(data: bytes) -> None:
    with convert_errors("fuzz"):
        operations, _ = scan_program(data, 0, len(data))
        RestrictedUnpickler(Path("fuzz"), lambda size: None).run(operations)


def reader_of_text(name: str, read: Callable[[Path], object]) -> Callable[[str], None]:
    """Returns a parser that writes its text into a file first."""
    path = Path(tempfile.gettempdir()) / f"fuzz-{id(read)}" / name

    def parse(text: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        read(path)

    return parse


def read_folder(text: str) -> None:
    """The configurations of a diffusers folder; one of them is the text."""
    folder = Path(tempfile.gettempdir()) / "fuzz-folder"
    for name, config in zip(CONFIG_FILES, [*CONFIGS, {}]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config))
    number = zlib.crc32(text.encode(errors="replace")) % len(CONFIG_FILES)
    (folder / CONFIG_FILES[number]).write_bytes(text.encode("utf-8", errors="surrogatepass"))
    folder_content(folder)
    check_pipeline_config(folder)
    read_folder_config(folder)


def read_units(text: str) -> None:
    parse_units(format_units(parse_units(text)))


TOKENIZER = Tokenizer()


def encode(text: str, tokenizer: Tokenizer = TOKENIZER) -> None:
    """As a prompt reaches the tokenizer: after the gate of texts."""
    if is_encodable(text) and "\0" not in text:
        tokenizer.decode(tokenizer.encode(text))


def metadata_of(text: str) -> None:
    for key in ("prompt", "parameters", "Comment", "invokeai_metadata", "sd-metadata", "UserComment"):
        read_foreign({key: text, "Software": "NovelAI"}, (64, 64))


def parsers() -> dict[str, Parser]:
    models = Models(Path(tempfile.gettempdir()) / "fuzz-no-models")
    from fuzz.programs import call, name, numbers, program, storage, table, tensor

    programs = [
        program(table(state_dict=table(a=tensor(), b=storage()), epoch=b"K\x03"), 4),
        program(call(name("a", "B"), numbers(1, 2)) + b"}b" + b"\x94h\x00"),
        program(b"](" + b"h\x00".join([b"N\x94"] * 9) + b"e", 4),
    ]
    flickr = "image_name| comment_number| comment\n1.jpg| 0| a dog\n"
    lines = '{"file_name": "1.png", "text": ["a", null]}\n{"file_name": "2.png", "caption": "b"}\n'
    read_beside = lambda path: read_sidecar_caption(path.with_suffix(".png"))  # noqa: E731
    read_list = lambda path: read_caption_lists(path.parent, lambda line: None)  # noqa: E731
    return {
        "program": Parser(run_program, programs, weight=6),
        "infotext": Parser(parse_infotext, INFOTEXTS, weight=4),
        "settings": Parser(from_infotext, INFOTEXTS, weight=2),
        "form": Parser(form_values, INFOTEXTS, weight=2),
        "metadata": Parser(metadata_of, METADATA, (Unreadable,), weight=3),
        "comment": Parser(decode_comment, [b"UNICODE\0a\0b\0", b"ASCII\0\0\0abc", b"JIS\0\0\0\0\0\x1b$B"], weight=4),
        "xmp": Parser(xmp_texts, XMP, weight=3),
        "weights": Parser(parse_prompt, PROMPTS, weight=4),
        "edits": Parser(lambda text: schedule_prompt(text, 20), PROMPTS, most=10_000, weight=4),
        "prompts": Parser(split_prompts, PROMPTS, weight=4),
        "tags": Parser(split_tags, PROMPTS, weight=4),
        "wildcards": Parser(lambda text: expand_wildcards(text, 1), PROMPTS, most=10_000, weight=2),
        "tokens": Parser(encode, PROMPTS, most=10_000, weight=2),
        "control": Parser(read_units, ["canny:image:weight=0.5,start=0.1", "a.safetensors;b:x"], weight=3),
        "prompt": Parser(lambda text: GenerationSettings(prompt=text), PROMPTS),
        "sampler": Parser(find_sampler, ["dpm++ 2m karras", "Euler a", "k_lms"], weight=2),
        "blocks": Parser(parse_blocks, ["IN00=0.2,M00=0.5"], weight=2),
        "answer": Parser(parse_answer, ['x {"prompt": "a", "negative_prompt": "", "title": "t"}', "{}"], (LLMError,)),
        "json": Parser(lambda text: parse_json_object(text, Path("x")), METADATA, weight=3),
        "name": Parser(lambda text: models.find("checkpoint", text), ["dreamy.safetensors [0123456789]", "a/b.ckpt"]),
        "image": Parser(lambda data: open_image(io.BytesIO(data)), images(), finish=with_right_sums, weight=2),
        "image infotext": Parser(lambda data: read_infotext(io.BytesIO(data)), images(), finish=with_right_sums),
        "folder": Parser(read_folder, [json.dumps(config) for config in CONFIGS]),
        "jsonl": Parser(reader_of_text("metadata.jsonl", read_list), [lines]),
        "csv": Parser(reader_of_text("results.csv", read_list), [flickr]),
        "caption": Parser(reader_of_text("1.txt", read_beside), PROMPTS),
        "prompt file": Parser(reader_of_text("prompts.txt", read_prompts), PROMPTS),
        "styles": Parser(reader_of_text("styles.csv", lambda path: read_styles(path.parent)),
                         ['name,prompt,negative_prompt\nx,"{prompt}, y",z\n']),
        **request_parsers(),
    }  # fmt: skip


def request_parsers() -> dict[str, Parser]:
    """What the server parses of a request; none without the packages of the extra "web"."""
    try:
        from sd.web.jobs.limits import decode_image
        from sd.web.proxies import is_loopback_address, parse_root_path, read_forwarded_headers
        from sd.web.security import hostname, parse_auth, parse_origins
    except ImportError:
        return {}

    def forwarded(text: str) -> None:
        value = quote(text, safe="/:, []", errors="replace").encode()
        names = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-prefix")
        read_forwarded_headers({"type": "http", "scheme": "http", "headers": [(name, value) for name in names]})

    url = "data:image/png;base64," + base64.b64encode(images()[0]).decode()
    return {
        "base64": Parser(decode_image, [url, url.partition(",")[2]]),
        "host": Parser(hostname, ["localhost:7860", "[::1]:7860", "127.0.0.1"]),
        "address": Parser(is_loopback_address, ["127.0.0.1", "::ffff:127.0.0.1", "::1"]),
        "origins": Parser(lambda text: parse_origins([text]), ["http://localhost:5173, *", "http://[::1]:80"]),
        "auth": Parser(parse_auth, ["user:password"]),
        "root path": Parser(parse_root_path, ["/sd/", "a/b"]),
        "forwarded": Parser(forwarded, ["1.2.3.4, 5.6.7.8", "https", "/sd/x"]),
    }
