"""CLIP's image encoder as a file of its own: what an IP-Adapter reads an image with.

The layout is transformers', of a `CLIPVisionModelWithProjection` or of a whole CLIP, of which the text tower is left
out: a folder with its config.json, or a weight file, beside which the config.json may lie.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.checkpoints.completeness import summarize_keys
from sd.checkpoints.config import block_numbers, skip_init
from sd.checkpoints.diffusers_format import read_network
from sd.checkpoints.foreign_files import read_json_file, reads_file
from sd.checkpoints.weight_files import read_weights
from sd.clip import MLP
from sd.optimization.patching import LayerPatch, apply_patch
from sd.utils.errors import UserError
from sd.vision.clip_vision import CLIPVisionModel

USE_ANOTHER = "give OpenCLIP's ViT-H/14 in transformers' layout, the image_encoder of the IP-Adapters for v1-5"
POSITION_IDS = "vision_model.embeddings.position_ids"  # they only count
LARGEST = 1024  # pixels of a side
KNOWN = {1280: (16, "gelu")}  # width of ViT-H/14: its heads and GELU, which no tensor's shape tells


class ExactGELU(LayerPatch, MLP):
    """An MLP with the exact GELU, with which OpenCLIP trains."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, width). Returns (B, N, width)."""
        return self.fc2(F.gelu(self.fc1(x)))


class ImageEncoder(nn.Module):
    """A vision tower and its projection."""

    def __init__(self, vision: CLIPVisionModel, projection_dim: int):
        super().__init__()
        self.vision_model = vision
        self.visual_projection = nn.Linear(vision.post_layernorm.weight.shape[0], projection_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, S, S) from `clip_pixels`. Returns the image's embedding, (B, projection_dim)."""
        return self.visual_projection(self.vision_model(pixels))

    def patch_states(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, S, S). Returns all patches' states before the last layer, (B, 1 + patches, width)."""
        vision = self.vision_model
        return vision.encoder(vision.pre_layrnorm(vision.embeddings(pixels)), causal=False, skip_last=1)


def infer_vision_config(vision: dict[str, Tensor]) -> dict[str, int]:
    """Infer a vision tower's arguments, but for the heads, from its tensors by `CLIPVisionModel`'s names."""
    width, _, patch, _ = vision["embeddings.patch_embedding.weight"].shape
    patches = vision["embeddings.position_embedding.weight"].shape[0] - 1
    layers = len(block_numbers(r"encoder\.layers\.(\d+)\.", vision))
    return {"image_size": round(patches**0.5) * patch, "patch_size": patch, "width": width, "layers": layers}


@reads_file
def load_image_encoder(path: str | Path, device: torch.device, dtype: torch.dtype) -> ImageEncoder:
    """Load an image encoder from a folder or a file, in eval mode and without gradients.

    Raises UserError for another kind of file, and for one of a size that is not known without its config.json.
    """
    path = Path(path).expanduser()
    content = read_network(path)[0] if path.is_dir() else read_weights(path).content
    entries = content.items() if isinstance(content, dict) else ()
    tensors = {key: one for key, one in entries if isinstance(one, Tensor) and key != POSITION_IDS}
    state = {key: one for key, one in tensors.items() if key.startswith(("vision_model.", "visual_projection."))}
    if "visual_projection.weight" not in state:
        raise UserError(f"{path} is no image encoder: {USE_ANOTHER}.")
    tower = {key.removeprefix("vision_model."): one for key, one in state.items()}
    try:
        sizes = infer_vision_config(tower)
        heads, gelu = read_heads(path, sizes["width"])
        if sizes["width"] % heads or sizes["layers"] == 0 or sizes["image_size"] > LARGEST:
            raise ValueError("no such tower")
        with torch.device("meta"), skip_init():
            encoder = ImageEncoder(CLIPVisionModel(**sizes, heads=heads), state["visual_projection.weight"].shape[0])
    except UserError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path} is not a whole image encoder: {USE_ANOTHER}.") from error
    expected = encoder.state_dict()
    wrong = [key for key, place in expected.items() if key not in state or state[key].shape != place.shape]
    if wrong := wrong + [key for key in state if key not in expected]:
        raise UserError(f"{path} is another image encoder (it differs in {summarize_keys(wrong)}): {USE_ANOTHER}.")
    encoder.load_state_dict({key: state[key].to(device, dtype) for key in expected}, strict=True, assign=True)
    for layer in encoder.vision_model.encoder.layers if gelu == "gelu" else []:
        apply_patch(layer.mlp, ExactGELU)
    return encoder.requires_grad_(False).eval()


def read_heads(path: Path, width: int) -> tuple[int, str]:
    """Return the number of attention heads and the GELU of an encoder: its config.json's, or those of a known width."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    config = read_json_file(file) if file.is_file() else {}
    about = config.get("vision_config", config)
    if isinstance(about, dict) and config.get("model_type") in ("clip", "clip_vision_model"):
        heads, gelu = about.get("num_attention_heads", 12), about.get("hidden_act", "quick_gelu")  # transformers' own
    elif width in KNOWN:
        heads, gelu = KNOWN[width]
    else:
        raise UserError(f"{path} is not ViT-H/14, and no config.json of it lies beside it: {USE_ANOTHER}.")
    if not isinstance(heads, int) or heads < 1 or gelu not in ("gelu", "quick_gelu"):
        raise UserError(f"{file} has heads or a GELU that are not supported ({heads!r}, {gelu!r}): {USE_ANOTHER}.")
    return heads, gelu
