import pytest
import torch
from reference_models import TINY, peer_text, randomize, relative_error
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel
from transformers.image_utils import PILImageResampling

from sd.clip import CLIPTextModel
from sd.tokenizer import Tokenizer
from sd.vision.clip_vision import CLIP, CLIPVisionModel, clip_pixels

PROMPTS = ["", "a red apple", "an astronaut " * 60]
# fp32 holds 7 digits; twelve layers of sums in another order cost one or two of them.
TOLERANCE = 1e-5


@pytest.mark.parametrize("sizes", [TINY["clip"], pytest.param({}, marks=pytest.mark.slow)], ids=["tiny", "v1-5"])
def test_text_states_equal_transformers(sizes):
    ours = randomize(CLIPTextModel(**sizes), seed=1)
    peer = peer_text(ours, **sizes)
    tokens = Tokenizer()(PROMPTS)
    with torch.no_grad():
        theirs = peer(tokens, output_hidden_states=True)
        assert relative_error(ours(tokens), theirs.last_hidden_state) < TOLERANCE
        norm = getattr(peer, "text_model", peer).final_layer_norm
        assert relative_error(ours(tokens, clip_skip=2), norm(theirs.hidden_states[-2])) < TOLERANCE


def test_a_word_does_not_change_what_stands_before_it():
    model = randomize(CLIPTextModel(**TINY["clip"]), seed=1)
    with torch.no_grad():
        one, other = model(Tokenizer()(["a red apple", "a red house"]))
    assert torch.equal(one[:3], other[:3])
    assert not torch.allclose(one[3], other[3])


def test_both_towers_equal_transformers():
    text, vision = CLIPTextModel(**TINY["clip"]), CLIPVisionModel(32, 8, width=64, layers=2, heads=4)
    ours = randomize(CLIP(text, vision, projection_dim=48), seed=2)
    config = CLIPConfig(
        text_config=dict(hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4),
        vision_config=dict(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        ),
        projection_dim=48,
    )
    peer = CLIPModel(config).eval()
    missing, unexpected = peer.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert all("position_ids" in key for key in missing)
    tokens, pixels = Tokenizer()(PROMPTS), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        theirs = peer(input_ids=tokens, pixel_values=pixels)
        assert relative_error(ours.encode_text(tokens), theirs.text_embeds) < TOLERANCE
        assert relative_error(ours.encode_image(pixels), theirs.image_embeds) < TOLERANCE


def test_pixels_equal_transformers_processor():
    image = torch.randint(60, 196, (3, 90, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, resample=PILImageResampling.BICUBIC
    )
    theirs = torch.as_tensor(processor(image.permute(1, 2, 0).numpy(), return_tensors="np")["pixel_values"])
    ours = clip_pixels(image[None] / 127.5 - 1, 32)
    # The peer rounds to 8 bits twice, after resizing each way: at most 1.3 / 255 in all, over a deviation of 0.26.
    assert (ours - theirs).abs().max() < 1.3 / 255 / 0.26
