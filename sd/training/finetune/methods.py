"""The three fine-tuning methods, each with the parameters that it trains.

TextualInversion   vectors for a new word; the networks stay unchanged   a few kB
LoraTraining       low-rank changes of chosen layers                     a few MB
DreamBooth         every weight of the U-Net                             2 GB

All have `module` (the trained parameters), `contexts` (texts to the U-Net's context), `measures` (the size of the
change), `legend` (what the measures mean), `warning` (a sentence where the change is negligible), `save` and `close`.
Except for DreamBooth, `close` restores the networks bit for bit.
"""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.adapters import injection as lora
from sd.adapters import textual_inversion
from sd.adapters.embedding_files import save_embedding
from sd.adapters.lora_export import save_lora
from sd.adapters.variants import LoRA
from sd.checkpoints.checkpoint import save_checkpoint
from sd.clip import CLIPTextModel
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.tokenizer import Tokenizer
from sd.training.finetune.data.long_captions import caption_encoder, encode_captions
from sd.training.finetune.recipes import Recipe
from sd.utils.errors import UserError

TARGETS = {  # layers of the U-Net, and of the text encoder
    "cross": r".*attn2\.to_(q|k|v|out\.0)",
    "attention": r".*attn[12]\.to_(q|k|v|out\.0)",
    "ff": r".*\.ff\.net\.(0\.proj|2)",
    "text": r".*self_attn\.(q|k|v|out)_proj",
}
NEGLIGIBLE = "the training has changed almost nothing: {}; increase --lr or --steps."


class TextualInversion:
    """Trains vectors for `recipe.word`, initialized with those of `recipe.init` (Gal et al. 2022, "An Image is Worth
    One Word").
    """

    method = "ti"
    legend = " norms: the vectors' lengths. cosines: to their initial values. nearest: words of the vocabulary."

    def __init__(self, pipe: StableDiffusion, name: str, recipe: Recipe):
        self.pipe, self.word, self.tokens = pipe, recipe.word, recipe.max_token_length
        if len(pipe.tokenizer.encode(self.word)) == 1:
            raise UserError(f"{self.word!r} is already in the vocabulary: choose a new word, such as my-{self.word}.")
        freeze(pipe)
        self.start = initial_vectors(pipe.tokenizer, pipe.clip, recipe.init, recipe.vectors)
        self.rows = textual_inversion.inject(pipe.tokenizer, pipe.clip, self.word, self.start)
        self.module = nn.ParameterList([self.rows])

    def contexts(self, texts: list[str]) -> Tensor:
        return encode_captions(self.pipe, texts, self.tokens)

    def measures(self) -> dict:
        """Return each vector's length, its cosine to its initial value, and the nearest words of the vocabulary."""
        rows = self.rows.detach().float().cpu()
        table = F.normalize(self.pipe.clip.embeddings.token_embedding.weight.detach().float(), dim=1)
        nearest = (F.normalize(rows, dim=1).to(table.device) @ table.T).topk(3, dim=1).indices.tolist()
        return {
            "norms": [round(norm, 4) for norm in rows.norm(dim=1).tolist()],
            "cosines": [round(cosine, 4) for cosine in F.cosine_similarity(rows, self.start, dim=1).tolist()],
            "nearest": [", ".join(self.pipe.tokenizer.decode([i]) for i in row) for row in nearest],
        }

    def warning(self) -> str | None:
        cosine = F.cosine_similarity(self.rows.detach().float().cpu(), self.start, dim=1).max().item()
        sentence = NEGLIGIBLE.format(f"a vector has cosine {cosine:.4f} to its initial word")
        return sentence if cosine > 0.995 else None

    def save(self, path: Path, step: int, metadata: dict[str, str]) -> None:
        model_name = self.pipe.path.stem if self.pipe.path else None
        save_embedding(path, self.word, self.rows, step, model_name, metadata | {"ss_steps": str(step)})

    def close(self) -> None:
        textual_inversion.eject(self.pipe.tokenizer, self.pipe.clip, self.word)


