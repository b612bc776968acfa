"""The router of MR-LoRA: the base model, with an adapter of its own, names the expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dmole.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from dmole.experts.shape import ExpertShape
from dmole.routing.query import RouteQuery
from dmole.routing.routers import LearningRouter, Routing, route_by_name
from dmole.storage.versions import newest_versions

SHARED_PREFIX = "shared."
"""Before the names of tensors in the entry of the first expert that belong to all experts."""
_ALPHA, _LABEL = f"{SHARED_PREFIX}alpha", "label"


class NameTree:
    """The names that may be generated, token by token.

    Args:
        names: Tokens of each name.

    Raises:
        ValueError: If a name has no token, or its tokens are the beginning of another name.

    Example:
        >>> tree = NameTree({"count": (7, 2), "color": (7, 5, 2), "find": (9, 2)})
        >>> tree.allowed(()), tree.allowed((7,)), tree.depth
        ([7, 9], [2, 5], 2)
        >>> tree.name((7, 5))
        'color'
    """

    def __init__(self, names: Mapping[str, Sequence[int]]) -> None:
        self._names = {name: tuple(tokens) for name, tokens in names.items()}
        for name, tokens in self._names.items():
            for other, longer in self._names.items():
                if not tokens or (name != other and longer[: len(tokens)] == tokens):
                    raise ValueError(
                        f"the model cannot tell the names {name!r} and {other!r} apart"
                    )

    @property
    def depth(self) -> int:
        """Tokens after which every name is told apart from the others."""
        depth = 0
        while any(len(self._under(tokens[:depth])) > 1 for tokens in self._names.values()):
            depth += 1
        return depth

    def allowed(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens that may follow; after a whole name its last token again."""
        names = self._under(tokens)
        following = {t[len(tokens)] for t in names.values() if len(t) > len(tokens)}
        return sorted(following) or [int(tokens[-1])]

    def name(self, tokens: Sequence[int]) -> str:
        """Return the name that generated tokens stand for; they may end early or go on.

        Raises:
            ValueError: If they stand for no name or for several.
        """
        for length in range(len(tokens) + 1):
            found = self._under(tokens[:length])
            if len(found) == 1:
                return next(iter(found))
        raise ValueError(f"the tokens {list(tokens)} name no expert")

    def _under(self, tokens: Sequence[int]) -> dict[str, tuple[int, ...]]:
        beginning = tuple(tokens)
        return {n: t for n, t in self._names.items() if t[: len(beginning)] == beginning}


