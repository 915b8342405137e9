"""Exercise 4: a word is a row of a table."""

from torch import Tensor

from sd.clip import CLIPTextModel
from sd.tokenizer import Tokenizer


def swap_word(tokenizer: Tokenizer, clip: CLIPTextModel, word: str, vectors: Tensor) -> object:
    """Give a word of the vocabulary another vector, so that the model reads it as another word.

    word: one that is a single token, such as "puppy"; `tokenizer.encode(word)` returns its id in a list. vectors:
    (1, D), such as the row of "cat". The table is `clip.embeddings.token_embedding.weight`, (49408, D). PyTorch lets
    you write to a row of it inside of `with torch.no_grad():`. The return value is not used.

    The project's own: `inject` in sd/adapters/textual_inversion.py, which leaves the table as it is.
    """
    raise NotImplementedError("write this function")
