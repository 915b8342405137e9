"""CLIP trained on scene captions, so that its token states represent every object with its color, number and position.

The U-Net reads token states, not CLIP's single vector. Besides the contrastive loss with hard negatives, a small
reader, one layer of cross-attention like the U-Net's, must therefore predict the scene from the states. The knowledge
of single emoji is preserved by a distillation loss toward the original CLIP on their captions and images.
"""

import itertools
import random
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.tokenizer import Tokenizer
from sd.training.loop import TrainConfig, save_model, train
from sd.training.pretrain.scenes.backgrounds import FLAT, LANDSCAPES
from sd.training.pretrain.scenes.colors import COLORS
from sd.training.pretrain.scenes.grammar import Grammar, Scene
from sd.training.pretrain.scenes.render import render_batch
from sd.training.pretrain.scenes.stream import EXAMPLES, SceneStream
from sd.training.pretrain.scenes.vocabulary import INVERSE, scene_names
from sd.training.pretrain.scenes.wording import Content, random_caption
from sd.training.pretrain.train_clip import soft_cross_entropy
from sd.unet import CrossAttention
from sd.vision.clip_vision import CLIP, clip_pixels

CAPTIONS = 96  # additional captions in a step, for the reader only
READER_WEIGHT = 1.0
EMOJI_CAPTIONS = 32  # captions of single emoji in a step, for the distillation from the original CLIP
PADDING = 6  # number of padding tokens in the loss, because the U-Net reads them too
AXES = ("", "left", "above")
BACKGROUNDS = ("white", "gradient", *FLAT, *LANDSCAPES)


def slots() -> dict[str, list]:
    """Return the questions that the reader answers, each with its possible answers.

    The first object is the one on the left or above; without a relation, the first in alphabetical order.
    """
    names, colors = [None, *scene_names()], [None, *COLORS]
    return {"name1": names, "color1": colors, "name2": names, "color2": colors, "count": [1, 2, 3, 4],
            "axis": list(AXES), "background": list(BACKGROUNDS)}  # fmt: skip


def answers(content: Content) -> dict[str, object]:
    """Return the true answer to each question, which is the same for every wording."""
    objects = list(zip(content.names, content.colors))
    relation = content.relation
    if relation in ("right", "below"):
        objects, relation = objects[::-1], INVERSE[relation]
    elif not relation:
        objects.sort(key=lambda pair: pair[0])
    objects.append((None, None))
    background = content.background.colors[0] if content.background.kind == "flat" else content.background.kind
    return {"name1": objects[0][0], "color1": objects[0][1], "name2": objects[1][0], "color2": objects[1][1],
            "count": content.count, "axis": relation, "background": background}  # fmt: skip


class SceneReader(nn.Module):
    """One learned query for each question, one cross-attention to the token states, one linear classifier for each
    question.
    """

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.questions = slots()
        self.numbers = {slot: {answer: k for k, answer in enumerate(known)} for slot, known in self.questions.items()}
        self.queries = nn.Parameter(0.02 * torch.randn(len(self.questions), width))
        self.attention = CrossAttention(width, width, heads)
        self.norm = nn.LayerNorm(width)
        self.out = nn.ModuleList(nn.Linear(width, len(known)) for known in self.questions.values())

    def forward(self, states: Tensor) -> list[Tensor]:
        """states: (B, N, width). Returns the logits of the answers to each question, (B, answers) each."""
        found = self.attention(self.queries.expand(len(states), -1, -1), states)  # (B, questions, width)
        return [out(x) for out, x in zip(self.out, self.norm(found).unbind(1))]

    def targets(self, contents: list[Content]) -> Tensor:
        """Return (B, questions) long: the number of each true answer."""
        rows = [answers(content) for content in contents]
        return torch.tensor([[self.numbers[slot][row[slot]] for slot in self.questions] for row in rows])

    def loss(self, states: Tensor, contents: list[Content]) -> Tensor:
        """Return the mean cross-entropy over the questions."""
        wanted = self.targets(contents).to(states.device)
        losses = (F.cross_entropy(logits.float(), wanted[:, k]) for k, logits in enumerate(self(states)))
        return cast(Tensor, sum(losses)) / len(self.out)  # there is always a question


class CLIPWithReader(nn.Module):
    """CLIP and the reader, which are trained together."""

    def __init__(self, clip: CLIP):
        super().__init__()
        self.clip = clip
        self.reader = SceneReader(clip.text_model.final_layer_norm.weight.shape[0])


def crop_tokens(tokenizer: Tokenizer, captions: list[str], padding: int = 0) -> Tensor:
    """Return (B, N) ids, cropped `padding` positions after the longest caption's end token, because the tower is
    causal.
    """
    tokens = tokenizer(captions)
    return tokens[:, : (tokens == tokens.max()).int().argmax(dim=1).max() + 1 + padding]


def read_contents(grammar: Grammar, seeds: list[int]) -> tuple[list[Content], list[str]]:
    """Return the contents of scenes and a caption of each, without layout or rendering."""
    contents, captions = [], []
    for seed in seeds:
        rng = random.Random(f"text {seed}")
        contents.append(grammar.content(rng))
        captions.append(random_caption(contents[-1], rng))
    return contents, captions


def twin_scenes(stream: SceneStream, indices: Tensor) -> list[Scene]:
    """Return each example followed by its twin, which differs in one respect."""
    scenes = []
    for index in indices.tolist():
        scene = stream.scene(index)
        if scene.content.kind == "emoji":
            others = (stream.emoji(random.Random(f"other emoji {index} {k}"), index) for k in itertools.count())
            scenes += [scene, next(other for other in others if other.caption != scene.caption)]
        else:
            scenes += stream.grammar.twins(index)
    return scenes


