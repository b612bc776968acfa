"""Which expert sits where: add, freeze, count, move, save and rebuild experts of a model."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmole.experts.gates import GateContext, View
from dmole.experts.lora import LoRAExpert, RoutedLinear, expert_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class ExpertLibrary:
    """All experts of one model, keyed by name (a task's, as a rule).

    Args:
        model: The frozen base model; linears that receive an expert are wrapped in place.
        view_of: Maps the full path of a linear to the side of the model it sits on.
        dropout: Dropout on the experts' input while training.
        seed: Together with expert name and layer it fixes the initial weights of an expert.
    """

    def __init__(
        self,
        model: nn.Module,
        view_of: Callable[[str], View],
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.context = GateContext()
        self.dropout = dropout
        self.seed = seed
        self._view_of = view_of
        self._layers: dict[str, RoutedLinear] = {}
        self._architecture: dict[str, dict[str, list[float]]] = {}
        self.versions: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experts in the order they were added."""
        return tuple(self._architecture)

    def add(self, name: str, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> None:
        """Give the named expert one low-rank update in each of the given linears.

        Args:
            name: Name of the new expert.
            ranks: Rank by full path of the linear.
            alphas: Scaling numerator by full path of the linear.

        Raises:
            ValueError: If the name is taken, nothing is allocated, a path is no linear, a rank
                is larger than the linear or a scaling is not finite.
        """
        if name in self._architecture:
            raise ValueError(f"there is already an expert called {name!r}")
        if not ranks:
            raise ValueError(
                f"the allocation of {name!r} is empty: a task needs at least one expert"
            )
        experts = {}
        for path, rank in ranks.items():
            _check_size(name, path, rank, alphas[path], self._base(path))
        for path, rank in ranks.items():
            generator = torch.Generator().manual_seed(seed_from(self.seed, name, path))
            experts[path] = LoRAExpert(self._base(path), rank, alphas[path], generator)
        for path, expert in experts.items():  # all of them are possible
            self._wrapped(path).experts[expert_key(name)] = expert
        self._architecture[name] = {path: [ranks[path], alphas[path]] for path in ranks}

    def remove(self, name: str) -> None:
        """Delete an expert; a linear without experts becomes the base model's again."""
        for path in self._architecture.pop(name):
            layer = self._layers[path]
            del layer.experts[expert_key(name)]
            if not layer.names:
                self.model.set_submodule(path, layer.base)
                del self._layers[path]

    def experts(self, name: str) -> Iterator[tuple[str, LoRAExpert]]:
        """Yield the linears' paths and low-rank updates of one expert."""
        for path in self._architecture[name]:
            yield path, self._layers[path].expert(name)

    def parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield ``(path of the linear, parameter)`` of one expert."""
        for path, expert in self.experts(name):
            yield path, expert.lora_a
            yield path, expert.lora_b

    def train_only(self, name: str | None) -> None:
        """Let gradients reach the named expert and nothing else of the model (None: nothing)."""
        self.model.requires_grad_(False)
        if name is not None:
            self.versions[name] = self.versions.get(name, 0) + 1  # its draws differ each time
            for _, parameter in self.parameters(name):
                parameter.requires_grad_(True)

    def count(self, name: str) -> int:
        """Return the number of parameters of one expert."""
        return sum(parameter.numel() for _, parameter in self.parameters(name))

    def move(self, name: str, device: torch.device | str) -> None:
        """Move one expert's parameters to a device, for instance to the CPU while unused."""
        for _, expert in self.experts(name):
            expert.to(device)

    def architecture(self) -> dict[str, dict[str, list[float]]]:
        """Return ``{expert: {linear: [rank, alpha]}}``, enough to rebuild the empty experts."""
        return {name: dict(layers) for name, layers in self._architecture.items()}

    def rebuild(self, architecture: Mapping[str, Mapping[str, list[float]]]) -> None:
        """Make the experts of a saved architecture; those already present must agree with it.

        Raises:
            ValueError: If an expert is present with another shape, or one is present that the
                architecture does not know.
        """
        for name in self.names:
            if name not in architecture:
                raise ValueError(f"the checkpoint knows no expert called {name!r}")
        for name, layers in architecture.items():
            wanted = {path: [int(rank), float(alpha)] for path, (rank, alpha) in layers.items()}
            if name not in self._architecture:
                self.add(
                    name,
                    {path: int(rank) for path, (rank, _) in wanted.items()},
                    {path: alpha for path, (_, alpha) in wanted.items()},
                )
            elif self._architecture[name] != wanted:
                raise ValueError(f"expert {name!r} has another shape in the checkpoint")

    def digest(self, name: str) -> str:
        """Return the sha256 of one expert's tensors: it changes if anything of the expert does."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.tensors(name).items()):
            digest.update(key.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return one expert's tensors themselves, ``<linear>.lora_a`` and ``.lora_b``."""
        tensors = {}
        for path, expert in self.experts(name):
            tensors[f"{path}.lora_a"] = expert.lora_a.detach()
            tensors[f"{path}.lora_b"] = expert.lora_b.detach()
        return tensors

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """Return copies of one expert's tensors, keyed ``<linear>.lora_a`` and ``.lora_b``."""
        return {key: tensor.clone() for key, tensor in self.tensors(name).items()}

    def load_state_dict(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Fill one expert with saved tensors.

        Raises:
            ValueError: If a tensor is missing, unknown or of another shape; names it.
        """
        mine = self.tensors(name)
        for key in sorted(mine.keys() ^ tensors.keys()):
            side = "is missing" if key in mine else "is unknown to the model"
            raise ValueError(f"expert {name!r}: tensor {key} {side}")
        for key, parameter in mine.items():
            if parameter.shape != tensors[key].shape:
                raise ValueError(
                    f"expert {name!r}: tensor {key} has shape {tuple(tensors[key].shape)}, "
                    f"the model wants {tuple(parameter.shape)}"
                )
        for path, expert in self.experts(name):
            expert.lora_a.data.copy_(tensors[f"{path}.lora_a"])
            expert.lora_b.data.copy_(tensors[f"{path}.lora_b"])

    def _base(self, path: str) -> nn.Linear:
        if path in self._layers:
            return self._layers[path].base
        try:
            layer = self.model.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"the model has no layer {path!r}") from error
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"layer {path!r} is a {type(layer).__name__}, not a Linear")
        return layer

    def _wrapped(self, path: str) -> RoutedLinear:
        if path not in self._layers:
            base = self._base(path)
            layer = RoutedLinear(base, self.context, self._view_of(path), self.dropout)
            layer.train(base.training)
            self.model.set_submodule(path, layer)
            self._layers[path] = layer
        return self._layers[path]


def _check_size(name: str, path: str, rank: int, alpha: float, base: nn.Linear) -> None:
    """Refuse an expert that would be larger than its layer before memory is taken for it."""
    most = max(base.in_features, base.out_features)
    if rank > most:
        raise ValueError(f"expert {name!r}: rank {rank} is larger than layer {path} ({most})")
    if not math.isfinite(alpha):
        raise ValueError(f"expert {name!r}: alpha {alpha} of layer {path} is not finite")


def seed_from(*parts: object) -> int:
    """Return a 63-bit seed that depends on the parts alone, not on the process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
