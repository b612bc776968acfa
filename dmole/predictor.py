"""Answers prompts with the experts and the router of a finished run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device

from dmole.data import IMAGE_PLACEHOLDER, FileImage, Sample, Turn
from dmole.models.identity import base_parts
from dmole.models.naming import name_experts
from dmole.routing import GenerativeRouter, RouteQuery, gate_set_name
from dmole.run.context import EvaluationPass
from dmole.run.identity import check_base_of_run
from dmole.run.learned import load_experts_and_router

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from dmole.data.decoding import ImageOptions
    from dmole.datamodule import ContinualDataModule
    from dmole.module import ContinualModule

PROMPT_TASK = "prompt"
"""Task name of prompts whose task is unknown; the router chooses their experts."""


class Predictor:
    """Answers prompts about images.

    Args:
        module: Has the base model of the run; receives experts and router.
        data: Makes the batches.
        run: The run folder.
        precision: Makes the precision context of the forward pass. A trainer's
            ``precision_plugin.forward_context`` gives the precision of its evaluation. The default
            is full precision.
        accept_changes: Whether tokenizer, prompts, image processing and generation of the base
            model may differ from those of the run. Weights are not compared, since that would read
            all of them.

    Raises:
        ValueError: If the run folder lacks a part, it does not fit the model, or the base model
            differs from that of the run.
    """

    def __init__(
        self,
        module: ContinualModule,
        data: ContinualDataModule,
        run: Path,
        precision: Callable[[], AbstractContextManager[None]] = nullcontext,
        accept_changes: bool = False,
    ) -> None:
        self._module = module
        self._precision = precision
        self._data = data
        base = module.backbone
        data.attach_processor(base.processor, base.context_length, base.prompts)
        parts = base_parts(base, module.beams)
        check_base_of_run(run, {"base_parts": parts}, accept_changes)
        load_experts_and_router(module, run)
        module.eval()
        self._count = 0  # ids are unique because they are the keys of cached embeddings

    @property
    def images(self) -> ImageOptions:
        """How images become RGB pictures."""
        return self._data.images

    def __call__(
        self, prompts: Sequence[Mapping[str, Any]], max_new_tokens: int = 32
    ) -> list[dict[str, Any]]:
        """Return one answer per prompt.

        Args:
            prompts: Each with ``prompt`` and optionally ``image`` (a path).
            max_new_tokens: Maximum number of tokens of an answer.

        Returns:
            ``{"id", "image", "prompt", "prediction", "gate_set"}`` in the order of the prompts.
        """
        samples = [_sample(n, prompt, self.images) for n, prompt in enumerate(prompts, self._count)]
        self._count += len(prompts)
        return [
            {
                "id": sample.id,
                "image": None if prompt.get("image") is None else str(prompt["image"]),
                "prompt": prompt["prompt"],
                "prediction": text,
                "gate_set": gate_set_name(gate_set),
            }
            for sample, prompt, (text, gate_set) in zip(
                samples, prompts, self.answer(samples, max_new_tokens), strict=True
            )
        ]

    def answer(
        self, samples: Sequence[Sample], max_new_tokens: int = 32
    ) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield the answer to each sample and its experts, batch by batch.

        Args:
            samples: Conversations that end with a user turn. Ids must differ.
            max_new_tokens: Maximum number of tokens of an answer.
        """
        self._module.evaluation = EvaluationPass(
            gate_sets=self._named(samples), answer_lengths={PROMPT_TASK: max_new_tokens}
        )
        loader = self._data.embedding_loader([(s, PROMPT_TASK) for s in samples], generation=True)
        for batch in loader:
            batch = move_data_to_device(batch, self._module.device)
            try:
                with torch.no_grad(), self._precision():
                    answers = self._module.answer(batch)
            finally:  # a prompt has a new id each time, so its embedding is never used again
                self._module.embedder.cache.forget(f"{PROMPT_TASK}/")
            yield from zip(answers.texts, answers.gate_sets, strict=True)

    def _named(self, samples: Sequence[Sample]) -> dict[str, tuple[str, ...]]:
        """Return the experts of each sample where the base model names them, else nothing."""
        module, router = self._module, self._module.router
        query = RouteQuery(None, [PROMPT_TASK] * len(samples), "test", None, module.library.names)
        if not isinstance(router, GenerativeRouter) or not router.asks(query):
            return {}
        asked = [(router.asked(sample), PROMPT_TASK) for sample in samples]
        batches = self._data.embedding_loader(asked, generation=True)
        found = name_experts(module, router, batches, query.experts)
        named = [name for _, names in found for name in names]
        order = router.route(replace(query, named=named)).order
        return {f"{PROMPT_TASK}/test/{s.id}": own for s, own in zip(samples, order, strict=True)}


def _sample(index: int, prompt: Mapping[str, Any], images: ImageOptions) -> Sample:
    text, image = str(prompt["prompt"]), prompt.get("image")
    if image is None:
        return Sample(str(index), (Turn("user", text),))
    if IMAGE_PLACEHOLDER not in text:
        text = f"{IMAGE_PLACEHOLDER}\n{text}"
    return Sample(str(index), (Turn("user", text),), (FileImage(Path(image), images),))
