"""The default settings of fine-tuning."""

import pytest

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.recipes import LARGE, METHODS, TINY, recipe_for
from sd.utils.errors import UserError


def test_a_word_starts_as_exactly_its_initializer(pipe):
    """One vector for each of its tokens, so that step 0 generates what those words generate."""
    tokens = len(pipe.tokenizer.encode("golden retriever"))
    assert tokens == 2
    assert recipe_for("ti", pipe, "w", init="golden retriever").vectors == 2
    assert recipe_for("ti", pipe, "w", init="golden retriever", vectors=5).vectors == 5
    assert recipe_for("ti", pipe, "w", init="dog").vectors == 1
    assert recipe_for("ti", pipe, "w", init="dog " * 100).vectors == 75  # all that fit into a prompt
    with pytest.raises(UserError, match="vectors must be"):
        recipe_for("ti", pipe, "w", vectors=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_small_model_and_a_large_one_have_recipes_of_their_own(method, pipe):
    small = recipe_for(method, pipe, "w")
    large = StableDiffusion(pipe.tokenizer, pipe.clip, pipe.vae, pipe.unet, pipe.sizes | {"image_size": 512})
    large = recipe_for(method, large, "w")
    assert (small.lr, small.steps) == (TINY[method]["lr"], TINY[method]["steps"])
    assert (large.lr, large.steps) == (LARGE[method]["lr"], LARGE[method]["steps"])
    assert (small.least_snr, large.least_snr) == (0.5, 0.0)  # v1-5 was trained with plain errors in eps
    assert (small.size, large.size) == (64, 512)
