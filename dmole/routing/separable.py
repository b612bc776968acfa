"""Two banks of experts with a router each: one reads the input, the other the instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmole.experts.gates import MixingRecord
from dmole.experts.lora import flat_linear
from dmole.experts.shape import ExpertShape
from dmole.routing.mixing import Mixing
from dmole.routing.routers import SharedRouter
from dmole.routing.token_gates import TokenGate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dmole.experts.expert import LoRAExpert
    from dmole.experts.gates import Gates
    from dmole.experts.lora import RoutedLinear


class SeparableMixing(Mixing):
    r"""Two banks of parallel experts, chosen once per sequence and fused token by token.

    .. math::
        y = W x + a_v v + a_t u, \quad v = s \sum_{i \in V} g_i B_i A_i x, \quad
        u = s \sum_{j \in T} h_j B_j A_j x, \quad
        a = \text{softmax}(f_v^\top v, f_t^\top u)

    with :math:`g = \text{gate}(\text{softmax}(G \bar x))` for the mean :math:`\bar x` of the
    linear's input over the tokens of a sequence, and :math:`h = \text{gate}(\text{softmax}(H e))`
    for the embedding :math:`e` of the instruction. While an answer is generated, :math:`g` and
    :math:`h` stay those of the prompt.

    With one expert a bank there are no routers. Without fusion as well, the linear is plain LoRA of
    twice the rank.

    Args:
        gate: Maps the logits of each router to weights.
        fusion: Whether the banks are weighed; otherwise they are summed.
        train_routers: Whether the routers train.

    Source:
        SMoLoRA, 2025, https://arxiv.org/abs/2411.13949. The authors' code weighs by hard one-hots,
        see :class:`~dmole.routing.token_gates.OneHotGate`, embeds instructions with MiniLM, and
        in generation averages over the tokens of each call, a single one after the prompt.
    """

    needs_texts = True

    def __init__(self, gate: TokenGate, fusion: bool = True, train_routers: bool = True) -> None:
        self.gate = gate
        self.fusion = fusion
        self.train_routers = train_routers

    def shape(self, rank: int, alpha: float, experts: int, *, common: bool) -> ExpertShape:
        """Return ``experts`` parallel updates, half in each bank; see :meth:`Mixing.shape`."""
        if experts % 2:
            raise ValueError(
                "SeparableMixing has two banks of as many experts, the allocator gives "
                f"{experts} experts: set its experts to an even number"
            )
        if self.text_width is None:
            raise RuntimeError("SeparableMixing does not know the width of instructions")
        heads = experts // 2 if experts > 2 else 0
        return ExpertShape(
            rank * experts,
            alpha * experts,
            heads=heads,
            text_width=self.text_width if heads else 0,
            fused=2 if self.fusion else 0,
            fixed_routers=int(bool(heads) and not self.train_routers),
        )

    def __call__(
        self, linear: RoutedLinear, x: Tensor, experts: Mapping[str, LoRAExpert], gates: Gates
    ) -> dict[str, Tensor]:
        """Return the weights of both banks, times those of the fusion."""
        weights = {}
        for name, expert in experts.items():
            shape = expert.shape
            if shape.heads:
                chosen = self._choose(linear, x, expert, gates)  # (rows, N)
            elif shape.fused:
                chosen = x.new_ones(len(x), 2)
            else:
                continue
            between = [1] * (x.ndim - 2)  # token axes of x, if any
            spread = chosen.reshape(len(chosen), *between, chosen.shape[-1])  # (rows, 1, N)
            weights[name] = spread.expand(*x.shape[:-1], chosen.shape[-1])  # (rows, ..., N)
            if shape.fused:
                banks = fused_weights(x, expert, weights[name])  # (rows, ..., 2)
                weights[name] = weights[name] * banks.repeat_interleave(chosen.shape[-1] // 2, -1)
        return weights

    def _choose(self, linear: RoutedLinear, x: Tensor, expert: LoRAExpert, gates: Gates) -> Tensor:
        """Return ``(rows, N)``: weights of both banks; in generation those of the prompt."""
        if linear.path in gates.decisions:
            return gates.decisions[linear.path]
        with torch.autocast(x.device.type, enabled=False):
            mean = gates.mean_tokens(linear.modality, x.float())  # (rows, in)
            texts = gates.row_texts(linear.modality, x).float()  # (rows, D)
            logits = (
                flat_linear(mean, expert.router.float()),
                flat_linear(texts, expert.text_router.float()),
            )
        found = [self.gate(each) for each in logits]  # each (rows, N / 2)
        weights = torch.cat([each.weights for each in found], dim=-1)  # (rows, N)
        if gates.recording:
            probabilities = torch.cat([each.probabilities for each in found], dim=-1)
            gates.records.append(MixingRecord(linear.path, probabilities, weights))
        if not torch.is_grad_enabled():
            gates.decisions[linear.path] = weights
        return weights


def fused_weights(x: Tensor, expert: LoRAExpert, weights: Tensor) -> Tensor:
    """Return the softmax over the scores of both banks' outputs, ``(rows, ..., 2)`` float32.

    A score is linear in an output, so it is computed from the low-rank channels.

    Args:
        x: Input of the linear, ``(rows, ..., in)``.
        expert: Its parallel experts, the first half of which is the first bank.
        weights: Weights of the experts, ``(rows, ..., N)``.
    """
    with torch.autocast(x.device.type, enabled=False):
        low = flat_linear(x.float(), expert.lora_a.float()) * expert.scaling  # (rows, ..., N r)
        low = low * weights.float().repeat_interleave(low.shape[-1] // weights.shape[-1], -1)
        scores = expert.fusion.float() @ expert.up.float()  # (2, N r)
        half = low.shape[-1] // 2
        first = low[..., :half] @ scores[0, :half]  # (rows, ...)
        second = low[..., half:] @ scores[1, half:]
        return torch.stack([first, second], dim=-1).softmax(dim=-1)


class SeparableRouter(SharedRouter):
    """Use one shared mixture of two banks for every sample.

    Args:
        gate: Maps the logits of a router to the weights of the experts of its bank.
        fusion: Whether the banks are weighed by their outputs; otherwise they are summed.
        train_routers: Whether the routers train.
        expert: Name of the shared mixture; None takes the oldest.
    """

    def __init__(
        self,
        gate: TokenGate,
        fusion: bool = True,
        train_routers: bool = True,
        expert: str | None = None,
    ) -> None:
        super().__init__(expert)
        self.mixing = SeparableMixing(gate, fusion, train_routers)
