"""The tokenizer of a base model: byte-level BPE with one token for every word of its world."""

from __future__ import annotations

import random
import re
from typing import Any

from dmole.demo.world.world import LATTICE
from recipes.tiny.worlds import World

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:")
PAD, BOS, EOS, IMAGE, USER, ASSISTANT = range(len(SPECIAL_TOKENS))
LOCATION_TOKENS = tuple(f"<{axis}{edge}>" for axis in "xy" for edge in range(LATTICE + 1))
VOCABULARY_LIMIT = 1000


def build_tokenizer(world: World) -> Any:
    """Return the trained tokenizer of a world.

    The token of a word, letter or digit includes the leading space, so it is the same everywhere,
    and a number is written as its digits (``4 7``).

    Returns:
        A `PreTrainedTokenizerFast`; ids 0 to 5 are pad, begin, end, image, user and assistant.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [
        AddedToken(token, special=True, lstrip=True, rstrip=True, normalized=False)
        for token in SPECIAL_TOKENS
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_LIMIT,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(world), trainer)
    tokenizer.add_tokens(
        [AddedToken(token, lstrip=True, rstrip=True, normalized=False) for token in LOCATION_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[PAD],
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
    )


def _corpus(world: World) -> list[str]:
    rng = random.Random(0)
    lines = []
    for _ in range(2000):
        questions = world.ask(rng, world.scene(rng))
        lines += [re.sub(r"<[xy]\d+>", " ", f"{q.text} {q.answer}") for q in questions]
    lines += [" ".join(world.extra_words)] * 300
    lines += [" ".join(world.names)] * 300
    return lines
