"""A run as a model of lmms-eval: ``python -m lmms_eval --model dmole --model_args run=RUN``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from loguru import logger
from tqdm import tqdm

from dmole.harness.conversations import to_request
from dmole.inference.loading import load
from dmole.inference.model import RoutedModel
from dmole.inference.requests import Answer, Request
from dmole.run.learned import read_stages
from dmole.serving.stops import StopFilter

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 0.0, None),
    "do_sample": (False, None),
    "top_p": (1, 1.0, 0, None),
    "top_k": (0, 1, None),
}
"""Settings of generation that a greedy answer follows, with the values under which it does."""

_READ = ("max_new_tokens", "until", "num_beams")


class DmoleModel(lmms):  # type: ignore[misc]
    """Answers the requests of lmms-eval with the experts of a run.

    Args:
        run: Run folder, bundle, or ``hf://org/name[@revision]``.
        stage: Uses the experts learned up to this stage; None uses all.
        gates: ``routed`` leaves the choice of experts to the router, ``base`` is the base model
            alone, and ``oracle:TASK`` names a task, or experts joined by ``+``.
        device: Device of the model; by default a GPU if there is one.
        batch_size: Requests that are answered together.
        precision: As of Lightning's trainer; by default that of the run.
        max_new_tokens: Maximum number of tokens of an answer where a task sets none.
        base: Folder or hub name of the base model, if it is no longer where the run had it.
        trust_classes: Modules, joined by ``+``, whose classes the run may name.
        trust_remote_code: Whether code in the folder of the base model may run.
        max_batch_size: Has no effect; lmms-eval passes it.

    Raises:
        ValueError: If the run cannot be loaded, or a value is not valid.
    """

    is_simple = False

    def __init__(
        self,
        run: str,
        stage: int | str | None = None,
        gates: str = "routed",
        device: str | None = None,
        batch_size: int | str = 8,
        precision: str | None = None,
        max_new_tokens: int = 1024,
        base: str | None = None,
        trust_classes: str = "",
        trust_remote_code: bool = False,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        self.batch_size = _whole("batch_size", batch_size)
        self.max_new_tokens = _whole("max_new_tokens", max_new_tokens)
        self.model = load(
            run,
            stage=None if stage is None else _whole("stage", stage, least=0),
            device=self._device(device),
            base=base,
            trusted=[name for name in trust_classes.split("+") if name],
            trust_remote_code=trust_remote_code,
        )
        if precision is not None:
            self.model.precision = precision
        self.experts = chosen_experts(self.model, gates, Path(run))
        self._warned: set[str] = set()

    def _device(self, device: str | None) -> str:
        """Return the device of this process."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        several = device == "cuda" and self._world_size > 1
        return f"cuda:{self.accelerator.local_process_index}" if several else device

    @property
    def device(self) -> torch.device:
        """Device of base model and experts."""
        return self.model.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer requests in batches, in their order.

        Raises:
            ValueError: If a request holds video or sound, or cannot be answered; names the task
                and the document.
        """
        results: list[GenerationResult] = []
        progress = tqdm(total=len(requests), disable=self._rank != 0, desc="dmole")
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            answers = self.model.answer([self._request(instance) for instance in batch])
            for instance, answer in zip(batch, answers, strict=True):
                context, settings = instance.args[0], instance.args[2]
                result = _result(answer, settings.get("until"))
                self.cache_hook.add_partial("generate_until", (context, settings), result.text)
                results.append(result)
            progress.update(len(batch))
        progress.close()
        return results

    def _request(self, instance: Instance) -> Request:
        _, doc_to_messages, settings, doc_id, task, split = instance.args
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        self._check(settings)
        try:
            return to_request(
                [message.model_dump() for message in messages.messages],
                max_new_tokens=settings.get("max_new_tokens") or self.max_new_tokens,
                experts=self.experts,
                options=self.model.images,
            )
        except ValueError as error:
            raise ValueError(f"task {task}, document {doc_id}: {error}") from error

    def _check(self, settings: Mapping[str, Any]) -> None:
        """Warn once of each setting that does not have the effect it names."""
        neutral = {**NEUTRAL, "num_beams": (self.model.beams, None)}
        for name, value in settings.items():
            ignored = value not in neutral[name] if name in neutral else name not in _READ
            if ignored and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    f"{name}={value} has no effect: a run answers as it was evaluated, without "
                    f"sampling and with {self.model.beams} beams"
                )

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        """Refuse a task that compares the likelihoods of answers.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("dmole answers by generation: use a task of type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        """Refuse a task of several rounds.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("dmole answers single conversations: the task has several rounds")


def chosen_experts(model: RoutedModel, gates: str, run: Path) -> tuple[str, ...] | None:
    """Return the experts that answer all requests; None leaves the choice to the router.

    Args:
        model: The loaded run.
        gates: See :class:`DmoleModel`.
        run: The run folder, which knows the expert of each task.

    Raises:
        ValueError: If the gates are of another form, or name no expert and no task.
    """
    kind, _, name = gates.partition(":")
    if gates == "routed":
        return None
    if gates == "base":
        return ()
    if kind != "oracle" or not name:
        raise ValueError(f"gates must be routed, base or oracle:TASK, got {gates!r}")
    if name not in model.experts and "+" not in name:
        of_task = {task: stage.expert for stage in read_stages(run) or () for task in stage.tasks}
        name = of_task.get(name, name)
    return model.expert_names(name)


def _result(answer: Answer, until: str | Sequence[str] | None) -> GenerationResult:
    """Return an answer up to the first of some texts."""
    stops = [until] if isinstance(until, str) else list(until or ())
    cut = StopFilter([stop for stop in stops if stop])
    text = (cut.feed(answer.text) + cut.end()).strip()
    counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=answer.new_tokens)
    return GenerationResult(text=text, token_counts=counts)


def _whole(name: str, value: int | str, least: int = 1) -> int:
    """Return a number that lmms-eval may pass as text."""
    if not str(value).isdecimal() or int(value) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)
