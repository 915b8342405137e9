"""Sheets of images with captions, for inspection."""

import textwrap

from PIL import Image, ImageDraw

TEXT_HEIGHT = 36  # pixels above each image
RIGHT, WRONG = (30, 140, 50), (200, 40, 40)


def captioned_sheet(
    images: list[Image.Image], captions: list[str], columns: int = 8, right: list[bool] | None = None
) -> Image.Image:
    """Return images of one size in rows, each under its caption; with `right`, a green or red frame marks the right
    ones.
    """
    width, height = images[0].size
    cell_width, cell_height = width + 8, height + TEXT_HEIGHT + 8
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for k, (image, caption) in enumerate(zip(images, captions)):
        left, top = k % columns * cell_width + 4, k // columns * cell_height + 4
        lines = textwrap.wrap(caption, max(8, width // 6))[:3]
        draw.multiline_text((left, top), "\n".join(lines), fill="black", spacing=1)
        sheet.paste(image, (left, top + TEXT_HEIGHT))
        if right is not None:
            frame = (left - 2, top + TEXT_HEIGHT - 2, left + width + 1, top + TEXT_HEIGHT + height + 1)
            draw.rectangle(frame, outline=RIGHT if right[k] else WRONG, width=2)
    return sheet
