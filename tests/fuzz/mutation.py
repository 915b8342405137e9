"""Plain mutation: seeds, which are kept files and generated ones, with a few bytes, numbers or pieces changed."""

import random
import struct
from pathlib import Path

from fuzz.programs import as_legacy, as_safetensors, as_zip, name, program, table, tensor

SEEDS = Path(__file__).parent / "seeds"
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def seeds() -> list[bytes]:
    good = table(state_dict=table(a=tensor(), b=tensor(size=(2,), stride=(3,))), epoch=b"K\x03")
    ordered = name("collections", "OrderedDict") + b")R"
    embedding = table(string_to_param=table(x=tensor(size=(1, 16), stride=(16, 1))), name=ordered)
    bodies = [program(good), program(embedding), program(good, 4)]
    header = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
    made = [wrap(body) for body in bodies for wrap in (as_zip, as_legacy)] + [as_safetensors(header, bytes(16))]
    return [path.read_bytes() for path in sorted(SEEDS.glob("*.bin"))] + made


def mutate(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """One to five changes: a bit, a byte, a number, a piece removed, doubled, or taken from another seed."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 5)):
        place = chance.randrange(len(changed) + 1)
        length = chance.choice((1, 2, 4, 8, 16, 64))
        way = chance.randrange(6)
        if way == 0 and place < len(changed):
            changed[place] ^= 1 << chance.randrange(8)
        elif way == 1:
            changed[place : place + 1] = bytes([chance.randrange(256)])
        elif way == 2:
            changed[place : place + 8] = struct.pack("<Q", chance.choice(NUMBERS))[: chance.choice((1, 2, 4, 8))]
        elif way == 3:
            del changed[place : place + length]
        elif way == 4:
            changed[place:place] = changed[place : place + length] * chance.choice((1, 2, 100))
        else:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            changed[place:place] = other[start : start + length]
    return bytes(changed)
