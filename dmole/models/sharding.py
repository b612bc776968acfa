"""The frozen base model in shards over the ranks, gathered part by part where it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from dmole.experts.library import modules_without_experts

if TYPE_CHECKING:
    from dmole.models.backbone import Backbone


class BaseShards:
    """The base model of a process, of which it holds one part of each large weight.

    The units are the blocks of the vision encoder and of the language model, the input embeddings
    and the language head. A unit is gathered when it computes, in the forward and in the backward
    pass, and freed after it, except for the head, which stays until :meth:`release`: a rank may run
    it several times on its answer tokens. Everything else stays whole: projector, norms outside of
    blocks and experts.

    A gather is a collective operation. All ranks must therefore run the same units in the same
    order, unless the base model is :meth:`gathered`.

    Args:
        backbone: The base model, without experts. Weights that two modules share are split twice.
        device: Device of this process.
        evaluates_whole: Whether :meth:`evaluating` gathers the base model.

    Raises:
        ValueError: If a weight is quantized, or there are experts already.
    """

    def __init__(
        self, backbone: Backbone, device: torch.device, *, evaluates_whole: bool = True
    ) -> None:
        check_splittable(backbone)
        self._model = backbone.model
        self._evaluates_whole = evaluates_whole
        self._gathers = 0
        self._computed: set[FSDPModule] = set()
        backbone.remember_whole()
        head = _untied_head(self._model)
        modules = [*_blocks(backbone), self._model.get_input_embeddings()]  # type: ignore[operator]
        modules += [] if head is None else [head]
        # reductions of gradients run between the gathers, so they need a group of their own
        mesh = DeviceMesh.from_group(dist.new_group(), device.type)
        self._units = [_split(module, mesh) for module in modules]
        for module in modules:
            module.register_forward_pre_hook(lambda unit, _: self._computed.add(unit))
        if head is not None:
            self._units[-1].set_reshard_after_forward(False, recurse=False)
            self._units[-1].set_reshard_after_backward(False, recurse=False)
        self._head = None if head is None else self._units[-1]
        backbone.to(device)
        for unit in self._units:  # buffers made in inference mode could not be used in training
            unit.unshard()
            unit.reshard()

    @property
    def in_step(self) -> bool:
        """Whether all ranks must run the same units in the same order."""
        return not self._gathers

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Hold the whole base model in the body of a ``with`` statement. All ranks must call it.

        A rank may then run any unit or none. ``Module.to`` splits the base model again.
        """
        self.gather()
        try:
            yield
        finally:
            self.free()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Hold the base model in the body as an evaluation needs it: whole, or in its shards."""
        if self._evaluates_whole:
            with self.gathered():
                yield
            return
        try:
            yield
        finally:
            self.release()

    def gather(self) -> None:
        """Gather the whole base model until :meth:`free`. All ranks must call it."""
        for unit in self._units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        self._gathers += 1

    def free(self) -> None:
        """Free what :meth:`gather` gathered, once it is called as often."""
        self._gathers = max(0, self._gathers - 1)
        if not self._gathers:
            for unit in self._units:
                unit.set_reshard_after_forward(unit is not self._head, recurse=False)
            self.release()

    def release(self) -> None:
        """Free all units but their shards; without effect while the base model is gathered."""
        if self._gathers:
            return
        for unit in self._units:
            unit.reshard()
            # its record of passes would grow forever; a rank without samples has none to reset
            if unit in self._computed and hasattr(unit, "reset_iter_state"):
                unit.reset_iter_state()
        self._computed.clear()

    def resident_bytes(self) -> int:
        """Return the bytes of the base model's weights that this process holds now."""
        return sum(map(_held, self.weights()))

    def weights(self) -> list[Tensor]:
        """Return the weights of the base model as this process holds them now."""
        found: dict[int, Tensor] = {}
        for module in modules_without_experts(self._model):
            found |= {id(p): p for p in module.parameters(recurse=False)}
        return list(found.values())


def check_splittable(backbone: Backbone) -> None:
    """Refuse a base model whose blocks cannot be split.

    Raises:
        ValueError: If a weight is quantized, is on several devices, or a block has experts.
    """
    if getattr(backbone.model, "hf_device_map", None):
        raise ValueError("a sharded base model cannot have a device_map: leave device_map out")
    for block in _blocks(backbone):
        for name, parameter in block.named_parameters():
            if ".experts." in name:
                raise ValueError("a base model is sharded before it gets experts")
            if not parameter.is_floating_point() or hasattr(parameter, "quant_state"):
                raise ValueError(
                    "a quantized base model cannot be sharded: use trainer.strategy ddp, or "
                    "quantization null"
                )


def _blocks(backbone: Backbone) -> list[nn.Module]:
    """Return the blocks of vision encoder and language model, in the order of the model."""
    blocks = (block for block in backbone.blocks if block.modality != "projector")
    return [backbone.model.get_submodule(block.path) for block in blocks]


def _untied_head(model: Any) -> Any:
    """Return the language head, whose weight is no longer that of the input embeddings.

    Values stay equal, since the base model is frozen. A module that shares its weight with another
    one would keep it whole.
    """
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    weight = None if head is None else getattr(head, "weight", None)
    if weight is not None and weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return head


def _split(module: nn.Module, mesh: DeviceMesh) -> FSDPModule:
    return fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _held(weight: Tensor) -> int:
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    return local.numel() * local.element_size()
