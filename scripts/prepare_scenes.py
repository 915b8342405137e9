"""Cut out the objects for training scenes from the emoji packages, and write a sheet of random scenes.

python scripts/prepare_emoji.py                        the packages, once
python scripts/prepare_scenes.py                       the cut-outs, once (some minutes)
python scripts/prepare_scenes.py --sheet scenes.png    64 random scenes with their captions
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.utils.errors import plain_errors, plain_imports

with plain_imports():
    from sd.cli.parser import ArgumentParser
    from sd.training.args import HelpFormatter
    from sd.training.pretrain.scenes.cutouts import Cutouts, prepare_cutouts
    from sd.training.pretrain.scenes.grammar import Grammar
    from sd.training.pretrain.scenes.render import render
    from sd.training.pretrain.scenes.sheets import captioned_sheet


@plain_errors
def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT / "data" / "emoji",
        help="folder that prepare_emoji.py has filled",
    )
    parser.add_argument("--sheet", type=Path, help="write a sheet of random scenes to this file, and prepare nothing")
    parser.add_argument("--count", type=int, default=64, help="number of scenes in the sheet")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene in the sheet")
    parser.add_argument("--held-out", action="store_true", help="show scenes with held-out combinations in the sheet")
    options = parser.parse_args()
    if options.sheet is None:
        print(f"{prepare_cutouts(options.data)} cut-outs in {options.data / 'cutouts'}")
        return
    cutouts = Cutouts(options.data)
    grammar = Grammar(cutouts, held_out=options.held_out)
    scenes = [grammar.scene(options.seed + k) for k in range(options.count)]
    captioned_sheet([render(scene, cutouts) for scene in scenes], [scene.caption for scene in scenes]).save(
        options.sheet
    )
    print(options.sheet)


if __name__ == "__main__":
    main()
