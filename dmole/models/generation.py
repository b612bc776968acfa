"""How a base model generates answers.

``generate`` of transformers takes every setting from ``model.generation_config`` that a call does
not set, even if the call passes a config of its own. So that config is replaced: it has the token
ids of the model's folder and the settings of the run, and nothing else that the folder holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

GenerationValue = float | int | bool | list[int]
"""A setting of generation, a plain value."""


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_natural, value))


SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "repetition_penalty": (_positive, "a positive number"),
    "no_repeat_ngram_size": (_natural, "an integer of at least 0"),
    "min_new_tokens": (_natural, "an integer of at least 0"),
    "suppress_tokens": (_ids, "a list of token ids"),
    "begin_suppress_tokens": (_ids, "a list of token ids"),
    "length_penalty": (_number, "a number"),
    "early_stopping": (lambda value: isinstance(value, bool), "true or false"),
}
"""Settings of ``model.generation``: how a value is checked, and what it must be."""

_SAMPLING = "answers are stored and compared, so decoding is deterministic"
_CACHE = "the dynamic cache is used, since a static one took 1.14 times its CPU time"
_FOLDER = "it follows from the chat template and the folder of the base model"
ELSEWHERE = {
    **dict.fromkeys(("do_sample", "temperature", "top_k", "top_p", "min_p", "seed"), _SAMPLING),
    **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), _FOLDER),
    **dict.fromkeys(("cache_implementation", "cache_config", "compile_config"), _CACHE),
    "num_beams": "set model.beams",
    **dict.fromkeys(("max_new_tokens", "max_length"), "set max_new_tokens of the tasks"),
}
"""Arguments of ``generate`` that are no settings here, and the reason or the setting to use."""


def check_generation(settings: Mapping[str, Any], beams: int = 1) -> dict[str, GenerationValue]:
    """Return the settings of ``model.generation`` after a check.

    Args:
        settings: Settings by name, see `SETTINGS`.
        beams: Width of the beam search.

    Raises:
        ValueError: If a name is unknown, a value is not valid, or a setting of beam search is set
            without beams.
    """
    for name, value in settings.items():
        if name in ELSEWHERE:
            raise ValueError(f"model.generation takes no {name}: {ELSEWHERE[name]}")
        if name not in SETTINGS:
            raise ValueError(
                f"model.generation has no setting {name!r}, there are {', '.join(SETTINGS)}"
            )
        valid, text = SETTINGS[name]
        if not valid(value):
            raise ValueError(f"model.generation.{name} must be {text}, got {value!r}")
        if beams == 1 and name in ("length_penalty", "early_stopping"):
            raise ValueError(f"model.generation.{name} has no effect without model.beams above 1")
    return dict(settings)


def replace_generation_config(
    model: nn.Module,
    tokenizer: Any,
    end_token: str | None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Give a model a generation config with token ids and settings of the run alone.

    The token that ends an answer in training ends a generated answer too, whether or not the
    folder's generation config lists it. Other ends that the folder lists are kept.

    Args:
        model: A transformers model; its ``generation_config`` is replaced.
        tokenizer: Its tokenizer; None checks no token.
        end_token: The token that ends an answer in training; None adds none.
        settings: Settings of ``model.generation``, checked.

    Raises:
        ValueError: If the end token is not one token of the vocabulary, or the folder's generation
            config ends answers at a token that is text.
    """
    from transformers import GenerationConfig

    folder: Any = getattr(model, "generation_config", None)
    bos, pad = (getattr(folder, f"{kind}_token_id", None) for kind in ("bos", "pad"))
    ends = end_ids(model)
    if tokenizer is not None:
        _check_ends(tokenizer, ends)
        if end_token is not None and (end := _learned(tokenizer, end_token)) not in ends:
            ends.append(end)
        if tokenizer.pad_token_id is not None:  # decoding leaves out this one
            pad = tokenizer.pad_token_id
    ids = {"bos_token_id": bos, "eos_token_id": ends or None, "pad_token_id": pad}
    model.generation_config = GenerationConfig(use_cache=True, **ids, **(settings or {}))


def end_ids(model: nn.Module) -> list[int]:
    """Return the ids of the tokens that end a generated answer."""
    config: Any = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    if ids is None:
        return []
    return [int(i) for i in ids] if isinstance(ids, (list, tuple)) else [int(ids)]


def _check_ends(tokenizer: Any, ends: Sequence[int]) -> None:
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for end in ends:
        if 0 <= end < len(tokenizer) and end not in control:
            text = tokenizer.convert_ids_to_tokens(end)
            raise ValueError(
                f"eos_token_id of the generation config holds {end}, which is the text {text!r} in "
                "the tokenizer: answers would be cut there"
            )


def _learned(tokenizer: Any, token: str) -> int:
    end = tokenizer.convert_tokens_to_ids(token)
    if end is None or (end == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise ValueError(f"an answer ends with {token!r}, which is no token of the tokenizer")
    return int(end)
