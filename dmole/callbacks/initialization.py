"""The start of a new expert, with what its initializer measures of the stage's samples."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from dmole.allocation.initializers import NewLinear, Values
from dmole.allocation.inputs import InputMoments
from dmole.allocation.meter import assign_owners
from dmole.allocation.proxy import sum_gradients
from dmole.callbacks.proxy_pass import ProxyBatches, proxy_losses
from dmole.distributed import broadcast, connected_ranks
from dmole.experts.library import eval_mode
from dmole.models.recomputation import recomputed_in_evaluation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dmole.allocation import Allocation, Initializer
    from dmole.allocation.initializers.base import Source
    from dmole.data import Batch
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

T = TypeVar("T")
Measured = tuple[str, int, Tensor | None]
"""Path of a linear, rank that holds what was measured of it, and that, on this rank alone."""


def start_expert(
    state: SequenceState, module: ContinualModule, plan: Allocation, kept: Mapping[str, Tensor]
) -> None:
    """Give an expert that was placed on the model the values of the allocator's initializer.

    Args:
        state: Has data, device and stage; connects the ranks.
        module: Has the expert and its initializer.
        plan: Allocation of the expert.
        kept: Directions that earlier stages have kept, by linear.

    Raises:
        Interrupted: If a signal requested the end of the run.
        ValueError: If the expert mixes several updates in a linear, the initializer refuses it, or
            a value is not finite.
    """
    starts = module.allocator.initializer
    assert starts is not None
    name = plan.expert
    linears = _linears(state, module, name, kept)
    starts.check(name, {path: linear.rank for path, linear in linears.items()})
    module.library.train_only()  # so that the expert of the stage before may leave the device
    active = [n for n in _active(module, name) if n != name]
    tensors = module.library.state_dict(name)
    short = 0
    for path, owner, measured in _measure(state, module, starts, starts.source, linears, active):
        values = _shared(owner, functools.partial(_start, starts, linears[path], measured))
        tensors[f"{path}.lora_a"].copy_(values.down)
        if values.up is not None:
            tensors[f"{path}.lora_b"].copy_(values.up)
        short += starts.source != "nothing" and values.found < linears[path].rank
    module.library.load_state_dict(name, tensors)
    few = f"; {short} of them have fewer directions than their rank" if short else ""
    log.info("expert %s: %s on %d linears%s", name, type(starts).__name__, len(linears), few)


def keep_directions(
    state: SequenceState, module: ContinualModule, kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the kept directions with those of a stage that has been trained, by linear.

    Args:
        state: Has data, device and stage; connects the ranks.
        module: Has the stage's expert and its initializer.
        kept: Directions that earlier stages have kept.

    Raises:
        Interrupted: If a signal requested the end of the run.
    """
    starts = module.allocator.initializer
    assert starts is not None
    name = state.stage.expert
    linears = _linears(state, module, name, kept)
    active = _active(module, name)
    found = dict(kept)
    for path, owner, measured in _measure(
        state, module, starts, starts.kept_source, linears, active
    ):
        found[path] = _shared(owner, functools.partial(_keep, starts, linears[path], measured))
    width = sum(rows.shape[1] for rows in found.values())
    held = sum(len(rows) for rows in found.values())
    log.info("expert %s: %d of %d directions of the inputs are kept", name, held, width)
    return found


