"""Fits the router entry of an expert that comes from elsewhere, and saves a foreign adapter."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole.callbacks.embedding import embed_samples
from dmole.callbacks.router_fitting import EMBEDDING_SAMPLES, choose_samples
from dmole.data import Task
from dmole.data.decoding import ImageOptions
from dmole.datamodule import ContinualDataModule
from dmole.editing.adapters import read_adapter
from dmole.experts import save_expert
from dmole.routing.generative import GenerativeRouter
from dmole.routing.routers import RouterFit, too_few

if TYPE_CHECKING:
    from dmole.editing.draft import Draft
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")

_OF_PROMPT = ("format", "side_files", "prompt", "prompt_suffix", "columns", "max_new_tokens")
"""Settings of a task that its prompts, and so the embeddings of its samples, depend on."""


def samples_task(like: Mapping[str, Any], samples: str, image_root: str | None) -> Task:
    """Return a task whose training samples fit a router entry.

    Args:
        like: Settings of the expert's task, whose form of the prompts is kept.
        samples: Address of the samples.
        image_root: Folder of their images; None for that of the file.
    """
    kept = {key: like[key] for key in _OF_PROMPT if key in like}
    images = like.get("images")
    options = ImageOptions(**images) if isinstance(images, Mapping) else images
    return Task(
        like["name"], train=samples, test=samples, image_root=image_root, images=options, **kept
    )


def fit_entry(
    draft: Draft,
    expert: str,
    task: Task,
    state: SequenceState,
    module: ContinualModule,
    like: ContinualDataModule,
) -> None:
    """Fit the router entry of an expert to the training samples of a task.

    The entry equals the one that the run would have fitted in a stage of these samples: the same
    choice of at most 2,000 samples, the same statistics, the same seed.

    Args:
        draft: Has the router; receives the entry.
        expert: Name of the expert.
        task: Has the samples.
        state: State of a trainer on one device.
        module: Has the base model.
        like: Data module of the run, whose limits apply.

    Raises:
        ValueError: If the samples cannot be read, are too few, or an embedding is not finite.
    """
    base, router = module.backbone, draft.router
    if isinstance(router, GenerativeRouter):
        raise ValueError(
            "GenerativeRouter trains one adapter on samples of all experts: it cannot be fitted to "
            f"{expert!r} alone"
        )
    data = state.data = _data_of(task, like)
    data.attach_processor(base.processor, base.context_length, base.prompts)
    data.check(("train",))
    samples = data.train_samples(task.name)
    if problem := too_few(len(samples), type(router).__name__, router.least_samples):
        raise ValueError(f"{task.train} {problem}")
    if not router.needs_embeddings:
        return
    chosen = choose_samples(len(samples), EMBEDDING_SAMPLES, seed=0)
    pairs = [(samples[index], task.name) for index in chosen]
    router.set_vision_width(base.vision_width)
    fit = router.fit(expert, embed_samples(state, module, pairs, "train"))
    if fit is not None:
        _report(expert, fit)


def _report(expert: str, fit: RouterFit) -> None:
    log.info("router: threshold %.4g for expert %s", fit.threshold, expert)
    if fit.rounding:
        log.warning(
            "the held-out samples of expert %s repeat those of the fit: its threshold allows for "
            "rounding only",
            expert,
        )


def _data_of(task: Task, like: ContinualDataModule) -> ContinualDataModule:
    return ContinualDataModule(
        [task],
        batch_size=like.batch_size,
        eval_batch_size=like.eval_batch_size,
        max_length=like.max_length,
        on_too_long=like.on_too_long,
        images=like.images,
    )


def save_adapter(
    draft: Draft, expert: str, adapter: Path, module: ContinualModule, to: Path
) -> None:
    """Save a foreign adapter as an expert of a draft.

    Args:
        draft: Receives the expert.
        expert: Its name.
        adapter: Folder that PEFT or a tool around it wrote.
        module: Has the base model, without experts.
        to: Folder to write.

    Raises:
        ValueError: If the adapter is not plain LoRA on linears of the model's blocks.
    """
    base, library = module.backbone, module.library
    found = read_adapter(adapter, base.linear_shapes())
    if Path(found.base).name != Path(base.name_or_path).name:
        log.warning("%s was made for %s; the run uses %s", adapter, found.base, base.name_or_path)
    library.add(expert, found.ranks, found.alphas)
    try:
        library.load_state_dict(expert, found.tensors)
        save_expert(library, expert, to, base.name_or_path)
    finally:
        library.remove(expert)
    draft.experts[expert] = (to, expert)
