"""Block weights of a LoRA, `<lora:name:1:lbw=1,0,0,...>`: how strongly it works in each block of the U-Net.

The webui's extension for it takes 17 numbers for v1-5: BASE (the text encoder), the six input blocks with attention,
the middle, and the nine output blocks with attention. 26 numbers are for all blocks. A name stands for a list of 17, or
for the blocks of each side of the U-Net, which every model has.
"""

import math
from collections.abc import Sequence

from torch import nn

from sd.adapters.injection import deltas_of
from sd.checkpoints.merging import block_of
from sd.unet import SpatialTransformer, UNetModel
from sd.utils.errors import UserError

BASE, MIDDLE = "BASE", "M00"
PRESETS: dict[str, Sequence[float]] = {  # the extension's own, by the 17 blocks of v1-5
    "INS": [1] * 4 + [0] * 13,
    "IND": [1, 0, 0, 0, 1, 1, 1] + [0] * 10,
    "MIDD": [1, 0, 0, 0] + [1] * 8 + [0] * 5,
    "OUTD": [1] + [0] * 7 + [1] * 4 + [0] * 5,
    "OUTS": [1] + [0] * 11 + [1] * 5,
}
OF_ANY_MODEL: dict[str, Sequence[float]] = {  # its own too: of BASE, the input blocks, the middle, the output blocks
    "NONE": (0, 0, 0, 0),
    "ALL": (1, 1, 1, 1),
    "ALL0.5": (0.5, 0.5, 0.5, 0.5),
    "INALL": (1, 1, 0, 0),
    "OUTALL": (1, 0, 0, 1),
}
SIDES = (BASE, "IN", MIDDLE, "OUT")


def block_names(unet: UNetModel, only_attention: bool = False) -> list[str]:
    """Returns the names of the weights: BASE, IN00, ..., M00, OUT00, ...; those of blocks with attention, or of all."""
    names = [BASE]
    for short, blocks in (("IN", unet.input_blocks), (MIDDLE, None), ("OUT", unet.output_blocks)):
        if blocks is None:
            names.append(short)
            continue
        for i, block in enumerate(blocks):
            if not only_attention or any(isinstance(layer, SpatialTransformer) for layer in block):
                names.append(f"{short}{i:02}")
    return names


def parse_block_weights(text: str, unet: UNetModel) -> dict[str, float]:
    """Returns the weight of each block, 0 for those that a short list leaves out.

    Raises UserError for another count of numbers than this U-Net has blocks, and for a name of blocks of v1-5 alone.
    """
    short, whole, name = block_names(unet, only_attention=True), block_names(unet), text.strip().upper()
    if name in PRESETS and len(short) != len(PRESETS[name]):
        raise UserError(
            f"lbw={name} stands for blocks of v1-5, and this model has others: give {len(short)} numbers, for "
            f"{', '.join(short)}, or one of {', '.join(OF_ANY_MODEL)}."
        )
    values = PRESETS.get(name) or weights_by_side(name, short) or parse_numbers(text)
    if len(values) not in (len(short), len(whole)):
        raise UserError(
            f"lbw={text[:60]} has {len(values)} numbers: this model takes {len(short)} ({', '.join(short[:3])}, ...) "
            f"or {len(whole)}."
        )
    return dict.fromkeys(whole, 0.0) | dict(zip(short if len(values) == len(short) else whole, values))


def weights_by_side(name: str, blocks: Sequence[str]) -> list[float]:
    """Returns the weights of blocks that a name of OF_ANY_MODEL stands for; an empty list for another name."""
    by_side = dict(zip(SIDES, OF_ANY_MODEL.get(name, ())))
    return [by_side[next(side for side in SIDES if block.startswith(side))] for block in blocks] if by_side else []


def parse_numbers(text: str) -> list[float]:
    """Returns numbers with commas between them. Raises UserError where one is none."""
    try:
        values = [float(one) for one in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        names = ", ".join([*OF_ANY_MODEL, *PRESETS])
        raise UserError(f"lbw={text[:60]} is not understood: give numbers with commas between them, or one of {names}.")
    return values


def apply_block_weights(unet: UNetModel, clip: nn.Module, name: str, text: str) -> None:
    """Multiplies the strengths of a loaded LoRA by the weights of their blocks. Raises UserError."""
    weights = parse_block_weights(text, unet)
    for path, delta in deltas_of(unet, name).items():
        delta.strength *= weights[block_of(path)]
    for delta in deltas_of(clip, name).values():
        delta.strength *= weights[BASE]
