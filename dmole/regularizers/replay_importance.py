"""Learned weights of replayed samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from dmole.data.labels import Targets
from dmole.distributed import is_distributed, max_over_ranks, sum_over_ranks
from dmole.regularizers.base import Regularizer, StageView, Step, training_parameters
from dmole.regularizers.importance import first_order_hypergradient
from dmole.regularizers.replay_learner import ReplayLearner
from dmole.storage.seeds import derive_seed
from dmole.transfer import to_device


class ReplayImportance(Regularizer):
    r"""Weighs replayed samples so that training on them lowers the loss on held-out samples.

    .. math:: w_i = n \, \mathrm{softplus}(\rho_{task(i)}) \, \mathrm{softmax}(u(z_i))

    over the ``n`` replayed samples of a batch. ``u`` is a small network on the router embedding
    ``z``, scaled to unit mean square. At intervals ``u`` and ``rho`` are updated by the first-order
    hypergradient: the inner product of a sample's gradient and that of the held-out loss.
    Held-out samples are training samples selected by a hash of their id. They are never trained
    on. Test samples are never used.

    Args:
        every: Minimum number of optimizer steps between two updates of the weights; 0 keeps them
            at 1. An update waits for a batch with both replayed and held-out samples.
        heldout: Share of the training samples that is held out.
        objective: Tasks of the held-out samples: the ``current`` ones, as published, or all
            ``seen`` ones.
        hidden: Width of the network.
        learning_rate: Learning rate of network and strengths, with Adam.
        seed: Seed of the network's initial weights and of the held-out samples.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        BiGNAS, 2025, https://arxiv.org/abs/2504.07102: only its importance weights by
        auxiliary learning. The first-order form for replayed samples is ours. Its search of graph
        networks does not transfer.
    """

    per_token = True
    passes = "own"

    def __init__(
        self,
        every: int = 20,
        heldout: float = 0.1,
        objective: Literal["current", "seen"] = "current",
        hidden: int = 16,
        learning_rate: float = 1e-2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if every < 0 or hidden < 1 or not 0 <= heldout < 1 or learning_rate <= 0:
            raise ValueError(
                f"every must not be negative, hidden at least 1, heldout in [0, 1) and "
                f"learning_rate positive, got {every}, {hidden}, {heldout} and {learning_rate}"
            )
        if objective not in ("current", "seen"):
            raise ValueError(f"objective must be 'current' or 'seen', got {objective!r}")
        self.every = every
        self.heldout = heldout
        self.objective = objective
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.seed = seed
        self._tasks: tuple[str, ...] = ()
        self._learner: ReplayLearner | None = None
        self._saved: dict[str, Tensor] = {}
        self._gradient: list[Tensor] | None = None  # of the learner
        self._wait = 0  # optimizer steps without an update that are left
        self._trained: tuple[Tensor, ...] = ()

    def before_stage(self, stage: StageView) -> None:
        """Store the names of the tasks."""
        self._tasks = stage.all_tasks
        self._trained = tuple(stage.parameters().values())[:1]  # in a tuple: it is not ours

    def forward(self, step: Step) -> Tensor:
        """Return the change of the mean loss by the weights; see :class:`Regularizer`."""
        losses, counts = sample_losses(step.logits, step.targets)  # (B,), (B,)
        names = step.batch.task_names
        replayed = torch.tensor([name not in step.stage_tasks for name in names])  # (B,)
        held = torch.tensor([self._is_held(sample) for sample in step.batch.sample_ids])
        weights = torch.ones(len(names))
        chosen = (replayed & ~held).nonzero().flatten()  # (n,) rows of the batch
        if self.every and len(chosen):
            learned = self._weigh(step, chosen)  # (n,)
            weights[chosen] = learned.detach()
            if not self._wait and self._gradient is None:
                outer = held if self.objective == "seen" else held & ~replayed
                self._store_gradient(step, learned, losses, counts, chosen, outer)
        weights[held] = 0.0
        change = to_device(weights - 1.0, losses.device) * losses
        return change.sum() / counts.sum()

    def _is_held(self, sample: str) -> bool:
        return derive_seed(self.seed, "heldout", sample) % 10_000 < self.heldout * 10_000

    def _weigh(self, step: Step, chosen: Tensor) -> Tensor:
        """Return the weights of the replayed samples, with the graph to the learner."""
        embeddings = normalize(step.embed()[chosen])  # (n, D)
        embeddings = embeddings * math.sqrt(embeddings.shape[1])
        learner = self._get_learner(embeddings.shape[1])
        tasks = [self._tasks.index(step.batch.task_names[int(row)]) for row in chosen]
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            return learner.weights(embeddings, torch.tensor(tasks))

    def _get_learner(self, width: int) -> ReplayLearner:
        """Return the learner; create it for embeddings of this width on first use."""
        if self._learner is None:
            self._learner = ReplayLearner(
                self.hidden, width, len(self._tasks), self.learning_rate, self.seed
            )
            self._learner.load(self._saved)
        return self._learner

    def _store_gradient(
        self,
        step: Step,
        weights: Tensor,
        losses: Tensor,
        counts: Tensor,
        chosen: Tensor,
        outer: Tensor,
    ) -> None:
        """Store the learner's gradient of this batch if it contains held-out samples."""
        if not outer.any() or self._learner is None:
            return
        parameters = list(training_parameters(step.library, step.experts).values())

        def gradient(loss: Tensor) -> list[Tensor]:
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            pairs = zip(gradients, parameters, strict=True)
            return [torch.zeros_like(p) if g is None else g for g, p in pairs]

        outer = outer.to(losses.device)
        validation = gradient(losses[outer].sum() / counts[outer].sum())
        samples = [gradient(losses[row] / counts.sum()) for row in chosen.tolist()]
        slope = first_order_hypergradient(validation, samples, step=1.0).cpu()  # (n,)
        self._gradient = self._learner.gradient((slope * weights).sum())

    def after_step(self) -> None:
        """Update the learner on every rank by the mean gradient of all ranks that have one.

        The ranks communicate only in steps that may make an update.
        """
        own, self._gradient = self._gradient, None
        if self._wait or not self.every:
            self._wait = max(0, self._wait - 1)
            return
        gradients = self._mean_gradient(own) if is_distributed() else own
        if gradients is None:
            return
        self._get_learner(gradients[0].shape[1]).step(gradients)
        self._wait = self.every - 1

    def _mean_gradient(self, own: list[Tensor] | None) -> list[Tensor] | None:
        """Return the mean gradient over the ranks that have one; None if there are none."""
        device = self._trained[0].device
        width = max_over_ranks(0 if own is None else own[0].shape[1], device)
        if not width:
            return None
        learner = self._get_learner(width)
        parts = learner.zeros() if own is None else own
        flat = torch.cat([torch.tensor([float(own is not None)]), *(p.flatten() for p in parts)])
        total = sum_over_ranks(flat.to(device)).cpu()
        mean = torch.split(total[1:] / total[0], [part.numel() for part in parts])
        return [one.view_as(part) for one, part in zip(mean, parts, strict=True)]

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the learner, its optimizer and the number of steps until its next update."""
        learner = self._saved if self._learner is None else self._learner.tensors()
        return {**learner, "wait": torch.tensor(self._wait)} if learner else {}

    def load_extra_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a saved learner; it is created with the first embedding, which has its width."""
        self._saved = {name: tensor.clone() for name, tensor in tensors.items()}
        self._saved.pop("due", None)  # older checkpoints have the number of the step
        self._wait = int(self._saved.pop("wait", 0))
        self._learner = None


def sample_losses(logits: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return each sample's summed cross-entropy and number of answer tokens, both ``(B,)``.

    Args:
        logits: ``(M, V)`` for the ``M`` answer tokens.
        targets: The answer tokens.
    """
    losses = cross_entropy(logits.float(), targets.tokens, reduction="none")  # (M,)
    total = losses.new_zeros(targets.shape[0]).index_add(0, targets.samples, losses)  # (B,)
    ones = torch.ones_like(targets.samples)
    counts = ones.new_zeros(targets.shape[0]).index_add(0, targets.samples, ones)  # (B,)
    return total, counts