def check_kept(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return saved directions if they are what :func:`keep_directions` returns.

    Raises:
        ValueError: If a value is no matrix of finite float32 numbers with at most as many rows as
            columns; names the linear.
    """
    for path, rows in saved.items():
        good = isinstance(rows, Tensor) and rows.ndim == 2 and rows.dtype == torch.float32
        if not good or len(rows) > rows.shape[1] or not torch.isfinite(rows).all():
            raise ValueError(f"the kept directions of linear {path!r:.80} are not valid")
    return dict(saved)


def _linears(
    state: SequenceState, module: ContinualModule, name: str, kept: Mapping[str, Tensor]
) -> dict[str, NewLinear]:
    """Return the linears of an expert as an initializer sees them."""
    starts, library = module.allocator.initializer, module.library
    if starts is not None and starts.reads_weights and module.backbone.shards is not None:
        raise ValueError(
            f"initializer {type(starts).__name__} reads whole weights, and the base model is split "
            "over the ranks"
        )
    linears = {}
    tensors = library.tensors(name)
    sizes = module.backbone.linear_shapes()
    for path, expert in library.experts(name):
        if not expert.shape.plain:
            raise ValueError(
                f"initializer {type(starts).__name__} starts plain experts, and "
                f"{type(module.router).__name__} mixes several in linear {path}"
            )
        down = tensors[f"{path}.lora_a"].to(state.device)
        rows = kept.get(path, down.new_zeros(0, down.shape[1])).to(state.device)
        if rows.shape[1] != down.shape[1]:
            raise ValueError(f"the kept directions of linear {path} have another width")
        linears[path] = NewLinear(
            expert=name,
            path=path,
            scaling=expert.scaling,
            down=down,
            out_features=sizes[path][1],
            weight=functools.partial(library.base_weight, path),
            kept=rows,
        )
    return linears


def _active(module: ContinualModule, name: str) -> tuple[str, ...]:
    """Return the experts that train or answer together with one."""
    return module.router.trained_with(name, module.library.names)


def _shared(owner: int, work: Callable[[], T]) -> T:
    """Return on every rank what its owner computes, or raise the error of the owner."""
    ranks = connected_ranks(torch.device("cpu"))
    result: Any = None
    if ranks is None or ranks.index == owner:
        try:
            result = work()
        except (ValueError, RuntimeError) as error:  # else the other ranks would wait
            result = error
    result = broadcast(result, owner)
    if isinstance(result, Exception):
        raise result
    shared: T = result
    return shared


def _start(starts: Initializer, linear: NewLinear, measured: Tensor | None) -> Values:
    """Return the initial values in a linear, on the CPU; refuse those that are not finite."""
    found = starts.start(linear, _checked(linear, measured))
    values = Values(found.down.cpu(), None if found.up is None else found.up.cpu(), found.found)
    for tensor in (values.down, values.up):
        if tensor is not None and not torch.isfinite(tensor).all():
            raise ValueError(f"the initial values of linear {linear.path} are not finite")
    return values


def _keep(starts: Initializer, linear: NewLinear, measured: Tensor | None) -> Tensor:
    """Return the kept directions of a linear, on the CPU."""
    return starts.keep(linear, _checked(linear, measured)).cpu().contiguous()


def _checked(linear: NewLinear, measured: Tensor | None) -> Tensor | None:
    """Return what was measured; refuse numbers that are not finite."""
    if measured is not None and not torch.isfinite(measured).all():
        raise ValueError(
            f"expert {linear.expert!r}: what linear {linear.path} reads on the stage's samples is "
            "not finite"
        )
    return measured


def _measure(
    state: SequenceState,
    module: ContinualModule,
    starts: Initializer,
    source: Source,
    linears: Mapping[str, NewLinear],
    active: Sequence[str],
) -> Iterator[Measured]:
    """Yield what an initializer needs of each linear, in groups, under active experts."""
    if source == "nothing":
        yield from ((path, 0, None) for path in linears)
        return
    module.to(state.device)
    batches = ProxyBatches(state, state.stage, starts.proxy_fraction, module.seed)
    measure = _gradients if source == "gradients" else _moments
    yield from measure(state, module, batches, starts.proxy_passes, linears, active)
    module.backbone.release()
    state.interruption.check(state.strategy)


def _gradients(
    state: SequenceState,
    module: ContinualModule,
    batches: ProxyBatches,
    passes: int,
    linears: Mapping[str, NewLinear],
    active: Sequence[str],
) -> Iterator[Measured]:
    ranks = connected_ranks(state.device)
    backbone = module.backbone
    loss = functools.partial(proxy_losses, module, state.device, ranks, experts=active)
    found = sum_gradients(
        backbone.model,
        {path: backbone.gradient_sources(path)[0] for path in linears},
        batches,
        loss,
        passes=passes,
        ranks=ranks,
    )
    with eval_mode(backbone), recomputed_in_evaluation(backbone.model):
        yield from found


def _moments(
    state: SequenceState,
    module: ContinualModule,
    batches: ProxyBatches,
    passes: int,
    linears: Mapping[str, NewLinear],
    active: Sequence[str],
) -> Iterator[Measured]:
    ranks = connected_ranks(state.device)
    backbone, library = module.backbone, module.library
    paths = list(linears)

    def valid(path: str, x: Tensor) -> Tensor | None:
        gates = library.context.current
        assert gates is not None
        return gates.valid_positions(library.modality(path), x)

    for index in range(passes):
        group = paths[index * len(paths) // passes : (index + 1) * len(paths) // passes]
        bases = {path: backbone.model.get_submodule(f"{path}.base") for path in group}
        moments = InputMoments(bases, valid)
        attached = moments.attached()
        with eval_mode(backbone), torch.no_grad(), backbone.evaluating(), attached:
            for parts in batches if group else ():
                for part in parts:
                    _forward(module, move_data_to_device(part, state.device), active)
        state.interruption.check(state.strategy)
        sizes = [linears[path].down.shape[1] + 1 for path in group]
        owners = assign_owners([size**2 for size in sizes], 1 if ranks is None else ranks.size)
        for path, size, owner in zip(group, sizes, owners, strict=True):
            total = moments.sums.pop(path)
            if ranks is not None:
                total = torch.zeros(size, size, device=state.device) if total is None else total
                total = ranks.sum_at(owner, total)
            here = ranks is None or ranks.index == owner
            yield path, owner, total if here else None


def _forward(module: ContinualModule, batch: Batch, active: Sequence[str]) -> None:
    """Run the model on a batch with the same experts for all samples; no output is reused."""
    module.library.past.trim()
    weights = torch.zeros(len(batch.task_names), len(module.experts))  # (B, E)
    weights[:, [module.experts.index(name) for name in active]] = 1.0
    gates = module.make_gates(weights, batch, recording=True)
    with module.library.context.use(gates):
        module.backbone.answer_output(batch.inputs, batch.targets)
