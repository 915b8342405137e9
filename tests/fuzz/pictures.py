"""Hostile image files: bombs of every format, lying headers, and settings in odd encodings.

`image_files()` yields (name, content) pairs, the same each time.
"""

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator

from fuzz.parsers import INFOTEXTS, XMP, png_chunk, saved
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd.utils.images import PNG_SIGNATURE

HUGE = (1 << 31) - 1
LINE = b"\nSteps: 1, Sampler: Euler, CFG scale: 1, Seed: 1"


def image_files() -> Iterator[tuple[str, bytes]]:
    for make in (png_files, tiff_files, other_images, texts, embeddings):
        for label, data in make():
            yield f"{make.__name__}/{label}", data


def png(
    width: int = 8, height: int = 8, depth: int = 8, color: int = 2, data: bytes | None = None, *chunks: bytes
) -> bytes:
    """A PNG of these numbers. data: the compressed pixels; chunks: in front of them."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    pixels = zlib.compress(bytes((1 + 3 * 8) * 8)) if data is None else data
    return PNG_SIGNATURE + head + b"".join(chunks) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def png_files() -> Iterator[tuple[str, bytes]]:
    bomb = zlib.compress(bytes(1 << 26), 9)
    for width, height in (
        (0, 0),
        (0, 8),
        (1, HUGE),
        (HUGE, 1),
        (HUGE, HUGE),
        (1 << 16, 1 << 16),
        (8900, 8900),
        (1, 80_000_000),
    ):
        yield f"size-{width}x{height}", png(width, height)
    for depth, color in ((0, 0), (1, 2), (3, 0), (16, 3), (16, 6), (32, 2), (8, 1), (8, 7), (255, 255)):
        yield f"depth-{depth}-{color}", png(depth=depth, color=color)
    chunk = {
        "text-bomb": png_chunk(b"zTXt", b"parameters\0\0" + bomb),
        "international-bomb": png_chunk(b"iTXt", b"parameters\0\1\0\0\0" + bomb),
        "profile-bomb": png_chunk(b"iCCP", b"x\0\0" + bomb),
        "many-bombs": png_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(1 << 19), 9)) * 900,
        "many-texts": png_chunk(b"tEXt", b"parameters\0a") * 50_000,
        "no-keyword": png_chunk(b"tEXt", b"\0" * 100),
        "no-end": png_chunk(b"zTXt", b"parameters"),
        "method": png_chunk(b"zTXt", b"parameters\0\x09" + bomb[:100]),
        "exif": png_chunk(b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff" * 1000),
        "palette": png_chunk(b"PLTE", b"\0" * 5),
        "transparency": png_chunk(b"tRNS", b"\0" * 100_000),
        "frames": png_chunk(b"acTL", struct.pack(">II", HUGE, 0)),
        "negative-length": struct.pack(">I", 0xFFFFFFFF) + b"tEXt",
        "not-letters": png_chunk(b"\0\0\0\0", b"x"),
        "second-head": png_chunk(b"IHDR", struct.pack(">IIBBBBB", HUGE, HUGE, 8, 2, 0, 0, 0)),
    }
    for label, data in chunk.items():
        yield label, png(8, 8, 8, 2, None, data)
    yield "pixels-too-few", png(data=zlib.compress(b""))
    yield "pixels-too-many", png(data=bomb)
    yield "pixels-not-packed", png(data=b"\xff" * 100)
    yield "interlaced", png(4000, 4000).replace(b"\x08\x02\0\0\0", b"\x08\x02\0\0\1")
    yield "signature", PNG_SIGNATURE
    yield "no-pixels", png()[:33]


def tiff(
    entries: list[tuple[int, int, int, int]], more: bytes = b"", following: int = 0, mark: bytes = b"II*\0"
) -> bytes:
    """A little-endian TIFF. entries: (tag, type, count, value or offset)."""
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return mark + struct.pack("<L", 8) + table + struct.pack("<L", following) + more


def tiff_files() -> Iterator[tuple[str, bytes]]:
    usual = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: 8, 279: 64}
    changes = {
        "width": {256: HUGE}, "both": {256: 60_000, 257: 60_000}, "samples": {277: 65_535}, "depth": {258: 65_535},
        "rows": {278: 0}, "strip-far": {273: HUGE}, "strip-long": {279: HUGE}, "compression": {259: 65_000},
        "deflate": {259: 8}, "lzw": {259: 5}, "jpeg": {259: 7}, "packbits": {259: 32773}, "ccitt": {259: 4},
        "lzma": {259: 34925},
        "zstd": {259: 50000}, "webp": {259: 50001}, "palette": {262: 3}, "ycbcr": {262: 6}, "lab": {262: 8},
        "tiles": {322: 1 << 20, 323: 1 << 20, 324: 8, 325: 64}, "tiny-tiles": {322: 1, 323: 1, 324: 8, 325: 1},
        "planar": {284: 2, 277: 3}, "float": {339: 3, 258: 16}, "orientation": {274: 99}, "resolution": {282: 0,
        296: 9},
    }  # fmt: skip
    for label, change in changes.items():
        entries = [(tag, 4, 1, value) for tag, value in sorted((usual | change).items())]
        yield label, tiff(entries, bytes(300))
    for type_ in (0, 2, 5, 7, 12, 13, 16, 255):
        yield f"type-{type_}", tiff([(tag, type_, 1, value) for tag, value in sorted(usual.items())], bytes(300))
    yield "count", tiff([(270, 2, 0xFFFFFFFF, 8)] + [(tag, 4, 1, value) for tag, value in usual.items()], bytes(300))
    yield "many-entries", tiff([(270, 2, 1 << 20, 0)] * 60_000, bytes(1 << 20))
    yield "itself", tiff([(tag, 4, 1, value) for tag, value in sorted(usual.items())], bytes(300), following=8)
    yield (
        "exif-itself",
        tiff([(34665, 4, 1, 8), *((tag, 4, 1, value) for tag, value in sorted(usual.items()))], bytes(300)),
    )
    yield "big", b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 60) + bytes(64)


def other_images() -> Iterator[tuple[str, bytes]]:
    """JPEG, WebP, GIF, BMP, PPM, and formats that are not read."""
    jpeg, webp, gif, bmp = (saved(kind) for kind in ("JPEG", "WEBP", "GIF", "BMP"))
    frame = jpeg.index(b"\xff\xc0") + 5
    yield "jpeg-size", jpeg[:frame] + b"\xff\xff\xff\xff" + jpeg[frame + 4 :]
    yield "jpeg-comments", jpeg[:2] + (b"\xff\xfe\xff\xff" + b"a" * 65_533) * 300 + jpeg[2:]
    yield "jpeg-segments", jpeg[:2] + b"\xff\xe1\x00\x02" * 200_000 + jpeg[2:]
    yield "jpeg-exif", jpeg[:2] + b"\xff\xe1\x00\x20Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 14 + jpeg[2:]
    yield "jpeg-scans", jpeg[:-2] + jpeg[jpeg.index(b"\xff\xda") : -2] * 2000 + b"\xff\xd9"
    yield "jpeg-icc", jpeg[:2] + b"\xff\xe2\x00\x20ICC_PROFILE\0\x01\xff" + b"\xff" * 16 + jpeg[2:]
    yield "jpeg-mpo", jpeg[:2] + b"\xff\xe2\x00\x20MPF\0II*\0\x08\0\0\0" + b"\xff" * 18 + jpeg[2:] + jpeg
    for label, size in (("webp-length", 0xFFFFFFFF), ("webp-short", 4)):
        yield label, webp[:4] + struct.pack("<L", size) + webp[8:]
    canvas = b"\x02\0\0\0" + b"\xff\xff\xff\xff\xff\xff"
    yield "webp-canvas", b"RIFF" + struct.pack("<L", 30) + b"WEBPVP8X" + struct.pack("<L", 10) + canvas + bytes(8)
    yield "webp-lossless", b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0/\xff\xff\xff\xff" + bytes(9)
    yield "gif-size", gif[:6] + b"\xff\xff\xff\xff" + gif[10:]
    yield "gif-frames", gif[:-1] + gif[gif.index(b",") : -1] * 20_000 + b";"
    yield "gif-comment", gif[:-1] + b"!\xfe" + (b"\xff" + b"a" * 255) * 40_000 + b"\0;"
    for label, numbers in {"size": (HUGE, HUGE), "negative": (-8, -8), "lowest": (8, -HUGE - 1)}.items():
        yield f"bmp-{label}", bmp[:18] + struct.pack("<ii", *numbers) + bmp[26:]
    yield "bmp-runs", bmp[:30] + struct.pack("<L", 1) + bmp[34:]
    yield "bmp-colors", bmp[:46] + b"\xff\xff\xff\xff" + bmp[50:]
    for label, head in {"size": b"P6 99999 99999 255\n", "deep": b"P6 8 8 65536\n",
    "text": b"P3 " + b"9" * 5000 + b" 1 1\n",
                        "comment": b"P6 #" + b"a" * 1_000_000,
                        "float": b"Pf 60000 60000 -1e999\n"}.items():  # fmt: skip
        yield f"ppm-{label}", head
    yield "eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file\n"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
    yield "icon", b"\0\0\1\0\1\0" + b"\xff" * 100
    yield "psd", b"8BPS\0\1" + b"\xff" * 100
    yield "fits", b"SIMPLE  = T" + b" " * 2869
    yield "heic", b"\0\0\0\x18ftypheic" + b"\xff" * 100


def texts() -> Iterator[tuple[str, bytes]]:
    """Settings in every place of an image, in encodings that their places do not allow."""
    text = INFOTEXTS[0] + " \u5f71\U0001f34e"
    encoded = {
        "utf-8": text.encode(), "utf-8-mark": text.encode("utf-8-sig"), "utf-16": text.encode("utf-16"),
        "utf-16-be": text.encode("utf-16-be"), "utf-16-odd": text.encode("utf-16-le") + b"x",
        "utf-32": text.encode("utf-32"), "shift-jis": INFOTEXTS[0].encode("shift_jis") + b"\x81",
        "latin-1": INFOTEXTS[0].encode("latin-1") + b"\xff\xe9", "nul": INFOTEXTS[0].encode() + b"\0\0x",
        "surrogates": (text + "\ud800").encode("utf-16-le", "surrogatepass"), "wtf-8": b"\xed\xa0\x80" + LINE,
        "utf-7": b"+2AA-" + LINE, "escape": INFOTEXTS[0].encode() + b"\x1b]0;x\x07\x1b[2J",
        "overlong": b"\xc0\x80\xe0\x80\x80" + INFOTEXTS[0].encode(), "brackets": b"(" * 60_000 + LINE,
        "commas": LINE + b", a: " * 90_000, "quotes": LINE + b', a: "' + b'\\"' * 90_000,
        "lines": b"a\n" * 200_000 + LINE, "json-deep": b'{"prompt": ' * 50_000,
        "json-numbers": json.dumps({"1": {"class_type": "KSampler", "inputs": {"seed": 10**400}}}).encode(),
    }  # fmt: skip
    for label, data in encoded.items():
        yield f"png-{label}", png(8, 8, 8, 2, None, png_chunk(b"tEXt", b"parameters\0" + data))
        yield f"png-international-{label}", png(8, 8, 8, 2, None, png_chunk(b"iTXt", b"prompt\0\0\0\0\0" + data))
        for mark in (b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b""):
            exif = Image.Exif()
            exif.get_ifd(0x8769)[0x9286] = mark + data[:60_000]
            yield f"exif-{label}-{mark[:3].decode()}", saved("JPEG", exif=exif.tobytes())
        exif = Image.Exif()
        exif[0x9C9C] = data[:60_000]
        yield f"windows-{label}", saved("WEBP", exif=exif.tobytes())
    xmp = {
        "entities": XMP[1], "deep": "<a>" * 100_000, "wide": "<a>" + "<b/>" * 300_000 + "</a>",
        "attributes": "<a " + "b='c' " * 100_000,
        "nested": "<a>" * 20_000 + "x" + "</a>" * 20_000, "names": f"<{'a' * 1_000_000}/>",
        "encoding": '<?xml version="1.0" encoding="utf-32"?><a/>',
        "external": '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a>&x;</a>', "nul": "<a>\0</a>",
        "surrogate": "<a>&#xD800;</a>",
    }  # fmt: skip
    for label, packet in xmp.items():
        yield f"xmp-{label}", saved("WEBP", xmp=packet.encode())


def embeddings() -> Iterator[tuple[str, bytes]]:
    """Images that claim to hold an embedding."""
    values = ("{}", "[]", "null", '{"TORCHTENSOR": null}', '{"a": {"TORCHTENSOR": [[1e999]]}}',
    '{"a": {"TORCHTENSOR": ' + "[" * 5000,
              '{"string_to_param": {"*": {"TORCHTENSOR": ' + "[[" * 60 + "1" + "]]" * 60 + "}}}", '{"name": "\\ud800"}',
              '{"string_to_param": {"*": {"TORCHTENSOR": [["a"]]}}}',
              '{"string_to_param": {"*": {"TORCHTENSOR": [[1],[1,2]]}}}',
              '{"string_to_param": {"*": {"TORCHTENSOR": [' + "[]," * 100_000 + "[]]}}}")  # fmt: skip
    for i, value in enumerate(values):
        info = PngInfo()
        info.add_text("sd-ti-embedding", base64.b64encode(value.encode()).decode())
        yield f"text-{i}", saved("PNG", pnginfo=info)
    for width in (2, 3, 50, 1000):
        image = Image.effect_noise((width, 20), 50).convert("RGB")
        image.paste(0, (width // 2, 0, width // 2 + 1, 20))
        file = io.BytesIO()
        image.save(file, "PNG")
        yield f"margins-{width}", file.getvalue()
