"""Generates images from text: python scripts/txt2img.py "a red apple" """

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import UserError, plain_errors, plain_imports

with plain_imports():
    from sd.cli.args import generation_parser, given_flags, load_pipeline, settings_from_args
    from sd.cli.distributed import assign_filenames, broadcast, shard, worker_context
    from sd.cli.from_png import settings_from_png
    from sd.cli.requests import GenerationRequest
    from sd.cli.run import check_before_loading, expand_requests, generate_and_save, resume_hint
    from sd.utils.files import check_outdir, read_prompts


@plain_errors
def main() -> None:
    flags = generation_parser("Generates images from text.")
    add = flags.add
    add("prompt", "--from-file", metavar="FILE", help="text file with one prompt per line; generates each of them")
    add(
        "prompt",
        "--from-png",
        metavar="FILE",
        help="saved image whose settings are used again; other flags change them",
    )
    add(
        "output",
        "--resume",
        action="store_true",
        help="skip the images that --outdir has already; needs the same --seed",
    )
    args = flags.parser.parse_args()
    args.given = given_flags(flags.parser)
    if args.resume and args.seed is None and not args.from_png:
        raise UserError("--resume needs the --seed of the first run, which is printed and written into each image.")
    with worker_context():
        generate_all(args)


def generate_all(args: argparse.Namespace) -> None:
    """Generates what the flags ask for; under `torchrun`, this process's shard of it."""
    folder = check_outdir(args.outdir)
    as_saved = False
    if args.from_png:
        todo, as_saved = settings_from_png(args.from_png, args)
    elif args.from_file:
        todo = [settings_from_args(args, prompt=prompt) for prompt in read_prompts(args.from_file)]
    else:
        todo = [settings_from_args(args)]
    first, count = todo[0].seeds()[0], todo[0].num_images
    repeated = [one for one in todo for _ in range(args.n_iter)]
    repeated = [one.replace(seed=first + i * count) for i, one in enumerate(repeated)]
    check_before_loading(args, todo)
    pipe = load_pipeline(args)

    def plan() -> list[GenerationRequest]:
        requests = [GenerationRequest(one) for one in repeated] if as_saved else expand_requests(pipe, repeated, args)
        return assign_filenames(pipe, requests, folder, args.resume, len(args.region_mask))

    requests = shard(broadcast(plan))
    several = sum(one.settings.num_images for one in requests) > 1
    with resume_hint(args, todo[0]) if several else nullcontext():
        generate_and_save(pipe, requests, args)


if __name__ == "__main__":
    main()
