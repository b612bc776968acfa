"""Starts a new expert from an adapter on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from dmole.allocation.initializers.base import Initializer, NewLinear, Values

if TYPE_CHECKING:
    from dmole.experts.shape import ExpertShape


class AdapterInitializer(Initializer):
    """Sets ``A`` and ``B`` to those of a LoRA adapter in the layout of PEFT.

    Unlike with the other initializers, the expert changes the output from the start. If the
    adapter has another scaling ``alpha / rank``, its ``B`` is multiplied by the quotient of both.
    Reads no samples.

    The adapter must be on the same linears as the expert, with the same ranks.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        expert: Name of the only expert that starts from the adapter; None for every new one.

    Raises:
        ValueError: If ``folder`` is empty.
    """

    def __init__(self, folder: str, expert: str | None = None) -> None:
        super().__init__()
        if not folder:
            raise ValueError("AdapterInitializer: folder must name a folder")
        self.folder = folder
        self.expert = expert
        self._adapter: tuple[dict[str, ExpertShape], dict[str, Tensor]] | None = None

    def check_files(self) -> None:
        """Read the adapter; see :meth:`Initializer.check_files`."""
        self._read()

    def check(self, expert: str, ranks: Mapping[str, int]) -> None:
        """Refuse an adapter that does not fit an expert; see :meth:`Initializer.check`.

        Raises:
            ValueError: If a file is missing or damaged, a number is not finite, or linears or ranks
                differ; names the folder.
        """
        if not self._starts(expert):
            return
        shapes, _ = self._read()
        for path in sorted(ranks.keys() ^ shapes.keys()):
            which = "the expert" if path in ranks else "the adapter"
            raise ValueError(self._refusal(expert, f"only {which} is on linear {path}"))
        for path, rank in ranks.items():
            if shapes[path].rank != rank:
                ours = f"{shapes[path].rank} in the adapter, {rank} in the expert"
                raise ValueError(self._refusal(expert, f"linear {path} has rank {ours}"))

    def start(self, linear: NewLinear, measured: Tensor | None) -> Values:
        """Return the adapter's tensors.

        Raises:
            ValueError: If the linear has another size in the adapter; names the folder.
        """
        if not self._starts(linear.expert):
            return Values(linear.down)
        shapes, tensors = self._read()
        down, up = (tensors.get(f"{linear.path}.{part}") for part in ("lora_a", "lora_b"))
        if down is None or up is None:
            missing = "lora_A" if down is None else "lora_B"
            raise ValueError(self._refusal(linear.expert, f"linear {linear.path} lacks {missing}"))
        expected = linear.down.shape, (linear.out_features, linear.rank)
        if (down.shape, up.shape) != expected:
            sizes = " and ".join(str(tuple(shape)) for shape in (down.shape, up.shape))
            needed = " and ".join(str(tuple(shape)) for shape in expected)
            problem = f"linear {linear.path} has shapes {sizes}, the model needs {needed}"
            raise ValueError(self._refusal(linear.expert, problem))
        shape = shapes[linear.path]
        factor = shape.alpha / shape.rank / linear.scaling
        up = up.float() if factor == 1 else up.float() * factor
        return Values(down.float(), up, found=linear.rank)

    def _refusal(self, expert: str, problem: str) -> str:
        return f"expert {expert!r} cannot start from adapter {self.folder}: {problem}"

    def _starts(self, expert: str) -> bool:
        return self.expert is None or expert == self.expert

    def _read(self) -> tuple[dict[str, ExpertShape], dict[str, Tensor]]:
        if self._adapter is None:
            from dmole.experts.export import read_expert  # experts import allocation
            from dmole.experts.shape import ExpertShape

            read, tensors = read_expert(Path(self.folder))
            shapes = {p: s for p, s in read.items() if isinstance(s, ExpertShape) and s.plain}
            for path in sorted(read.keys() - shapes.keys()):
                raise ValueError(f"adapter {self.folder} is no plain LoRA on linear {path}")
            self._adapter = shapes, tensors
        return self._adapter