class LoraTraining:
    """Trains low-rank changes of the layers in `recipe.targets` (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large
    Language Models").
    """

    method = "lora"
    legend = " change: size of the trained change over that of the weights, |ΔW| / |W|."

    def __init__(self, pipe: StableDiffusion, name: str, recipe: Recipe):
        self.pipe, self.name, self.recipe = pipe, name, recipe
        freeze(pipe)
        generator = torch.Generator().manual_seed(recipe.seed)
        self.networks: dict[str, nn.Module] = {"unet": pipe.unet, "clip": pipe.clip}
        module, weights = {}, []
        for part, network in self.networks.items():
            pattern = "|".join(TARGETS[one] for one in recipe.targets if (one == "text") == (part == "clip"))
            layers = {
                path: layer for path, layer in lora.patchable_layers(network).items() if matches_pattern(pattern, path)
            }
            patches = {
                path: LoRA.initialize(layer, recipe.rank, recipe.alpha, generator) for path, layer in layers.items()
            }
            lora.inject(network, name, patches)
            weights += [layer.weight for layer in layers.values()]
            if patches:
                module[part] = nn.ModuleList(patches.values())
        self.module = nn.ModuleDict(module)
        self.weights_norm = math.hypot(*(weight.detach().float().norm().item() for weight in weights))
        self.contexts = caption_encoder(pipe, "text" in recipe.targets, recipe.max_token_length)

    def measures(self) -> dict:
        """Return "change": |ΔW| / |W| over all trained layers together."""
        patched = [(patch, self.networks[part].get_submodule(path)) for part, path, patch in self.patches()]
        return {"change": math.hypot(*(patch.norm(layer.weight) for patch, layer in patched)) / self.weights_norm}

    def warning(self) -> str | None:
        change = self.measures()["change"]
        return NEGLIGIBLE.format(f"the change is {change:.1g} of the weights") if change < 1e-4 else None

    def patches(self) -> list[tuple[str, str, LoRA]]:
        networks = self.networks.items()
        return [(part, *item) for part, network in networks for item in lora.deltas_of(network, self.name).items()]

    def save(self, path: Path, step: int, metadata: dict[str, str]) -> None:
        metadata = metadata | {"ss_steps": str(step)}
        save_lora(path, self.pipe.unet, self.pipe.clip, self.name, self.recipe.file_format, metadata)

    def close(self) -> None:
        for network in self.networks.values():
            lora.eject(network, self.name)


class DreamBooth:
    """Trains every weight of the U-Net in fp32, and with "text" those of the text encoder (Ruiz et al. 2022,
    "DreamBooth").

    With the word "" and captions this is plain fine-tuning.
    """

    method = "dreambooth"
    legend = ""

    def __init__(self, pipe: StableDiffusion, name: str, recipe: Recipe):
        self.pipe = pipe
        freeze(pipe)
        parts = {"unet": pipe.unet} if recipe.trains_unet else {}
        self.module = nn.ModuleDict(parts | ({"clip": pipe.clip} if "text" in recipe.targets else {}))
        pipe.clip.float()  # a pipeline generates in one precision, that of the text encoder
        self.module.float().requires_grad_(True)
        self.contexts = caption_encoder(pipe, "clip" in self.module, recipe.max_token_length)

    def measures(self) -> dict:
        return {}

    def warning(self) -> str | None:
        return None

    def save(self, path: Path, step: int, metadata: dict[str, str]) -> None:
        """Write the whole checkpoint in fp16."""
        networks = (self.pipe.clip, self.pipe.vae, self.pipe.unet)
        clip, vae, unet = (SimpleNamespace(state_dict=lambda part=part: half_state_dict(part)) for part in networks)
        save_checkpoint(path, clip, vae, unet, self.pipe.sizes, metadata | {"ss_steps": str(step)})

    def close(self) -> None:
        freeze(self.pipe)


Tuner = TextualInversion | LoraTraining | DreamBooth
METHODS: dict[str, type[Tuner]] = {"ti": TextualInversion, "lora": LoraTraining, "dreambooth": DreamBooth}


def freeze(pipe: StableDiffusion) -> None:
    for network in (pipe.clip, pipe.vae, pipe.unet):
        network.requires_grad_(False)


def half_state_dict(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.to(torch.float16) for key, tensor in network.state_dict().items()}


def matches_pattern(pattern: str, path: str) -> bool:
    return bool(pattern) and re.fullmatch(pattern, path) is not None


def initial_vectors(tokenizer: Tokenizer, clip: CLIPTextModel, words: str, count: int) -> Tensor:
    """Return (count, D) fp32: the vectors of `words`, in order; neighboring ones are averaged where there are more
    words than vectors.

    Raises UserError where `words` has no token.
    """
    ids = tokenizer.encode(words)
    if not ids:
        raise UserError(
            f"the initial words {words!r} contain no token: use words that describe the object, such as dog."
        )
    table = clip.embeddings.token_embedding
    vectors = table(torch.tensor(ids, device=table.weight.device)).detach().float().cpu()  # (tokens, D)
    starts = [i * len(ids) // count for i in range(count)]
    ends = [max(start + 1, (i + 1) * len(ids) // count) for i, start in enumerate(starts)]
    return torch.stack([vectors[start:end].mean(dim=0) for start, end in zip(starts, ends)])
