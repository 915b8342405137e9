"""A table of pictures with a name for each row and column: training steps by prompts, or models by prompts."""

import math

from PIL import Image, ImageDraw, ImageFont, ImageOps

from sd.utils.images import to_rgb

LARGEST = 512  # pixels: the longer side of a picture on the sheet; larger ones are shrunk
WIDEST_LABEL = 256  # pixels, beside a row
GAP = 6  # pixels, around the sheet as well

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    rows: list[list[Image.Image | None]],
    row_labels: list[str],
    column_labels: list[str],
    column_notes: list[str] | None = None,
) -> Image.Image:
    """All pictures on one white sheet: row labels at the left, column labels above, notes below. Long texts wrap.

    rows: of equal length; None leaves a place empty. Smaller pictures are enlarged to the size of the largest.
    """
    pictures = [[None if image is None else to_rgb(image) for image in row] for row in rows]
    width, height = largest([image for row in pictures for image in row if image is not None])
    font = ImageFont.load_default(size=max(12, width // 20))
    notes = [""] * len(column_labels) if column_notes is None else column_notes
    left = [label(text, font, min(width, WIDEST_LABEL)) for text in row_labels]
    above, below = ([label(text, font, width, centre=True) for text in texts] for texts in (column_labels, notes))

    margin = max(text.width for text in left) + GAP
    heights = [max(height, text.height) for text in left]
    x = [margin + i * (width + GAP) for i in range(len(column_labels))]
    y = [max(text.height for text in above) + GAP]
    for row_height in heights:
        y.append(y[-1] + row_height + GAP)
    foot_height = max(text.height for text in below) or -GAP  # nothing below, not even the gap
    sheet = Image.new("RGB", (x[-1] + width, y[-1] + foot_height), "white")
    for place, head, foot in zip(x, above, below):
        sheet.paste(head, (place, y[0] - GAP - head.height))
        sheet.paste(foot, (place, y[-1]))
    for top, row_height, text, images in zip(y, heights, left, pictures):
        sheet.paste(text, (margin - GAP - text.width, top + (row_height - text.height) // 2))
        for place, image in zip(x, images):
            if image is not None:
                image = ImageOps.contain(image, (width, height), Image.Resampling.LANCZOS)
                corner = (place + (width - image.width) // 2, top + (row_height - image.height) // 2)
                sheet.paste(image, corner)
    return ImageOps.expand(sheet, GAP, "white")


def largest(images: list[Image.Image]) -> tuple[int, int]:
    """The widest width and the highest height, brought down to LARGEST together."""
    sizes = [image.size for image in images] or [(LARGEST, LARGEST)]
    width, height = (max(sides) for sides in zip(*sizes))
    scale = min(1, LARGEST / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def label(text: str, font: Font, width: int, centre: bool = False) -> Image.Image:
    """A text as a picture, as wide as `width` if centred and no wider than that otherwise."""
    text = wrap(" ".join(piece for word in text.split() for piece in split_word(word, font, width)), font, width)
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text, font=font)
    size = (width if centre else min(width, math.ceil(box[2])), math.ceil(box[3]))
    made = Image.new("RGB", size, "white")
    if centre:
        ImageDraw.Draw(made).text((width / 2, 0), text, font=font, fill="black", anchor="ma", align="center")
    else:
        ImageDraw.Draw(made).text((0, 0), text, font=font, fill="black")
    return made


def split_word(word: str, font: Font, width: int) -> list[str]:
    """A word that is wider than `width`, such as a file's name, in pieces that fit."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def grid(images: list[Image.Image], columns: int | None = None, labels: list[str] | None = None) -> Image.Image:
    """All pictures on one white sheet, row by row, each with its label (if any) below it; near square by default."""
    columns = min(math.ceil(math.sqrt(len(images))) if columns is None else columns, len(images))
    width, height = (max(sizes) for sizes in zip(*(image.size for image in images)))
    texts = [""] * len(images) if labels is None else labels
    font = ImageFont.load_default(size=max(11, width // 24))
    texts = [wrap(text, font, width) for text in texts]
    canvas = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    text_height = math.ceil(max(canvas.textbbox((0, 0), text, font=font)[3] for text in texts))
    gap = 2 if text_height == 0 else 4
    rows = math.ceil(len(images) / columns)
    cell = (width + gap, height + text_height + gap)
    sheet = Image.new("RGB", (columns * cell[0] - gap, rows * cell[1] - gap), "white")
    for i, (image, text) in enumerate(zip(images, texts)):
        x, y = i % columns * cell[0], i // columns * cell[1]
        sheet.paste(to_rgb(image), (x, y))
        label = Image.new("RGB", (width, text_height), "white")  # a sheet of its own cuts off what is too wide
        ImageDraw.Draw(label).text((0, 0), text, font=font, fill="black")
        sheet.paste(label, (x, y + height))
    return sheet


def wrap(text: str, font: Font, width: int) -> str:
    """The text with line breaks between words, so that lines stay within `width` pixels where words allow it."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
