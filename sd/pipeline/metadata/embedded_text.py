"""Reads the texts inside image files: PNG chunks, EXIF fields, XMP packets and comments."""

import re
from xml.etree import ElementTree

from PIL import ExifTags, Image

from sd.utils.images import decode_chunk, exif_of

MAX_XMP = 4 << 20  # bytes of an XMP packet to parse
# In the order in which they are searched for settings. Make and Model hold ComfyUI's graphs in WEBP files.
EXIF_FIELDS = ("ImageDescription", "XPComment", "XPSubject", "Make", "Model")


def embedded_texts(image: Image.Image) -> dict[str, str]:
    """Returns every non-empty text in an opened image by its key: the PNG chunk's, or the EXIF or XMP field's name."""
    info = {str(key): value for key, value in image.info.items()}
    texts = {key: decode_chunk(value) for key, value in info.items() if isinstance(value, str)}
    texts.pop("XML:com.adobe.xmp", None)
    texts["UserComment"] = decode_comment(user_comment(image))
    texts |= exif_texts(image)
    if isinstance(comment := image.info.get("comment"), bytes):  # of a JPEG or GIF
        texts["comment"] = decode_bytes(comment)
    found = {key: text for key, text in texts.items() if text.strip("\0 \n")}
    return xmp_texts(image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")) | found


def user_comment(image: Image.Image) -> bytes:
    """Returns the raw EXIF UserComment; empty where there is none."""
    try:
        comment = exif_of(image).get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    except Exception:  # Pillow raises nearly anything on a broken EXIF block
        return b""
    return comment if isinstance(comment, bytes) else str(comment).encode("latin-1", errors="replace")


def exif_texts(image: Image.Image) -> dict[str, str]:
    """Returns the texts of EXIF_FIELDS by their names."""
    texts = {}
    for name in EXIF_FIELDS:
        try:
            value = exif_of(image).get(ExifTags.Base[name], "")
        except Exception:  # as above
            continue
        if name.startswith("XP"):  # Windows keeps UTF-16 there
            value = bytes(value).decode("utf-16-le", errors="replace") if value else ""
        elif isinstance(value, bytes):
            value = decode_bytes(value)
        texts[name] = decode_chunk(value).strip("\0") if isinstance(value, str) else ""
    return texts


def decode_comment(comment: bytes) -> str:
    """Decodes an EXIF UserComment: eight bytes that name the encoding, then the text (EXIF 2.3, section 4.6.5).

    Some programs omit the name, others write another encoding than they name.
    """
    mark, text = comment[:8], comment[8:]
    if mark == b"UNICODE\0":
        return decode_utf16(text)
    if mark == b"JIS\0\0\0\0\0":
        return decode_bytes(text, "iso2022_jp" if b"\x1b" in text else "shift_jis")
    if mark in (b"ASCII\0\0\0", b"\0" * 8):
        return decode_bytes(text)
    return decode_bytes(comment)


def decode_utf16(text: bytes) -> str:
    """Decodes UTF-16 of either byte order, with or without a mark; UTF-8 where no byte is 0."""
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        return text.decode("utf-16", errors="replace").strip("\0")
    if text.startswith(b"\xef\xbb\xbf") or b"\0" not in text.strip(b"\0"):
        try:
            return text.decode("utf-8-sig").strip("\0")
        except UnicodeDecodeError:
            pass
    # Most letters are ASCII, whose high byte is 0.
    high_first = text[::2].count(0) >= text[1::2].count(0)
    return text.decode("utf-16-be" if high_first else "utf-16-le", errors="replace").strip("\0\ufeff")


def decode_bytes(text: bytes, *encodings: str) -> str:
    """Decodes by the first of `encodings` that fits, then UTF-8; UTF-16 where every other byte is 0."""
    marked = text.startswith((b"\xff\xfe", b"\xfe\xff"))
    if marked or max(text[::2].count(0), text[1::2].count(0)) > len(text) // 8 > 0:
        return decode_utf16(text)
    for encoding in (*encodings, "utf-8-sig"):
        try:
            return text.decode(encoding).strip("\0")
        except UnicodeDecodeError:
            continue
    return text.decode("latin-1").strip("\0")


def xmp_texts(packet: bytes | str | None) -> dict[str, str]:
    """Returns the fields and attributes of an XMP packet by their local names; nothing for a broken packet."""
    if not packet or len(packet) > MAX_XMP:
        return {}
    text = packet if isinstance(packet, str) else packet.decode("utf-8", errors="replace")
    if re.search("<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):  # no XMP packet has one, but an entity bomb would
        return {}
    try:
        root = ElementTree.fromstring(text.strip("\0 \n\ufeff"))
    except (ElementTree.ParseError, ValueError):
        return {}
    found: dict[str, str] = {}
    for element in root.iter():
        for name, value in (*element.attrib.items(), (element.tag, "".join(element.itertext()).strip())):
            local = name.rpartition("}")[2]
            if value.strip() and local not in ("RDF", "Description", "xmpmeta", "Alt", "li", "Bag", "Seq"):
                found.setdefault(local, value)
    return found
