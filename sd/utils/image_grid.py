"""Image grids: several images on one white sheet, with labels.

`grid` puts images one after another, each with its own label; `contact_sheet` labels rows and columns, such as training
steps by prompts. Both build a table of cells and join it with `join_cells`.
"""

import math

from PIL import Image, ImageDraw, ImageFont, ImageOps

from sd.utils.images import to_rgb

LARGEST = 512  # pixels: the longer side of an image on a contact sheet; larger ones are reduced
WIDEST_LABEL = 256  # pixels, beside a row
GAP = 6  # pixels between the cells of a contact sheet and around it

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    rows: list[list[Image.Image | None]],
    row_labels: list[str],
    column_labels: list[str],
    column_notes: list[str] | None = None,
    largest: int = LARGEST,
) -> Image.Image:
    """Return one image with a table of images: row labels at the left, column labels above, notes below.

    rows: of equal length; None leaves a cell empty. Smaller images are enlarged to the size of the largest, and long
    texts wrap. largest: the longer side of a cell in pixels, at most.
    """
    images = [[None if image is None else to_rgb(image) for image in row] for row in rows]
    width, height = cell_size([image for row in images for image in row if image is not None], largest)
    font = ImageFont.load_default(size=max(12, width // 20))
    notes = [""] * len(column_labels) if column_notes is None else column_notes
    left = [render_label(text, font, min(width, WIDEST_LABEL)) for text in row_labels]
    above = [render_label(text, font, width, center=True) for text in column_labels]
    below = [render_label(text, font, width, center=True) for text in notes]

    margin, nothing = max(text.width for text in left), Image.new("RGB", (0, 0))
    head_height, foot_height = (max(text.height for text in texts) for texts in (above, below))
    table = [
        [
            paste_on_cell(nothing, margin, head_height),
            *(paste_on_cell(text, width, head_height, 0, 1) for text in above),
        ]
    ]
    for text, row in zip(left, images):
        row_height = max(height, text.height)
        contained = [nothing if image is None else resize_to_fit(image, width, height) for image in row]
        table.append(
            [
                paste_on_cell(text, margin, row_height, 1, 0.5),
                *(paste_on_cell(image, width, row_height) for image in contained),
            ]
        )
    if foot_height > 0:
        table.append(
            [
                paste_on_cell(nothing, margin, foot_height),
                *(paste_on_cell(text, width, foot_height, 0, 0) for text in below),
            ]
        )
    return ImageOps.expand(join_cells(table, GAP), GAP, "white")


def stack_sheets(sheets: list[Image.Image], titles: list[str]) -> Image.Image:
    """Return sheets one below another, each with a title above it."""
    width = max(sheet.width for sheet in sheets)
    font = ImageFont.load_default(size=16)
    rows = []
    for sheet, title in zip(sheets, titles):
        text = render_label(title, font, width - 2 * GAP)
        rows.append([paste_on_cell(text, width, text.height + GAP, GAP / max(1, width - text.width), 1)])
        rows.append([paste_on_cell(sheet, width, sheet.height, 0, 0)])
    return join_cells(rows, 0)


def grid(images: list[Image.Image], columns: int | None = None, labels: list[str] | None = None) -> Image.Image:
    """Return one image with all images row by row, each with its label (if any) below it.

    columns: near the square root of the number of images if None.
    """
    columns = min(math.ceil(math.sqrt(len(images))) if columns is None else columns, len(images))
    width, height = (max(sizes) for sizes in zip(*(image.size for image in images)))
    font = ImageFont.load_default(size=max(11, width // 24))
    texts = [render_label(text, font, width) for text in labels or [""] * len(images)]
    text_height = max(text.height for text in texts)
    cells = []
    for image, text in zip(images, texts):
        cells.append(paste_on_cell(to_rgb(image), width, height + text_height, 0, 0))
        cells[-1].paste(text, (0, height))
    table = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return join_cells(table, gap=2 if text_height == 0 else 4)


def join_cells(table: list[list[Image.Image]], gap: int) -> Image.Image:
    """Return a white image with the cells of a table, `gap` pixels apart; the last row may be shorter.

    All cells of a row have the height of its first cell, and all cells of a column the width of its first.
    """
    widths, heights = [cell.width for cell in table[0]], [row[0].height for row in table]
    size = (sum(widths) + gap * (len(widths) - 1), sum(heights) + gap * (len(heights) - 1))
    sheet = Image.new("RGB", size, "white")
    top = 0
    for row, height in zip(table, heights):
        left = 0
        for cell, width in zip(row, widths):
            sheet.paste(cell, (left, top))
            left += width + gap
        top += height + gap
    return sheet


def paste_on_cell(image: Image.Image, width: int, height: int, across: float = 0.5, down: float = 0.5) -> Image.Image:
    """Return an image on a white cell. across, down: its place in the free space, from 0 (left, top) to 1."""
    cell = Image.new("RGB", (width, height), "white")
    cell.paste(image, (int((width - image.width) * across), int((height - image.height) * down)))
    return cell


def resize_to_fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return an image resized to fit into this size, with its proportions."""
    return ImageOps.contain(image, (width, height), Image.Resampling.LANCZOS)


def cell_size(images: list[Image.Image], largest: int = LARGEST) -> tuple[int, int]:
    """Return the largest width and the largest height, reduced in proportion to at most `largest`."""
    sizes = [image.size for image in images] or [(largest, largest)]
    width, height = (max(sides) for sides in zip(*sizes))
    scale = min(1, largest / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def render_label(text: str, font: Font, width: int, center: bool = False) -> Image.Image:
    """Return a text as an image, `width` pixels wide if centered, and at most that otherwise."""
    text = wrap_text(" ".join(part for word in text.split() for part in split_word(word, font, width)), font, width)
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text, font=font)
    size = (width if center else min(width, math.ceil(box[2])), math.ceil(box[3]))
    label = Image.new("RGB", size, "white")
    if center:
        ImageDraw.Draw(label).text((width / 2, 0), text, font=font, fill="black", anchor="ma", align="center")
    else:
        ImageDraw.Draw(label).text((0, 0), text, font=font, fill="black")
    return label


def split_word(word: str, font: Font, width: int) -> list[str]:
    """Return a word in parts of at most `width` pixels, such as a long file name."""
    parts = [""]
    for letter in word:
        if parts[-1] and font.getlength(parts[-1] + letter) > width:
            parts.append("")
        parts[-1] += letter
    return parts


def wrap_text(text: str, font: Font, width: int) -> str:
    """Return the text with line breaks between words, so that lines stay within `width` pixels where words allow it."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
