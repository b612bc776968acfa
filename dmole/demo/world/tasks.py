"""Samples of the synthetic tasks, named by addresses such as ``synthetic://paint/train?size=9``."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from dmole.data.sample import IMAGE_PLACEHOLDER, ArrayImage, Sample, Turn
from dmole.demo.world.generators import GENERATORS
from dmole.demo.world.graph_tasks import GRAPH_OPTIONS, GRAPH_TASKS, graph_example
from dmole.demo.world.words import Example

SCHEME = "synthetic"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Address:
    """The parts of ``synthetic://<generator>/<split>?size=N[&seed=S]``.

    Args:
        generator: A name of `GENERATORS` or `GRAPH_TASKS`.
        split: A name of `SPLITS`.
        size: Number of samples.
        seed: Seed of the samples.
        options: Further query keys, those of `GRAPH_OPTIONS` for the graph tasks.
    """

    generator: str
    split: str
    size: int
    seed: int = 0
    options: dict[str, int] = field(default_factory=dict)


def parse_address(uri: str) -> Address:
    """Return the parts of an address.

    Raises:
        ValueError: If the URI is not a synthetic address, the generator, the split or a query key
            is unknown, or a number is missing, malformed or out of range.

    Example:
        >>> parse_address("synthetic://paint/train?size=100")
        Address(generator='paint', split='train', size=100, seed=0, options={})
    """
    parts = urlsplit(uri)
    if parts.scheme != SCHEME:
        raise ValueError(
            f"{uri!r} is not an address of the form {SCHEME}://<generator>/<split>?size=N"
        )
    split = parts.path.removeprefix("/")
    _check_choice(uri, "generator", parts.netloc, sorted([*GENERATORS, *GRAPH_TASKS]))
    _check_choice(uri, "split", split, SPLITS)
    options = GRAPH_OPTIONS if parts.netloc in GRAPH_TASKS else {}
    query: dict[str, int] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        _check_choice(uri, "query key", key, ("size", "seed", *options))
        if key in query:
            raise ValueError(f"{uri}: query key {key!r} is given twice")
        if not value.isascii() or not value.isdigit():
            raise ValueError(f"{uri}: {key} must be a whole number, got {value!r}")
        query[key] = int(value)
        if query[key] > options.get(key, query[key]):
            raise ValueError(f"{uri}: {key} must be at most {options[key]}, got {value}")
    if query.get("size", 0) < 1:
        raise ValueError(f"{uri}: size=N with N of at least 1 is needed")
    chosen = {key: query.pop(key) for key in options if key in query}
    return Address(parts.netloc, split, **query, options=chosen)


def _check_choice(uri: str, what: str, name: str, choices: Iterable[str]) -> None:
    if name not in choices:
        raise ValueError(f"{uri}: unknown {what} {name!r}; known are {', '.join(choices)}")


def synthetic_samples(uri: str) -> list[Sample]:
    """Return the samples of an address; the same address gives the same samples.

    A sample depends only on generator, split, seed, options and its index: a longer list begins
    with the shorter one, and splits share neither ids nor random streams. The random stream does
    not depend on the options, which show the same graphs in other forms. No graph is in two splits.

    Args:
        uri: ``synthetic://<generator>/<split>?size=N[&seed=S]``.

    Returns:
        Training samples with the answer as assistant turn; samples of other splits end with the
        question and hold the accepted answers as references.

    Raises:
        ValueError: If the address is malformed.
    """
    address = parse_address(uri)
    return [_sample(address, index) for index in range(address.size)]


def _sample(address: Address, index: int) -> Sample:
    name = f"{address.generator}-{address.split}-{address.seed}-{index}"
    example = _example(address, random.Random(f"task-{name}"))
    name += "".join(f"-{key}{value}" for key, value in sorted(address.options.items()))
    image = (ArrayImage(example.pixels),)
    user = Turn("user", f"{IMAGE_PLACEHOLDER}\n{example.question}")
    if address.split == "train":
        return Sample(name, (user, Turn("assistant", example.answers[0])), image)
    return Sample(name, (user,), image, example.answers)


def _example(address: Address, rng: random.Random) -> Example:
    if address.generator in GRAPH_TASKS:
        generate = GRAPH_TASKS[address.generator]
        return graph_example(generate, rng, address.split, **address.options)
    return GENERATORS[address.generator](rng)
