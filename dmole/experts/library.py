"""The experts of a model: add, freeze, count, save and rebuild them."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dmole.distributed import sum_over_ranks
from dmole.experts.expert import ExpertPart, LoRAExpert, expert_key
from dmole.experts.gates import GateContext
from dmole.experts.lora import RoutedLinear
from dmole.experts.past import PastExperts
from dmole.experts.places import Place, check_shape, find_place, make_part, of_kind
from dmole.experts.shape import ExpertShape
from dmole.experts.soft_prompts import PromptedEmbedding, PromptShape, Shape, shape_from_list
from dmole.storage.seeds import expert_seed
from dmole.storage.tensors import DigestCache
from dmole.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from dmole.experts.lora import ChannelMixing
    from dmole.modality import Modality


class ExpertLibrary:
    """All experts of one model, keyed by name (usually that of a task).

    Args:
        model: The frozen base model; linears that receive an expert are wrapped in place.
        modality_of: Maps the full path of a linear to its modality.
        dropout: Dropout on the experts' input while training.
        seed: Seed of the initial weights; combined with expert name and linear.
        mixing: Weighs the experts' channels token by token; None uses the gates alone.
        past_on_device: Frozen experts that stay on the device between batches, see
            :class:`~dmole.experts.past.PastExperts`; None keeps all there.
        fixed_down: Whether ``lora_a`` of plain experts keeps its initial values in training.

    Attributes:
        past: The frozen experts.
    """

    def __init__(
        self,
        model: nn.Module,
        modality_of: Callable[[str], Modality],
        dropout: float = 0.0,
        seed: int = 0,
        mixing: ChannelMixing | None = None,
        past_on_device: int | None = None,
        fixed_down: bool = False,
    ) -> None:
        self.model = model
        self._fixed_down = fixed_down
        self._mixing = mixing
        self.past = PastExperts(self, past_on_device)
        self.context = GateContext(None if past_on_device is None else self.past.require)
        self.dropout = dropout
        self.seed = seed
        self._modality_of = modality_of
        self._linears: dict[str, RoutedLinear | PromptedEmbedding] = {}
        self._architecture: dict[str, dict[str, Shape]] = {}
        self._learners: tuple[str, ...] | None = None
        self.versions: dict[str, int] = {}
        self._digests = DigestCache(_digest)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experts in the order they were added, without the adapter of a router."""
        return tuple([name for name in self._architecture if name[0] != "@"])

    def add(self, name: str, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> None:
        """Add an expert with one plain low-rank update in each of the given linears.

        Args:
            name: Name of the new expert.
            ranks: Rank by full path of the linear.
            alphas: Scaling numerator by full path of the linear.

        Raises:
            ValueError: As :meth:`add_shapes`.
        """
        shapes = {path: ExpertShape(rank, alphas[path]) for path, rank in ranks.items()}
        self.add_shapes(name, shapes)

    def add_shapes(self, name: str, shapes: Mapping[str, Shape]) -> None:
        """Add an expert with an update of any shape in each of the given linears.

        Args:
            name: Name of the new expert.
            shapes: Shape of the update by full path of the linear, and of a soft prompt by that of
                the language model's input embedding.

        Raises:
            ValueError: If the name is taken, there are no shapes, a path is not a linear, a rank is
                larger than the linear or a scaling is not finite; if a soft prompt is not in the
                input embedding, or has no tokens or more than the vocabulary.
        """
        self.check_shapes(name, shapes)
        experts: dict[str, ExpertPart] = {}
        for path, shape in shapes.items():
            generator = torch.Generator().manual_seed(expert_seed(self.seed, name, path))
            experts[path] = make_part(self._base(path, shape), shape, generator)
        for path, expert in experts.items():  # only after all were created
            self._wrapped(path, shapes[path]).experts[expert_key(name)] = expert
        self._let_learn(None)
        self._architecture[name] = dict(shapes)

    def check_shapes(self, name: str, shapes: Mapping[str, Shape]) -> None:
        """Refuse what :meth:`add_shapes` refuses, without adding an expert.

        Raises:
            ValueError: See :meth:`add_shapes`.
        """
        if name in self._architecture:
            raise ValueError(f"there is already an expert called {name!r}")
        if not shapes:
            raise ValueError(
                f"the allocation of {name!r} is empty: a task needs at least one expert"
            )
        for path, shape in shapes.items():
            check_shape(name, path, shape, self._base(path, shape))

    def remove(self, name: str) -> None:
        """Delete an expert; a linear without experts is unwrapped."""
        self.past.forget(name)
        self._digests.forget(name)
        self._let_learn(None)
        for path in self._architecture.pop(name):
            linear = self._linears[path]
            del linear.experts[expert_key(name)]
            if not linear.names:
                self.model.set_submodule(path, linear.base)
                del self._linears[path]

    def parts(self, name: str) -> Iterator[tuple[str, ExpertPart]]:
        """Yield ``(path, tensors)`` of one expert: its low-rank updates and its soft prompt."""
        for path in self._architecture[name]:
            yield path, self._linears[path].expert(name)

    def experts(self, name: str) -> Iterator[tuple[str, LoRAExpert]]:
        """Yield ``(path of the linear, low-rank update)`` of one expert, without soft prompts."""
        for path, part in self.parts(name):
            if isinstance(part, LoRAExpert):
                yield path, part

    def has_prompt(self, name: str) -> bool:
        """Return whether an expert has a soft prompt."""
        return any(isinstance(shape, PromptShape) for shape in self._architecture[name].values())

    def computes_below(self, root: str) -> bool:
        """Return whether the current gates use an expert of a linear below a submodule.

        Args:
            root: Full path of the submodule.
        """
        gates = self.context.current
        used = () if gates is None else gates.used
        return any(
            path.startswith(f"{root}.") for name in used for path in self._architecture[name]
        )

    def trains_below(self, root: str) -> bool:
        """Return whether an expert of a linear below a submodule trains.

        Args:
            root: Full path of the submodule.
        """
        return any(
            expert.learning
            for name in (self.names if self._learners is None else self._learners)
            for path, expert in self.parts(name)
            if path.startswith(f"{root}.")
        )

    def base_weight(self, path: str) -> Tensor:
        """Return the weight of a linear of the base model, ``(out, in)`` float32.

        A quantized weight is read off the outputs of its linear for unit inputs.

        Raises:
            ValueError: If the weight is split over several ranks.
        """
        linear = self.model.get_submodule(path)
        base: Any = getattr(linear, "base", linear)
        if not base.weight.numel() or hasattr(base.weight, "to_local"):
            raise ValueError(f"the weight of linear {path} is split over the ranks: it is not read")
        if base.weight.is_floating_point():
            whole: Tensor = base.weight.detach().float()
            return whole
        with torch.no_grad():
            units = torch.eye(base.in_features, device=base.weight.device)
            columns: Tensor = base(units).float()  # (in, out)
        return (columns if base.bias is None else columns - base.bias.detach().float()).t()

    def base_norm(self, path: str) -> float:
        """Return the Frobenius norm of the weight of a linear of the base model.

        If the weight is split over the ranks, all of them must call it.
        """
        linear = self.model.get_submodule(path)
        weight: Any = getattr(linear, "base", linear).weight
        if hasattr(weight, "to_local"):
            squared = sum_over_ranks(weight.detach().to_local().float().square().sum())
            return float(squared.sqrt())
        return float(torch.linalg.vector_norm(self.base_weight(path)))

    def modality(self, path: str) -> Modality:
        """Return the modality of a linear with experts."""
        return self._linears[path].modality

    def parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield ``(path of the linear, parameter)`` of one expert."""
        for path, expert in self.parts(name):
            for parameter in expert.parameters():
                yield path, parameter

    def train_only(self, *names: str | None) -> None:
        """Enable gradients for the named experts only; None stands for no expert."""
        self.model.requires_grad_(False)
        training = tuple(name for name in names if name is not None)
        self._hold_all_but(training)
        for name in training:
            for _, expert in self.parts(name):
                for parameter in expert.trainable():
                    parameter.requires_grad_(True)
            for _, update in self.experts(name) if self._fixed_down else ():
                update.lora_a.requires_grad_(False)
        self._let_learn(training)

    def hold_past(self) -> None:
        """Let the frozen experts leave the device until a batch uses them, see ``past``."""
        self._hold_all_but(self._learners or ())

    def _hold_all_but(self, training: tuple[str, ...]) -> None:
        for name in self.past.hold(training):
            self._digests.forget(name)  # it keeps the tensors

    def _let_learn(self, names: tuple[str, ...] | None) -> None:
        """Tell the linears which experts may train; None lets them ask all experts."""
        self._learners = names
        held = {name: self._architecture[name] for name in names or ()}
        for path, linear in self._linears.items():
            learners = tuple(name for name, shapes in held.items() if path in shapes)
            linear.learners = None if names is None else learners

    def count(self, name: str) -> int:
        """Return the number of parameters of one expert."""
        linears = self._linears
        return sum(
            shape.count(linears[path].in_features, linears[path].out_features)
            for path, shape in self._architecture[name].items()
        )

    def architecture(self) -> dict[str, dict[str, list[float]]]:
        """Return ``{expert: {linear: numbers}}``, which suffices to rebuild the empty experts.

        For the numbers see :meth:`ExpertShape.to_list`.
        """
        return {
            name: {path: shape.to_list() for path, shape in shapes.items()}
            for name, shapes in self._architecture.items()
        }

    def rebuild(self, architecture: Mapping[str, Mapping[str, list[float]]]) -> None:
        """Create the experts of a saved architecture; existing ones must match it.

        Raises:
            ValueError: If an existing expert has another shape or is not in the architecture.
        """
        for name in self.names:
            if name not in architecture:
                raise ValueError(f"the checkpoint has no expert called {name!r}")
        for name, linears in architecture.items():
            shapes = {path: shape_from_list(numbers) for path, numbers in linears.items()}
            if name not in self._architecture:
                self.add_shapes(name, shapes)
            elif self._architecture[name] != shapes:
                raise ValueError(f"expert {name!r} has another shape in the checkpoint")

    def digest(self, name: str) -> str:
        """Return the sha256 of one expert's tensors; that of a frozen one is computed once."""
        if any(expert.learning for _, expert in self.parts(name)):
            return _digest(self.tensors(name))  # an optimizer may change tensors unnoticed
        return self._digests.of(name, self.tensors(name))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return one expert's tensors without copies, keyed ``<linear>.lora_a`` and so on."""
        held = self.past.held(name) or {}
        return {
            key: held.get(key, tensor).detach()
            for path, expert in self.parts(name)
            for key, tensor in ((f"{path}.{part}", own) for part, own in expert.own_tensors())
        }

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """Return copies of one expert's tensors, keyed as in :meth:`tensors`."""
        return {key: tensor.clone() for key, tensor in self.tensors(name).items()}

    def load_state_dict(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Load saved tensors into one expert.

        Raises:
            ValueError: If a tensor is missing, unknown or of another shape; names it.
        """
        current = self.tensors(name)
        for key in sorted(current.keys() ^ tensors.keys()):
            problem = "is missing" if key in current else "is unknown to the model"
            raise ValueError(f"expert {name!r}: tensor {key} {problem}")
        for key, parameter in current.items():
            if parameter.shape != tensors[key].shape:
                raise ValueError(
                    f"expert {name!r}: tensor {key} has shape {tuple(tensors[key].shape)}, "
                    f"the model expects {tuple(parameter.shape)}"
                )
        for key, parameter in current.items():
            parameter.copy_(tensors[key])
        self.past.unload(name)

    @contextmanager
    def replaced(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Replace the values of some parameters for the body of a ``with`` statement.

        Args:
            tensors: Values by ``<expert>/<linear>.<tensor>``, such as an earlier state.
        """
        parameters = {
            f"{name}/{path}.{key}": parameter
            for name in {key.partition("/")[0] for key in tensors}
            for path, expert in self.parts(name)
            for key, parameter in expert.named_parameters()
        }
        kept = {key: parameters[key].data for key in tensors if key in parameters}
        try:
            for key in kept:
                parameters[key].data = to_device(tensors[key], kept[key].device)
            yield
        finally:
            for key, data in kept.items():
                parameters[key].data = data

    def _base(self, path: str, shape: Shape) -> Place:
        """Return the module of the base model that an expert of some shape is on."""
        if path not in self._linears:
            return find_place(self.model, path, shape)
        kind: type[Place] = nn.Embedding if isinstance(shape, PromptShape) else nn.Linear
        return of_kind(self._linears[path].base, path, kind)

    def _wrapped(self, path: str, shape: Shape) -> RoutedLinear | PromptedEmbedding:
        if path not in self._linears:
            base = self._base(path, shape)
            modality = self._modality_of(path)
            linear: RoutedLinear | PromptedEmbedding
            if isinstance(base, nn.Embedding):
                linear = PromptedEmbedding(base, self.context, modality, path)
            else:
                args = (self.dropout, self._mixing, path)
                linear = RoutedLinear(base, self.context, modality, *args)
            linear.train(base.training)
            self.model.set_submodule(path, linear)
            self._linears[path] = linear
        return self._linears[path]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors and their names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(key.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch dropout off for the body of a ``with`` statement, then restore the modes."""
    training = [child for child in modules_without_experts(module) if child.training]
    try:
        for child in training:
            child.training = False
        yield
    finally:
        for child in training:
            child.training = True


def modules_without_experts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of the base model, without experts, whose number grows.

    Experts compute alike in any mode.
    """
    pending = [module]
    while pending:
        child = pending.pop()
        yield child
        if isinstance(child, RoutedLinear):
            pending += [child.base, child.dropout]
        elif isinstance(child, PromptedEmbedding):
            pending.append(child.base)
        else:
            pending += [inner for inner in child.children() if inner is not None]
