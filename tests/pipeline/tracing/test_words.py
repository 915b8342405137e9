"""The words of a prompt, and their places among the text vectors."""

import pytest
import torch

from sd.pipeline.tracing.words import MAX_WORDS, PADDING, START, Word, contexts_without, find_words, membership
from sd.pipeline.tracing.words import without_word as without
from sd.prompts.weighting import encode_prompt, split_chunks
from sd.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


def words_of(tokenizer, prompt):
    return find_words(tokenizer, split_chunks(tokenizer, prompt))


def test_tokens_of_one_word_belong_together(tokenizer):
    assert words_of(tokenizer, "a snowglobe, (Red:1.2)") == [
        Word("a", (1,)),
        Word("snowglobe", (2, 3)),
        Word(",", (4,)),
        Word("red", (5,)),
    ]


def test_an_embedding_is_one_word_and_a_second_chunk_counts_on():
    tokenizer = Tokenizer()
    tokenizer.add_token("<my-dog>", vectors=3)
    found = words_of(tokenizer, "a <my-dog> BREAK here")
    assert found == [Word("a", (1,)), Word("<my-dog>", (2, 3, 4)), Word("here", (78,))]


def test_only_signs_are_signs(tokenizer):
    assert [word.is_sign for word in words_of(tokenizer, "apple , é 7")] == [False, True, False, False]


@pytest.mark.parametrize("prompt", ["", "  ", "BREAK"])
def test_an_empty_prompt_has_no_words(tokenizer, prompt):
    assert words_of(tokenizer, prompt) == []


def test_each_vector_belongs_to_one_entry(tokenizer):
    words = words_of(tokenizer, "red apple")
    names, member = membership(words, 154)  # as with a negative prompt of two chunks
    assert names == [START, "red", "apple", PADDING]
    assert torch.equal(member.sum(1), torch.ones(154))
    assert member.sum(0).tolist() == [2, 1, 1, 150]


def test_more_words_than_are_shown_share_an_entry(tokenizer):
    words = words_of(tokenizer, " ".join(["apple"] * (MAX_WORDS + 5)))
    names, member = membership(words, 77)
    assert len(names) == MAX_WORDS + 3
    assert member.sum(0)[-2] == 5


@pytest.mark.parametrize("emphasis", ["original", "ignore"])
def test_without_a_word_the_context_is_that_of_the_shorter_prompt(pipe, emphasis):
    chunks = split_chunks(pipe.tokenizer, "a (red:1.4) snowglobe BREAK in winter")
    words = find_words(pipe.tokenizer, chunks)
    cond = torch.arange(231.0)[None, :, None].expand(1, -1, 64)  # three chunks, of which the last one is padding
    found = contexts_without(pipe.tokenizer, pipe.clip, chunks, words[2:4], cond, 1, emphasis)
    for context, prompt in zip(found, ("a (red:1.4) BREAK in winter", "a (red:1.4) snowglobe BREAK winter")):
        assert torch.equal(context[None, :154], encode_prompt(pipe.tokenizer, pipe.clip, prompt, 1, emphasis))
        assert torch.equal(context[154:], cond[0, 154:])


def test_a_word_is_taken_out_of_its_chunk(tokenizer):
    chunks = split_chunks(tokenizer, "a snowglobe BREAK snowglobe")
    word = find_words(tokenizer, chunks)[2]
    assert without(chunks, word) == [chunks[0], []]
