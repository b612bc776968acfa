"""The tokenizer of the tiny model: byte-level BPE with one token for every word of the scenes."""

from __future__ import annotations

import random
import re
from typing import Any

from dmole.demo.world.questions import ask_all
from dmole.demo.world.scenes import random_scene
from dmole.demo.world.world import COLOR_NAMES, DIGITS, LATTICE, LETTERS, SHAPES

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:")
PAD, BOS, EOS, IMAGE, USER, ASSISTANT = range(len(SPECIAL_TOKENS))
LOCATION_TOKENS = tuple(f"<{axis}{edge}>" for axis in "xy" for edge in range(LATTICE + 1))
VOCABULARY_LIMIT = 1000

_EXTRA = """
zero one two three four five six seven eight nine ten eleven twelve yes no a an the is are there
of in on at from and or to with left right above below top middle bottom center what where which
how many color shape shapes text letter digit number word locate image picture small large big
tiny size same different not none object objects describe caption read written see does do has
scarlet emerald azure gold violet amber ebony rose ivory teal brown gray cyan disc block wedge
spark plus box ring frame outline hollow filled solid striped stripes dotted noise rough dark
bright light ground count total pair single trio dozen north south east west up down corner side
area pixel point reply say tell name give code class kind type it this that you look find show
paint drawn sign spell short long first second third last next near far inside edge line circle
square triangle star cross rectangle red green blue yellow purple orange black pink white
contain present task answer question use as lie part list all by only
"""
EXTRA_WORDS = tuple(_EXTRA.split())
"""Words that the scenes do not use but a later task may; each is one token."""


def build_tokenizer() -> Any:
    """Return the trained tokenizer.

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
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens(
        [AddedToken(token, lstrip=True, rstrip=True, normalized=False) for token in LOCATION_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[PAD],
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
    )


def _corpus() -> list[str]:
    rng = random.Random(0)
    lines = []
    for _ in range(2000):
        questions = ask_all(rng, random_scene(rng))
        lines += [re.sub(r"<[xy]\d+>", " ", f"{q.text} {q.answer}") for q in questions]
    lines += [" ".join(EXTRA_WORDS)] * 300
    lines += [" ".join(COLOR_NAMES + SHAPES + DIGITS + LETTERS)] * 300
    return lines
