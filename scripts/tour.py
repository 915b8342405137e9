"""Build the guided tour, docs/tour/: its figures with the bundled model, and its pages from tour/chapters/.

python scripts/tour.py                    all figures and all pages, in a few minutes
python scripts/tour.py --chapters 4 7     the figures of two chapters, and all pages
python scripts/tour.py --text             only the pages, from the stored numbers: after a change of text or code
python scripts/tour.py --check            write nothing, and fail if a page is not what --text would write
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import UserError, plain_errors, plain_imports

with plain_imports():
    from sd.cli.parser import ArgumentParser
    from tour.build import draw_chapters, stale_pages, write_pages
    from tour.pages import PAGES


def parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--chapters", type=int, nargs="+", default=[], metavar="N", help="draw these chapters' figures (default: all)")
    add("--text", action="store_true", help="draw nothing; write the pages from the stored numbers")
    add("--check", action="store_true", help="draw and write nothing; fail if a page is stale")
    return parser


@plain_errors
def main() -> None:
    args = parser().parse_args()
    if args.check:
        if stale := stale_pages():
            raise UserError(f"not up to date: {', '.join(stale)}; run python scripts/tour.py --text.")
        print("all pages of the tour are up to date")
        return
    if not args.text:
        start = time.monotonic()
        draw_chapters(args.chapters, lambda name: print(f"{name}: figures drawn, {time.monotonic() - start:.0f} s"))
    changed = write_pages()
    print(f"{PAGES}: {', '.join(changed) if changed else 'no page'} changed")


if __name__ == "__main__":
    main()
