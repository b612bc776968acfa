"""A plan as a text table and as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dmole.planning.advice import Advice
from dmole.planning.hardware import Gpu
from dmole.planning.host import disk, host_memory
from dmole.planning.reckoning import GIB, TRAINING, Reckoning


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run reckoned for a GPU.

    Args:
        reckoning: The run.
        gpu: The GPU.
        usable: Bytes of it that may be used.
        hours: Hours of each phase.
        utilization: Fraction of the GPU's rate that the hours assume.
        advice: Changes for phases that do not fit.
    """

    reckoning: Reckoning
    gpu: Gpu
    usable: float
    hours: Mapping[str, float]
    utilization: float
    advice: Sequence[Advice]

    @property
    def fits(self) -> bool:
        """Whether every phase fits."""
        return all(phase.total <= self.usable for phase in self.reckoning.phases())

    def values(self) -> dict[str, Any]:
        """Return the plan as plain values; memory and disk in bytes."""
        reckoning = self.reckoning
        return {
            "base_model": reckoning.shape.name,
            "parameters": reckoning.shape.parameters,
            "expert_parameters": reckoning.experts.size.parameters,
            "experts": reckoning.experts.count,
            "gpu": self.gpu.name,
            "gpus": reckoning.setup.ranks,
            "usable_bytes": self.usable,
            "fits": self.fits,
            "gpu_memory": {
                phase.name: {"total": phase.total, **phase.parts} for phase in reckoning.phases()
            },
            "longest_training_step": self.longest,
            "host_memory": host_memory(reckoning),
            "disk": disk(reckoning),
            "hours": dict(self.hours),
            "advice": [vars(advice) for advice in self.advice],
        }

    @property
    def longest(self) -> float | None:
        """Bytes of a training step whose samples all have ``max_length`` tokens, if it is set."""
        run = self.reckoning
        limit = run.setup.max_length
        if limit is None or limit <= run.tokens or not run.setup.stages:
            return None
        lengths = replace(run.lengths, text=limit - run.lengths.images * run.image.tokens)
        found = Reckoning(run.shape, run.setup, lengths, run.image).phases()
        return next(phase.total for phase in found if phase.name == TRAINING)

    def text(self) -> str:
        """Return the plan as text."""
        return "\n".join(
            [*self._head(), "", *self._memory(), *self._advice(), "", *self._others(), *self._end()]
        )

    def _head(self) -> list[str]:
        reckoning, setup = self.reckoning, self.reckoning.setup
        shape, experts = reckoning.shape, reckoning.experts
        kind = setup.quantization or setup.dtype
        return [
            f"base model  {shape.name}: {_count(shape.parameters)} parameters, "
            f"{gib(reckoning.whole_base)} GiB in {kind}",
            f"experts     {experts.count} at the end, "
            f"{_count(experts.size.parameters)} parameters in training",
            f"GPUs        {setup.ranks} x {self.gpu.name}, {gib(self.usable)} GiB usable",
            f"sample      {reckoning.tokens} tokens, {reckoning.lengths.answer} of the answer, "
            f"{reckoning.load(1).patches} patches; batch {reckoning.batch} x "
            f"{setup.accumulate_grad_batches} x {setup.ranks}",
        ]

    def _memory(self) -> list[str]:
        rows = [("memory of a GPU, GiB", "total", "")]
        for phase in self.reckoning.phases():
            parts = [f"{name} {gib(size)}" for name, size in phase.parts.items() if size]
            mark = "" if phase.total <= self.usable else "  DOES NOT FIT"
            rows.append((f"  {phase.name}", gib(phase.total), ", ".join(parts) + mark))
        lines = [f"{name:<22}{total:>7}   {parts}".rstrip() for name, total, parts in rows]
        if self.longest is not None:
            note = f"a training step of samples of {self.reckoning.setup.max_length} tokens"
            lines.append(f"  {note}: {gib(self.longest)}")
        return lines

    def _advice(self) -> list[str]:
        lines = [
            f"  {advice.phase}: {advice.change}: {gib(advice.before)} -> {gib(advice.after)} GiB"
            + ("" if advice.fits else ", not enough")
            for advice in self.advice
        ]
        return ["", "to change, best first", *lines] if lines else []

    def _others(self) -> list[str]:
        reckoning = self.reckoning
        return [
            _line("host memory of a node, GiB", host_memory(reckoning), GIB),
            _line("disk of the run, GiB", disk(reckoning), GIB),
            _line(f"hours at {self.utilization:.0%} of the peak rate", self.hours, 1),
        ]

    def _end(self) -> list[str]:
        guessed = [
            f"{task.name} ({', '.join(task.assumed)})"
            for task in self.reckoning.setup.tasks
            if task.assumed
        ]
        if not guessed:
            return []
        return [f"sizes assumed for {'; '.join(guessed)}: --train_samples, --test_samples"]


def _line(name: str, values: Mapping[str, float], unit: float) -> str:
    parts = ", ".join(f"{what} {value / unit:,.1f}" for what, value in values.items())
    return f"{name}: {sum(values.values()) / unit:,.1f} ({parts})"


def _count(number: float) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def gib(size: float) -> str:
    """Return bytes as GiB, small ones with more decimals."""
    return f"{size / GIB:.1f}" if size >= GIB else f"{size / GIB:.2f}"
