"""Measure the bundled model with fixed seeds, and generate its contact sheets.

python scripts/evaluate_emoji.py                         everything (some minutes on two cores)
python scripts/evaluate_emoji.py --seen 60 --steps 10    faster, less exact

Prints one JSON object; the sheets go into weights/ as PNG.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd.utils.errors import plain_errors, plain_imports

with plain_imports():
    import torch

    from sd.cli.parser import ArgumentParser
    from sd.pipeline.stable_diffusion import StableDiffusion
    from sd.training.args import HelpFormatter
    from sd.training.pretrain.dataset import EmojiDataset
    from sd.training.pretrain.emoji_dataset import TRAINED_STYLES, read_names
    from sd.training.pretrain.evaluate import encode_images, features_of_all, generate_images, nearest_shares, retrieval
    from sd.training.pretrain.export import load_scorer
    from sd.training.pretrain.style_classifier import StyleClassifier
    from sd.training.pretrain.train_vae import psnr, reconstructed
    from sd.utils.image_grid import grid

NAMES = "red apple, cat face, dog, rocket, tree, house, car, pizza, red heart, fish, snowman, banana, ghost, flower"
SYNONYMS = ("a puppy", "a kitten", "an automobile", "a plane", "a bike", "a burger", "a donut", "a bunny")


@plain_errors
def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "emoji", help="folder of the prepared dataset")
    parser.add_argument("--weights", type=Path, default=ROOT / "weights", help="folder of the model and its sheets")
    parser.add_argument("--seen", type=int, default=200, help="number of trained (name, style) pairs to generate")
    parser.add_argument("--steps", type=int, default=20, help="number of sampling steps")
    parser.add_argument("--guidance", type=float, default=3.0, help="classifier-free guidance scale")
    options = parser.parse_args()
    everything = EmojiDataset(options.data, ("train", "pair"))
    trained, held = (everything.of(split) for split in ("train", "pair"))
    pipe = StableDiffusion.from_pretrained(options.weights / "emoji.safetensors")
    settings = {"steps": options.steps, "guidance_scale": options.guidance, "sampler": "dpmpp_2m"}
    clip = load_scorer(options.weights)
    real, again = held.images(), reconstructed(pipe.vae, held)
    figures: dict[str, Any] = {"vae psnr held out": psnr(again, real)}
    every = {emoji.name for emoji in everything.emoji}
    everyday = every & {name.name for name in read_names() if name.world == "small"}
    vectors = encode_images(clip, everything)
    for label, allowed in (("clip held out", every), ("clip held out, everyday names", everyday)):
        figures[label] = retrieval(clip, everything, vectors, allowed)
    order = torch.randperm(len(trained), generator=torch.Generator().manual_seed(0)).tolist()
    style_classifier = StyleClassifier(trained.images(), [emoji.style for emoji in trained.emoji])
    for label, images in (("real", real), ("real, through the autoencoder", again)):
        figures[f"style by texture, held-out pairs, {label}"] = style_classifier.accuracy(images, held.emoji)
    known = features_of_all(everything)
    for label, emoji in (("seen", trained.at(order[: options.seen]).emoji), ("held-out pairs", held.emoji)):
        images = generate_images(pipe, [emoji.captions[0] for emoji in emoji], **settings)
        figures[label] = nearest_shares(images, emoji, everything.emoji, known)
        figures[label]["style by texture"] = style_classifier.accuracy(images, emoji)
    print(json.dumps(figures, indent=1))
    names = NAMES.split(", ")
    sheets: dict[str, Any] = {
        "emoji-sheet": [(f"a {name}, {style}", {}) for style in TRAINED_STYLES for name in names],
        "emoji-guidance": [(f"a {name}", {"guidance_scale": scale}) for scale in (1.0, 3.0, 7.5) for name in names],
        "emoji-steps": [(f"a {name}", {"steps": steps}) for steps in (10, 20, 50) for name in names],
        "emoji-synonyms": [(synonym, {}) for synonym in SYNONYMS],
    }
    for sheet, rows in sheets.items():
        rendered = [pipe(prompt, seed=1, **(settings | other)).images[0] for prompt, other in rows]
        columns = len(SYNONYMS) if sheet == "emoji-synonyms" else len(names)
        grid(rendered, columns).save(options.weights / f"{sheet}.png", optimize=True)


if __name__ == "__main__":
    main()