class GenerativeRouter(LearningRouter):
    r"""Use the expert whose name the model generates when it is asked for the task.

    .. math:: \hat t = \text{greedy}_{c \in \{1..T\}} \; p_{W + R}(\text{name}_c \mid x, q)

    with the adapter :math:`R` of the router, the first user turn :math:`x` of a sample with its
    images, and the question :math:`q`. The generation may only follow the names of the experts. In
    training every sample uses the expert of the stage. The adapter is trained after each stage on
    stored samples of all tasks so far, see `dmole.callbacks.task_naming`.

    Args:
        exemplars: Stored training samples of each expert's stage.
        passes: Passes of the adapter's training over them.
        step_samples: Samples of its optimizer steps.
        question: Text that is added to a sample's first user turn.
        seed: Seed of the choice of the samples and of their order.

    Raises:
        ValueError: If a number is below 1.

    Source:
        MLLM-CL, 2025, https://arxiv.org/abs/2506.05453 (authors' code of MR-LoRA). There the
        prompt describes each expert by hand, the answer is a letter that is generated without
        constraint, and a random expert answers if it is none of the letters.
    """

    selects_experts = True
    refits_all = True
    asks_model = True

    def __init__(
        self,
        exemplars: int = 20,
        passes: int = 20,
        step_samples: int = 16,
        question: str = "Which task is this?",
        seed: int = 0,
    ) -> None:
        if exemplars < 1 or passes < 1 or step_samples < 1:
            raise ValueError(
                "exemplars, passes and step_samples must be at least 1, got "
                f"{exemplars}, {passes} and {step_samples}"
            )
        self.exemplars = exemplars
        self.passes = passes
        self.step_samples = step_samples
        self.question = question
        self.seed = seed
        self.labels: dict[str, tuple[int, ...]] = {}
        self.adapter: dict[str, Tensor] = {}
        self.alpha = 1.0

    def asks(self, query: RouteQuery) -> bool:
        """Return whether the model is asked: in the test phase, if it can choose."""
        return not query.training and len(self.known(query.experts)) > 1

    def known(self, experts: Sequence[str]) -> list[str]:
        """Return those of some experts that have a name for the model."""
        return [name for name in experts if name in self.labels]

    def tree(self, experts: Sequence[str]) -> NameTree:
        """Return the names of some experts."""
        return NameTree({name: self.labels[name] for name in self.known(experts)})

    def shapes(self) -> dict[str, ExpertShape]:
        """Return the shape of the adapter by linear."""
        suffix = ".lora_a"
        return {
            key.removesuffix(suffix): ExpertShape(len(tensor), self.alpha)
            for key, tensor in self.adapter.items()
            if key.endswith(suffix)
        }

    def asked(self, sample: Sample, name: str | None = None) -> Sample:
        """Return the sample that asks for the task of another one.

        Args:
            sample: The sample.
            name: The answer, for training; None to generate it.
        """
        first = next(i for i, turn in enumerate(sample.turns) if turn.role == "user")
        text = sample.turns[first].text
        turns = (*sample.turns[:first], Turn("user", f"{text}\n{self.question}"))
        answer = () if name is None else (Turn("assistant", name),)
        images = sample.images[: text.count(IMAGE_PLACEHOLDER)]
        references = sample.references if name is None else ()
        return Sample(sample.id, (*turns, *answer), images, references)

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample; see :meth:`Router.route`.

        Raises:
            ValueError: If there is a choice and the query does not have the model's answers.
        """
        samples = len(query.task_names)
        if query.training:
            name = query.experts[query.current_column()]
            return route_by_name([(name,)] * samples, query.experts)
        known = self.known(query.experts)
        if not known:
            return route_by_name([()] * samples, query.experts)
        named = known * samples if len(known) == 1 else query.named
        if named is None or len(named) != samples:
            raise ValueError("GenerativeRouter needs the model's answer for each sample")
        newest = newest_versions(query.experts, self.updates)
        return route_by_name([(newest[name],) for name in named], query.experts)

    # -- state -----------------------------------------------------------------------------

    def kind(self) -> dict[str, Any]:
        """Return the question, which the adapter was trained with."""
        return {"question": self.question}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the tokens of each name, and the adapter with the first of them."""
        found = {name: {_LABEL: torch.tensor(tokens)} for name, tokens in self.labels.items()}
        for name in list(found)[:1]:
            found[name] |= {f"{SHARED_PREFIX}{key}": value for key, value in self.adapter.items()}
            found[name][_ALPHA] = torch.tensor([self.alpha], dtype=torch.float64)
        return found

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the result of :meth:`tensors`; see :meth:`LearningRouter.restore`."""
        labels: dict[str, tuple[int, ...]] = {}
        shared: dict[str, Tensor] = {}
        for name, entry in tensors.items():
            own = dict(entry)
            label = own.pop(_LABEL, None)
            if label is None or label.ndim != 1 or label.dtype != torch.long or not len(label):
                raise ValueError(f"router of {name}: expected the tokens of its name in 'label'")
            labels[name] = tuple(label.tolist())
            shared |= own
        alpha = shared.pop(_ALPHA, torch.tensor([self.alpha], dtype=torch.float64))
        for key, tensor in shared.items():
            part = key.rpartition(".")[2]
            if not key.startswith(SHARED_PREFIX) or part not in ("lora_a", "lora_b"):
                raise ValueError(f"router: tensor {key} is unknown")
            if tensor.ndim != 2 or not tensor.is_floating_point():
                raise ValueError(f"router: tensor {key} is no matrix of numbers")
        if alpha.numel() != 1:
            raise ValueError(f"router: tensor {_ALPHA} must hold one number")
        if labels:
            NameTree(labels)  # refuses names that cannot be told apart
        self.labels, self.alpha = labels, float(alpha)
        self.adapter = {k.removeprefix(SHARED_PREFIX): v for k, v in shared.items()}
