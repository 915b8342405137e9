import torch

from sd.clip import CLIPTextModel
from sd.tokenizer import Tokenizer


def test_puppy_reads_as_cat_and_the_rest_as_before(exercise):
    torch.manual_seed(0)
    tokenizer, clip = Tokenizer(), CLIPTextModel(width=32, layers=2, heads=2)

    def states(text):
        with torch.no_grad():
            return clip(tokenizer(text))

    table = clip.embeddings.token_embedding.weight
    cat = table[tokenizer.encode("cat")].detach().clone()
    before_cat, before_dog = states("a red cat"), states("a red dog")
    assert not torch.allclose(states("a red puppy"), before_cat)
    exercise.swap_word(tokenizer, clip, "puppy", cat)
    assert torch.allclose(states("a red puppy"), before_cat)
    assert torch.allclose(states("a red cat"), before_cat)
    assert torch.allclose(states("a red dog"), before_dog)
