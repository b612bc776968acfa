"""Packing of many questions about one image into one sequence, and the loss on the answers."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dmole.demo.world.questions import Question
from dmole.demo.world.world import Thing
from recipes.tiny.architecture import PATCHES
from recipes.tiny.supervision import HIDDEN_SCORE, Gaze
from recipes.tiny.tokenizer import ASSISTANT, BOS, EOS, IMAGE, PAD, USER

IGNORED = -100
END_WEIGHT = 0.2
PREFIX = PATCHES + 1
SLOW_KINDS = {"color": 2, "exist": 2, "relation": 1, "position": 1}
"""Kinds of questions that are learned slowly, and how many of each a sequence always has."""


@dataclass
class Packed:
    """A batch of packed sequences; all tensors are ``(images, tokens)`` unless noted.

    Args:
        input_ids: Token ids.
        labels: Target of each token, -100 for tokens that are not part of an answer.
        weights: Weight of each token in the loss.
        position_ids: Positions; every block starts right after the image.
        attention_mask: Additive mask of shape ``(images, 1, tokens, tokens)``.
        blocks: Number of the block of each token from 1; 0 for the image, -1 for padding.
        kinds: Kind of question of each block, by image.
        gazes: Attention targets of the supervised heads.
    """

    input_ids: Tensor
    labels: Tensor
    weights: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    blocks: Tensor
    kinds: list[list[str]]
    gazes: list[Gaze]


@dataclass(frozen=True)
class Block:
    """One question and its answer as token ids."""

    question: list[int]
    answer: list[int]
    gaze: tuple[Thing, ...] = ()
    kind: str = "repeat"


class Packer:
    """Turn questions into packed sequences.

    A block attends only to the image and itself, at the positions of a sequence with a single
    question, exactly as in generation.

    Args:
        tokenizer: The tokenizer of the model.
        extra_words: Words for later tasks, which `copy_block` repeats.
    """

    def __init__(self, tokenizer: Any, extra_words: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.extra_words = extra_words
        self.cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        if text not in self.cache:
            self.cache[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.cache[text]

    def block(self, question: Question) -> Block:
        """Return the block of a question."""
        text, answer = self.ids(question.text), self.ids(question.answer)
        return Block(text, answer, question.things, question.kind)

    def copy_block(self, rng: random.Random) -> Block:
        """Return ``repeat : w1 .. wn`` with words from the whole vocabulary.

        Without such blocks, the probability of tokens that the scenes do not use falls to zero, and
        a later task that answers with them hardly learns.
        """
        words: list[int] = []
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.5:
                words += self.ids(rng.choice(self.extra_words))
            else:
                words.append(rng.randrange(ASSISTANT + 1, len(self.tokenizer)))
        return Block(self.ids("repeat :") + words, words)

    def pack(self, blocks_of: Sequence[Sequence[Block]]) -> Packed:
        """Return one sequence per image."""
        rows, gazes = [], []
        for row, blocks in enumerate(blocks_of):
            sequence = _Sequence()
            for number, block in enumerate(blocks, 1):
                token = sequence.append(block, number)
                if block.gaze:
                    # both heads attend to a single thing, or one head to each of two, in order
                    for head, thing in enumerate((block.gaze[0], block.gaze[-1])):
                        gazes.append(Gaze(row, token, head, thing))
            rows.append(sequence)
        return _pad(rows, gazes, [[block.kind for block in blocks] for blocks in blocks_of])


class _Sequence:
    """Token ids, labels, weights, block numbers and positions of one image."""

    def __init__(self) -> None:
        self.ids = [BOS] + [IMAGE] * PATCHES
        self.labels = [IGNORED] * PREFIX
        self.weights = [0.0] * PREFIX
        self.blocks = [0] * PREFIX
        self.positions = list(range(PREFIX))

    def append(self, block: Block, number: int) -> int:
        """Add a block; return the index of its last prompt token."""
        prompt = [USER, *block.question, ASSISTANT]
        size = len(block.answer)
        weight = size**-0.5  # keeps long answers from dominating one-word answers
        self.ids += [*prompt, *block.answer, EOS]
        self.labels += [IGNORED] * len(prompt) + [*block.answer, EOS]
        self.weights += [0.0] * len(prompt) + [weight] * size + [END_WEIGHT * weight]
        length = len(prompt) + size + 1
        self.blocks += [number] * length
        self.positions += range(PREFIX, PREFIX + length)
        return len(self.ids) - size - 2


def _pad(rows: Sequence[_Sequence], gazes: list[Gaze], kinds: list[list[str]]) -> Packed:
    def stack(lists: Sequence[Sequence[float]], fill: float, dtype: torch.dtype) -> Tensor:
        longest = max(map(len, lists))
        padded = [[*values, *[fill] * (longest - len(values))] for values in lists]
        return torch.tensor(padded, dtype=dtype)

    ids = stack([row.ids for row in rows], PAD, torch.long)
    blocks = stack([row.blocks for row in rows], -1, torch.long)
    tokens = ids.shape[1]
    visible = (blocks[:, :, None] == blocks[:, None, :]) | (blocks[:, None, :] == 0)
    visible &= torch.ones(tokens, tokens, dtype=torch.bool).tril()
    mask = torch.zeros(visible.shape).masked_fill(~visible, HIDDEN_SCORE)
    return Packed(
        input_ids=ids,
        labels=stack([row.labels for row in rows], IGNORED, torch.long),
        weights=stack([row.weights for row in rows], 0.0, torch.float),
        position_ids=stack([row.positions for row in rows], 0, torch.long),
        attention_mask=mask[:, None],
        blocks=blocks,
        kinds=kinds,
        gazes=gazes,
    )


def choose_questions(
    rng: random.Random, questions: Sequence[Question], count: int
) -> list[Question]:
    """Return `count` questions: first the slow kinds, then one of each kind in turn."""
    kinds: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        kinds[question.kind].append(question)
    for same in kinds.values():
        rng.shuffle(same)
    chosen = [q for kind, most in SLOW_KINDS.items() for q in kinds.pop(kind, [])[:most]]
    while len(chosen) < count and kinds:
        for kind in rng.sample(sorted(kinds), len(kinds)):
            chosen.append(kinds[kind].pop())
            if not kinds[kind]:
                del kinds[kind]
    return chosen[:count]


@dataclass(frozen=True)
class AnswerResult:
    """Loss of the answers, and the share of exact ones by kind of question, 0 to 1.

    An answer is exact if each of its tokens and its end is the most probable one, given those
    before it. These are the answers of greedy generation.
    """

    loss: Tensor
    exact: dict[str, float]


def answer_loss(model: Any, patches: Tensor, packed: Packed) -> AnswerResult:
    """Return the weighted cross-entropy of the answers, given projected patches."""
    embeddings = model.get_input_embeddings()(packed.input_ids)
    is_image = (packed.input_ids == IMAGE)[..., None]
    embeddings = embeddings.masked_scatter(is_image, patches.reshape(-1, patches.shape[-1]))
    hidden = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        use_cache=False,
    ).last_hidden_state
    targets = packed.labels[:, 1:]
    answered = targets != IGNORED
    logits = model.lm_head(hidden[:, :-1][answered])
    each = functional.cross_entropy(logits, targets[answered], reduction="none")
    weights = packed.weights[:, 1:][answered]
    right = torch.ones_like(targets, dtype=torch.bool)
    right[answered] = logits.argmax(-1) == targets[answered]
    return AnswerResult((each * weights).sum() / weights.sum(), _exact(packed, right))


def _exact(packed: Packed, right: Tensor) -> dict[str, float]:
    """Return the share of blocks of each kind without a wrong token ``(images, tokens - 1)``."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for kinds, blocks, row in zip(packed.kinds, packed.blocks[:, 1:], right, strict=True):
        wrong = set(blocks[~row].tolist())
        for number, kind in enumerate(kinds, 1):
            by_kind[kind].append(number not in wrong)
    return {kind: sum(exact) / len(exact) for kind, exact in by_kind.items()}
