"""Ranks that differ are found, with the name of what differs."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist
from two_ranks import free_port

from dmole.run.agreement import DisagreementError, check_agreement, check_start, difference

Texts = dict[str, dict[str, str]]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([{"g": {"lr": "3", "seed": "0"}}], "rank 1 has another lr: 3 against 1 of rank 0"),
        ([{"g": {"lr": "1", "seed": "0"}}, {"g": {"lr": "1"}}],
         "rank 2 has another seed: none against 0 of rank 0"),
        ([{"g": {"lr": "1", "seed": "0", "b": "x", "c": "y", "d": "z", "e": "q"}}],
         "rank 1 has another b: x against none of rank 0, another c: y against none of rank 0, "
         "another d: z against none of rank 0, and 1 more"),
        ([{"g": {"lr": "1", "seed": "0"}, "h": {"data": "9"}}],
         "rank 1 has another data: 9 against 7 of rank 0"),
    ],
)  # fmt: skip
def test_the_message_names_the_rank_and_both_values(others: list[Texts], message: str) -> None:
    first = {"g": {"lr": "1", "seed": "0"}, "h": {"data": "7"}}
    ranks = [first, *({"h": {"data": "7"}} | texts for texts in others)]
    ranks = [{key: texts[key] for key in ("g", "h")} for texts in ranks]
    assert difference([(texts, "") for texts in ranks]) == message


def test_a_rank_that_cannot_read_its_part_is_named() -> None:
    assert difference([({}, ""), ({}, "a.json is missing")]) == "rank 1 failed: a.json is missing"


def on_rank(rank: int, port: str, act: Callable[[int], Any], answers: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        answers.put((rank, act(rank)))
    except DisagreementError as error:
        answers.put((rank, str(error)))


def on_two_ranks(act: Callable[[int], Any]) -> list[Any]:
    context = multiprocessing.get_context("fork")
    answers, port = context.Queue(), free_port()
    ranks = [context.Process(target=on_rank, args=(r, port, act, answers)) for r in (0, 1)]
    for process in ranks:
        process.start()
    found = dict(answers.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join()
    return [found[0], found[1]]


def test_all_ranks_raise_the_same_error() -> None:
    said = on_two_ranks(lambda rank: check_agreement(lambda: {"g": {"seed": str(rank)}}, "here"))
    assert said == ["rank 1 has another seed: 1 against 0 of rank 0, here"] * 2
    assert on_two_ranks(lambda rank: check_agreement(lambda: {"g": {"seed": "5"}})) == [None, None]


def test_an_error_on_one_rank_is_raised_on_all() -> None:
    def values(rank: int) -> Texts:
        if rank == 1:
            raise ValueError("a.json is\nbroken")
        return {}

    said = on_two_ranks(lambda rank: check_agreement(lambda: values(rank)))
    assert said == ["rank 1 failed: a.json is broken"] * 2


def test_a_single_process_compares_nothing() -> None:
    check_start(None, None)  # type: ignore[arg-type]
