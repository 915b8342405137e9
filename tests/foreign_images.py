"""Images with settings as other programs write them."""

import io
import json

from PIL import Image
from PIL.PngImagePlugin import PngInfo

INVOKE = {
    "generation_mode": "txt2img",
    "positive_prompt": "a red apple",
    "negative_prompt": "ugly",
    "width": 128,
    "height": 64,
    "seed": 7,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "steps": 3,
    "scheduler": "dpmpp_2m_k",
    "model": {"model_name": "stable-diffusion-v1-5", "base_model": "sd-1"},
    "loras": [{"lora": {"model_name": "ink", "base_model": "sd-1"}, "weight": 0.75}],
    "clip_skip": 0,
    "app_version": "3.4.0",
}
FOOOCUS = {
    "prompt": "a red apple",
    "negative_prompt": "ugly",
    "seed": "11",
    "steps": 3,
    "guidance_scale": 4.0,
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "resolution": "(128, 64)",
    "base_model": "juggernaut",
    "base_model_hash": "aeb7e9e689",
    "sharpness": 2.0,
    "performance": "Speed",
    "loras": [],
    "version": "Fooocus v2.3.0",
    "metadata_scheme": "fooocus",
}
EASY = {
    "prompt": "a red apple",
    "negative_prompt": "ugly",
    "seed": "5",
    "num_inference_steps": "3",
    "guidance_scale": "7.5",
    "sampler_name": "euler_a",
    "width": "128",
    "height": "64",
    "use_stable_diffusion_model": "C:\\models\\sd-v1-4.ckpt",
    "use_vae_model": "",
    "clip_skip": "True",
    "prompt_strength": "0.8",
}
NOVELAI = {"steps": 3, "sampler": "k_euler_ancestral", "seed": 3, "strength": 0.69, "noise": 0.67, "scale": 11.0}
DRAW_THINGS = {"c": "a red apple", "uc": "ugly", "steps": 3, "seed": 8, "scale": 7.5, "size": "128x64", "strength": 1}
DRAW_THINGS |= {"sampler": "Euler Ancestral", "model": "sd_v1.5_f16.ckpt", "lora": [], "seed_mode": "Scale Alike"}
SWARM = {"prompt": "a red apple", "negativeprompt": "ugly", "seed": 4, "steps": 3, "cfgscale": 7.0, "width": 128}
SWARM |= {"height": 64, "sampler": "euler", "scheduler": "normal", "model": "sd15", "swarm_version": "0.9.1"}
GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": ["10", 0],
            "steps": 3,
            "cfg": 8.0,
            "sampler_name": "euler_ancestral",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["8", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub/v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 64, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red apple", "clip": ["9", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["9", 0]}},
    "8": {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "ink.safetensors", "strength_model": 0.8, "strength_clip": 0.5, "model": ["4", 0]},
    },
    "9": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["8", 1]}},
    "10": {"class_type": "PrimitiveInt", "inputs": {"value": 2**63 + 5}},
    "11": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
}
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    ' xmlns:exif="http://ns.adobe.com/exif/1.0/"><xmp:CreatorTool>Draw Things</xmp:CreatorTool>'
    '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">a red apple&#10;-ugly&#10;Steps: 3, Sampler: Euler a,'
    " Guidance Scale: 7.5, Seed: 8, Size: 128x64</rdf:li></rdf:Alt></dc:description>"
    '<exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></exif:UserComment>'
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def png_with(texts: dict[str, object], size: tuple[int, int] = (128, 64)) -> io.BytesIO:
    """A PNG with these text chunks; what is no text is written as JSON."""
    info = PngInfo()
    for key, value in texts.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (info.add_itxt if key.startswith("XML") else info.add_text)(key, text)
    return saved(Image.new("RGB", size), "PNG", pnginfo=info)


def with_user_comment(comment: bytes, kind: str = "JPEG") -> io.BytesIO:
    """An image with these bytes as its EXIF UserComment."""
    exif = Image.Exif()
    exif[0x0112] = 1  # without one field of its own a PNG's block is not written
    exif.get_ifd(0x8769)[0x9286] = comment
    return saved(Image.new("RGB", (128, 64)), kind, exif=exif)


def saved(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def xmp_packet(settings: dict) -> str:
    return XMP.format(json.dumps(settings).replace("&", "&amp;").replace('"', "&quot;"))