def contrastive_loss(clip: CLIP, images: Tensor, tokens: Tensor, fits: Tensor) -> Tensor:
    """Return the loss of Radford et al. 2021, figure 3. images: (B, 3, H, W). tokens: (B, N). fits: (B, B), 1 where a
    text is true.
    """
    text = clip.encode_text(tokens)
    image = clip.encode_image(clip_pixels(images, clip.vision_model.image_size))
    logits = clip.logit_scale.clamp(max=4.6052).exp() * text.float() @ image.float().T
    return (soft_cross_entropy(logits, fits) + soft_cross_entropy(logits.T, fits.T)) / 2


def distance(output: Tensor, reference: Tensor) -> Tensor:
    """Return the squared distance divided by the squared length of `reference`."""
    return (output - reference).square().mean() / reference.square().mean()


def distillation_loss(clip: CLIP, teacher: CLIP, images: Tensor, captions: list[str], tokenizer: Tokenizer) -> Tensor:
    """Return the distance of CLIP from the original one on single emoji: token states, text vectors and image vectors.

    Li and Hoiem 2016, "Learning without Forgetting": the outputs of the original model are the targets. images: (B, 3,
    H, W) in [-1, 1], B may be 0.
    """
    tokens = crop_tokens(tokenizer, captions, PADDING).to(clip.logit_scale.device)
    with torch.no_grad():
        known = teacher.text_model(tokens), teacher.encode_text(tokens)
    loss = distance(clip.text_model(tokens), known[0]) + distance(clip.encode_text(tokens), known[1])
    if len(images):
        pixels = clip_pixels(images.to(tokens.device), clip.vision_model.image_size)
        with torch.no_grad():
            known_images = teacher.encode_image(pixels)
        loss = loss + distance(clip.encode_image(pixels), known_images)
    return loss


def train_scene_text(
    clip: CLIP, run: Path, stream: SceneStream, settings: TrainConfig, teacher: CLIP | None = None
) -> CLIP:
    """Train with the contrastive loss on pairs of twins and the reader's loss on many more captions; return the
    averaged CLIP.

    teacher: the original CLIP, near which the new one stays on single emoji; None turns this off.
    """
    tokenizer = Tokenizer()
    held_out = Grammar(stream.cutouts, held_out=True)

    def loss(model: CLIPWithReader, indices: Tensor, generator: torch.Generator) -> Tensor:
        device = model.clip.logit_scale.device
        scenes = twin_scenes(stream, indices)
        captions = [scene.caption for scene in scenes]
        fits = torch.tensor([[float(a == b) for a in captions] for b in captions], device=device)
        tokens = crop_tokens(tokenizer, captions).to(device)
        images = render_batch(scenes, stream.cutouts).to(device)
        match = contrastive_loss(model.clip, images, tokens, fits)
        if teacher is not None:
            seeds = torch.randint(2**40, (EMOJI_CAPTIONS,), generator=generator).tolist()
            emoji = [stream.emoji(random.Random(f"emoji text {seed}"), seed).caption for seed in seeds]
            single = images[[scene.content.kind == "emoji" for scene in scenes]]
            match = match + distillation_loss(model.clip, teacher, single, emoji, tokenizer)
        more = torch.randint(2**40, (CAPTIONS,), generator=generator).tolist()
        contents, texts = read_contents(stream.grammar, more)
        states = model.clip.text_model(crop_tokens(tokenizer, texts).to(device))
        return match + READER_WEIGHT * model.reader.loss(states, contents)

    def on_save(model: CLIPWithReader, step: int) -> None:
        save_model(model.clip, run)
        figures = measure_text(model, held_out, tokenizer) | {"twins": measure_twins(model.clip, stream, tokenizer)}
        line = "\t".join(f"{name} {value:.3f}" for name, value in figures.items())
        print(f"step {step}: {line}", flush=True)
        with open(run / "figures.tsv", "a", encoding="utf-8") as file:
            file.write(f"{step}\t{line}\n")

    model = train(CLIPWithReader(clip), loss, EXAMPLES, run, settings, on_save)
    return model.clip


@torch.no_grad()
def measure_text(model: CLIPWithReader, grammar: Grammar, tokenizer: Tokenizer, count: int = 300) -> dict[str, float]:
    """Return the accuracy of the reader for each question on captions of held-out combinations, and "all" for all at
    once.
    """
    contents, captions = read_contents(grammar, [-1 - k for k in range(count)])
    tokens = crop_tokens(tokenizer, captions).to(model.clip.logit_scale.device)
    logits = model.reader(model.clip.text_model(tokens))
    given = torch.stack([each.argmax(dim=1) for each in logits], 1).cpu()
    right = given == model.reader.targets(contents)
    shares = dict(zip(model.reader.questions, right.float().mean(dim=0).tolist()))
    return shares | {"all": right.all(dim=1).float().mean().item()}


@torch.no_grad()
def measure_twins(clip: CLIP, stream: SceneStream, tokenizer: Tokenizer, count: int = 32) -> float:
    """Return the fraction of images for which CLIP prefers the true caption to the twin's; chance is a half."""
    scenes = twin_scenes(stream, torch.arange(10 * EXAMPLES, 10 * EXAMPLES + count))
    device = clip.logit_scale.device
    images = clip_pixels(render_batch(scenes, stream.cutouts).to(device), clip.vision_model.image_size)
    text = clip.encode_text(crop_tokens(tokenizer, [scene.caption for scene in scenes]).to(device))
    similarity = clip.encode_image(images) @ text.T
    right = [similarity[k, k] > similarity[k, k ^ 1] for k in range(len(scenes))]
    return sum(map(float, right)) / len(right)
