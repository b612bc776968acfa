"""Generated samples: the only file in `dmole.data` that uses the synthetic worlds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dmole.data.address import Address, limited
from dmole.data.formats import Split
from dmole.data.sample import Sample, Turn
from dmole.data.sequences import SampleList
from dmole.data.task import Task

_SCHEME = "synthetic://"


@dataclass(frozen=True)
class GeneratedSource:
    """The samples of a synthetic task.

    Args:
        task: The task.
        split: The split.
        origin: Address of the samples.
    """

    task: Task
    split: Split
    origin: Address

    @property
    def address(self) -> str:
        """The address in the task, without a limit."""
        return self.origin.base

    @property
    def size(self) -> int:
        """Number of samples.

        Raises:
            ValueError: If the address is malformed.
        """
        # tasks that read files do not need to load the generators
        from dmole.demo.world.tasks import parse_address

        size = parse_address(self.address).size
        return size if self.origin.limit is None else min(size, self.origin.limit)

    def samples(self) -> SampleList:
        """Return the samples.

        Raises:
            ValueError: If the address is malformed, or its split has no answers to train on.
        """
        from dmole.demo.world.tasks import synthetic_samples

        samples = synthetic_samples(self.address)
        if self.split == "test":
            samples = [_as_question(sample) for sample in samples]
        elif any(sample.turns[-1].role != "assistant" for sample in samples):
            raise ValueError(f"{self.address}: its split has no answers to train on")
        part = limited(iter(enumerate(samples)), len(samples), self.size)
        return SampleList([_with_suffix(sample, self.task.prompt_suffix) for _, sample in part])


def is_generated(address: str) -> bool:
    """Return whether an address is synthetic."""
    return address.startswith(_SCHEME)


def _as_question(sample: Sample) -> Sample:
    """Turn a training sample into a test sample, as for conversations in files."""
    if sample.turns[-1].role != "assistant":
        return sample
    return replace(sample, turns=sample.turns[:-1], references=(sample.turns[-1].text,))


def _with_suffix(sample: Sample, suffix: str) -> Sample:
    turns = tuple(
        Turn(turn.role, turn.text + suffix) if turn.role == "user" else turn
        for turn in sample.turns
    )
    return replace(sample, turns=turns) if suffix else sample
