"""The Lightning datamodule of a sequence: loaders for training, evaluation and embedding."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from dmole.data.batch import Batch
from dmole.data.collate import Collator, TaskSample
from dmole.data.decoding import AS_STORED, ImageOptions
from dmole.data.evaluation_batches import evaluation_batches
from dmole.data.filler import filler
from dmole.data.formats import Split
from dmole.data.image_state import image_state
from dmole.data.image_store import ImageCache
from dmole.data.leakage import warn_of_leakage
from dmole.data.loader import (
    ResumableLoader,
    position_after,
    sequential_loader,
    train_loader,
)
from dmole.data.ranges import check_numbers
from dmole.data.sample import Sample
from dmole.data.sample_errors import task_origin
from dmole.data.sampler import (
    Indices,
    TrainBatchSampler,
    endless_batches,
    random_batches,
    split_batches,
)
from dmole.data.sequences import TaskItems
from dmole.data.source import address_of
from dmole.data.task import Task
from dmole.data.templates import PromptSettings
from dmole.data.token_batches import TokenBatchSampler, tokens_of
from dmole.distributed import max_over_ranks
from dmole.run.context import EvaluationPass
from dmole.storage.seeds import derive_seed
from dmole.store import SPLITS, SampleStore
from dmole.streams.draws import Part
from dmole.streams.stream import Stage

log = logging.getLogger("dmole")


class ContinualDataModule(LightningDataModule):
    """The data of all tasks. The current stage decides which of it the loaders serve.

    Args:
        tasks: The tasks. They are learned in this order unless the stream changes it.
        data_root: Folder that the files and image roots of the tasks are relative to. The default
            is the working directory.
        batch_size: Samples per device and training step, for tasks that do not set their own.
        max_tokens_per_batch: Most tokens of a training batch on a device, padding included. It
            sets the number of samples of a batch in place of ``batch_size``, which remains that of
            the proxy pass. Samples of similar length share a batch, the same ones in every epoch.
        eval_batch_size: Samples per device in generation, embedding and scoring.
        eval_tokens_per_batch: Most tokens of a batch in generation, padded prompts and longest
            answers together. It sets the number of samples of a batch in place of
            ``eval_batch_size``, which remains that of embedding and scoring.
        eval_limit: Maximum number of test samples of a task that are evaluated; ``null`` evaluates
            all. They are drawn with ``seed`` and are the same at every stage. Results say that
            samples were drawn, with the standard error of each score.
        num_workers: Processes that read and prepare batches; 0 uses the main process.
        seed: Seed of the order of training samples.
        max_length: Maximum number of tokens of a sample, image tokens included; ``null`` takes
            the context length of the base model.
        on_too_long: ``error`` refuses longer training samples, ``truncate`` cuts their answer.
        group_by_length: Whether each training batch holds samples of similar length.
        pin_memory: Whether batches are put into page-locked memory, for faster copies to a GPU.
        verify_images: Whether `check` also decodes every image file.
        images: How transparent and turned images are read, for tasks that do not set their own:
            ``background`` (default null: transparency is dropped) and ``apply_exif`` (default
            false: the pixels keep their stored order).
        cache_images: Whether what the image processor returns is kept for later epochs and
            evaluations, with equal results: ``off``; ``ram``, in each process and data worker;
            ``disk``, in a folder that all processes and runs share.
        cache_bytes: Number of bytes that are kept, in each process for ``ram``.
        cache_folder: Folder for ``disk``; the default is ``images`` in ``DMOLE_CACHE``.

    Raises:
        ValueError: If the tasks or a number are not valid.

    Example:
        >>> from dmole import ContinualDataModule, Task
        >>> address = "synthetic://count/{}?size=8"
        >>> task = Task("count", train=address.format("train"), test=address.format("test"))
        >>> data = ContinualDataModule([task], batch_size=4)
        >>> data.check()  # reads all files and refuses samples that cannot be used in training
        >>> data.test_samples("count")[0].prompt
        'say how many there are'
    """

    def __init__(
        self,
        tasks: list[Task],
        data_root: str | None = None,
        batch_size: int = 8,
        max_tokens_per_batch: int | None = None,
        eval_batch_size: int = 32,
        eval_tokens_per_batch: int | None = None,
        eval_limit: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        max_length: int | None = None,
        on_too_long: Literal["error", "truncate"] = "error",
        group_by_length: bool = True,
        pin_memory: bool = False,
        verify_images: bool = False,
        images: ImageOptions = AS_STORED,
        cache_images: str | bool = "off",  # YAML reads off as false
        cache_bytes: int = 4 * 2**30,
        cache_folder: str | None = None,
    ) -> None:
        super().__init__()
        # test samples are split without duplicates, so a rank may have none if there are few
        self.allow_zero_length_dataloader_with_multiple_devices = True
        check_numbers(
            batch_size=batch_size,
            max_tokens_per_batch=max_tokens_per_batch,
            eval_batch_size=eval_batch_size,
            eval_tokens_per_batch=eval_tokens_per_batch,
            eval_limit=eval_limit,
            num_workers=num_workers,
            max_length=max_length,
        )
        self.images = images
        self.tasks = self._with_images(tasks)
        self._store = SampleStore(self.tasks, Path(data_root or "."), eval_limit, seed)
        self.batch_size = batch_size
        self.max_tokens_per_batch = max_tokens_per_batch
        self._tokens: tuple[int, Indices] | None = None
        self.eval_batch_size = eval_batch_size
        self.eval_tokens_per_batch = eval_tokens_per_batch
        self.eval_limit = eval_limit
        self.seed = seed
        self.max_length = max_length
        self.on_too_long = on_too_long
        self.group_by_length = group_by_length
        self.verify_images = verify_images
        self._image_cache = ImageCache(cache_images, cache_bytes, cache_folder)
        self._options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory}
        self._collator: Collator | None = None
        self._stage: Stage | None = None
        self._pending: dict[str, list[int]] | None = None
        self._answered: frozenset[str] = frozenset()
        self._in_step = self._evaluates_in_step = False

    @property
    def task_names(self) -> list[str]:
        """Names of all tasks, in the order given."""
        return self._store.task_names

    @property
    def training_task_names(self) -> list[str]:
        """Names of the tasks that are trained on, in the order given; others are only scored."""
        return self._store.training_task_names

    @property
    def column_names(self) -> list[str]:
        """Names of the tasks with a column in the matrix, in the order given.

        An ``update`` without test samples of its own has none.
        """
        return self._store.column_names

    @property
    def predecessors(self) -> Mapping[str, str]:
        """The version of a task that each task with ``update`` continues."""
        return self._store.predecessors

    def task(self, name: str) -> Task:
        """Return the task with a name; `ValueError` if there is none."""
        return self._store.task(name)

    def train_samples(self, name: str) -> Sequence[Sample]:
        """Return the training samples of a task; their file is read once."""
        return self._store.samples(name, "train")

    def test_samples(self, name: str) -> Sequence[Sample]:
        """Return the test samples of a task that are evaluated; their file is read once."""
        return self._store.samples(name, "test")

    def test_size(self, name: str) -> int:
        """Return the number of a task's test samples, also where ``eval_limit`` leaves some out."""
        return self._store.test_size(name)

    def add_general(self, general: Sequence[Task]) -> None:
        """Set the data that stages train on in addition to their tasks; see `Stream.general`."""
        self._store.add_general(self._with_images(general))

    def _with_images(self, tasks: Sequence[Task]) -> list[Task]:
        """Return tasks; those that do not say how images are read get the setting of the data."""
        if self.images == AS_STORED:
            return list(tasks)
        return [replace(t, images=self.images) if t.images is None else t for t in tasks]

    @property
    def general_names(self) -> list[str]:
        """Names of the data that stages train on in addition to their tasks."""
        return self._store.general_names

    def stage_items(self, stage: Stage) -> TaskItems:
        """Return the samples of one epoch of a stage: those that arrive, then replayed ones.

        A sample occurs ``repeat`` times if its task sets that. A sample of a task that is not
        among the stage's tasks is replayed or belongs to a neighboring stage.
        """
        draw = (stage.tasks, self._store, self.seed)
        return self._store.items([*stage.draw.arriving(*draw), *stage.draw.replayed(*draw)])

    def arriving_items(self, stage: Stage) -> TaskItems:
        """Return the samples of one epoch of a stage, without replayed ones."""
        return self._store.items(stage.draw.arriving(stage.tasks, self._store, self.seed))

    def replayed_items(self, stage: Stage) -> TaskItems:
        """Return the samples of earlier stages that a stage replays."""
        return self._store.items(stage.draw.replayed(stage.tasks, self._store, self.seed))

    def items(self, parts: Sequence[Part]) -> TaskItems:
        """Return the training samples of some parts, each with the name of its task."""
        return self._store.items(parts)

    def epochs(self, stage_tasks: Sequence[str]) -> int:
        """Return the number of epochs of a stage: the largest setting of its tasks."""
        return max(self.task(name).epochs for name in stage_tasks)

    def stage_batch_size(self, stage_tasks: Sequence[str]) -> int:
        """Return the batch size of a stage: the smallest setting of its tasks."""
        sizes = [self.task(name).batch_size or self.batch_size for name in stage_tasks]
        return min(sizes)

    def check(self, splits: Sequence[Split] = SPLITS, optional: Collection[str] = ()) -> None:
        """Read every file of every task, to report bad data before the first training step.

        Logs a warning if test samples have the images and the question of a training sample.

        Args:
            splits: Splits whose files are read; an evaluation reads the test files only.
            optional: Tasks whose files may be gone, since a finished run has learned them. Without
                test files such a task is not evaluated, which a warning says.

        Raises:
            FileNotFoundError: If a file or an image of another task is missing.
            ValueError: If a file is malformed or empty, or ids repeat.
        """
        self._store.check(decode_images=self.verify_images, splits=splits, optional=optional)
        for (name, split), text in self.missing.items():
            if split == "test":
                log.warning("task %r is not evaluated, its cells stay empty: %s", name, text)
            else:
                log.info("task %r is learned, its training files are gone: %s", name, text)
        for name in self.training_task_names if set(splits) == set(SPLITS) else ():
            tested = self._tested_with(name)
            if (name, "train") not in self.missing and (tested, "test") not in self.missing:
                warn_of_leakage(name, self.train_samples(name), self.test_samples(tested))

    def _tested_with(self, name: str) -> str:
        """Return the task whose test samples are those of a task, or of the task it updates."""
        while name not in self.column_names:
            name = self.predecessors[name]
        return name

    @property
    def missing(self) -> Mapping[tuple[str, Split], str]:
        """What is missing of tasks whose files may be gone, by task and split."""
        return self._store.missing

    @property
    def tested_task_names(self) -> list[str]:
        """Names of the tasks whose test samples are there, in the order of all tasks."""
        return [name for name in self.column_names if (name, "test") not in self.missing]

    def fingerprint(self, splits: Sequence[Split] = SPLITS) -> dict[str, dict[str, str]]:
        """Return a SHA-256 of the content of the samples, for each task and split."""
        return self._store.fingerprint(splits)

    def image_state(self, name: str, split: Split) -> str:
        """Return a SHA-256 that a change of an image file of a task changes."""
        return image_state(self._store.samples(name, split).stored_images())

    def attach_processor(
        self,
        processor: Any,
        context_length: int | None = None,
        prompts: PromptSettings | None = None,
    ) -> None:
        """Set the transformers processor that makes the tensors; every loader needs it.

        Args:
            processor: The processor of the base model.
            context_length: Maximum number of tokens of the base model; the limit if
                ``max_length`` is not set.
            prompts: How prompts are written, beyond the chat template.
        """
        limit = context_length if self.max_length is None else self.max_length
        images = self._image_cache.open()
        self._collator = Collator(
            processor, limit, self.on_too_long, prompts, self._origin, images=images
        )

    def _origin(self, sample: Sample, name: str) -> str:
        """Return the task of a sample, and its file if the task has one."""
        if name not in self.task_names:
            return task_origin(sample, name)
        address = address_of(self.task(name), "test" if sample.references else "train")
        return f"task {name!r} ({address})"

    @property
    def collator(self) -> Collator:
        """The collator, which makes the tensors of a batch.

        Raises:
            RuntimeError: If no processor is attached.
        """
        if self._collator is None:
            raise RuntimeError("the data module has no processor: call attach_processor first")
        return self._collator

    def keep_in_step(self, *, training: bool, evaluation: bool) -> None:
        """Give all ranks the same number of batches, and each batch an image, by fillers.

        Args:
            training: In training and scoring.
            evaluation: In generation and embedding.
        """
        self._in_step, self._evaluates_in_step = training, evaluation

    def set_stage(self, stage: Stage) -> None:
        """Set the stage whose training data the next `train_dataloader` serves.

        Args:
            stage: The stage; its index is part of the seed of the order.

        Raises:
            ValueError: If the stage has no task or an unknown one.
        """
        if not stage.tasks:
            raise ValueError(f"stage {stage.index} has no task")
        for name in stage.tasks:
            self.task(name)
        self._stage = stage

    def set_evaluation(self, evaluation: EvaluationPass) -> None:
        """Set the test samples that `test_dataloader` serves.

        Batches whose samples an earlier process has all answered are left out. The other batches
        stay unchanged.

        Args:
            evaluation: The pass; tasks without pending samples are left out.

        Raises:
            ValueError: If a task is unknown.
        """
        self._pending = None
        if evaluation.pending is not None:
            self._pending = {
                self.task(name).name: list(indices)
                for name, indices in evaluation.pending.items()
                if indices
            }
        self._answered = frozenset(evaluation.earlier_answers)

    @property
    def pending(self) -> dict[str, list[int]]:
        """Indices of the test samples to answer, by task; all of them by default."""
        if self._pending is None:
            return {
                name: list(range(len(self.test_samples(name)))) for name in self.tested_task_names
            }
        return self._pending

    def train_dataloader(self) -> ResumableLoader:
        """Return this rank's loader of the stage's training batches.

        Raises:
            RuntimeError: If no stage is set or no processor is attached.
        """
        if self._stage is None:
            raise RuntimeError("the data module has no stage: call set_stage first")
        items = self.stage_items(self._stage)
        trainer = self.trainer
        sampler = self._sampler(self._stage, items)
        options = {"in_step": self._in_step, **self._options}
        if trainer is None:
            return train_loader(items, self.collator, sampler, **options)
        # on resume, Lightning makes the iterator before it sets the epoch
        sampler.set_epoch(trainer.current_epoch)

        def limit() -> int:  # Lightning sets it once it has the loader
            return int(trainer.num_training_batches)

        return train_loader(items, self.collator, sampler, limit, **options)

    def batch_after(self, stage: Stage, state: dict[str, Any]) -> tuple[int, int]:
        """Return where a resumed run continues within an epoch.

        Args:
            stage: The stage in training.
            state: State of its loader in a checkpoint.

        Returns:
            Number of batches of the epoch that are done, and number of batches of an epoch.
        """
        sampler = self._sampler(stage, self.stage_items(stage))
        sampler.set_epoch(state["epoch"])
        return position_after(state, sampler)[2], len(sampler)

    def _sampler(self, stage: Stage, items: TaskItems) -> TrainBatchSampler:
        rank, num_replicas = _rank()
        place = {
            "seed": self.seed,
            "stage": stage.index,
            "rank": rank,
            "num_replicas": num_replicas,
            "window": self._accumulated(),
        }
        if (most := self.max_tokens_per_batch) is None:
            size, grouped = self.stage_batch_size(stage.tasks), self.group_by_length
            return TrainBatchSampler(
                len(items), size, lengths=items.lengths, grouped=grouped, **place
            )

        def count() -> Indices:  # once for a stage
            if self._tokens is None or self._tokens[0] != stage.index:
                self._tokens = stage.index, tokens_of(items, self.collator, most)
            return self._tokens[1]

        return TokenBatchSampler(len(items), most, count, **place)

    def test_dataloader(self) -> list[DataLoader[TaskSample]]:
        """Return a loader of generation batches for each task of `pending`, in its order.

        The samples are split among the ranks without duplicates. Those of a batch have prompts of
        similar length.
        """
        loaders = []
        for name, indices in self.pending.items():
            samples = self._store.samples(name, "test")
            items = TaskItems([(name, samples)])
            batches = [
                batch
                for batch in self._evaluation_batches(name, items, indices)
                if not self._answered or not self._all_answered(name, [samples[i] for i in batch])
            ]
            in_step = self._evaluates_in_step
            loaders.append(self._loader(items, batches, generation=True, in_step=in_step))
        return loaders

    def _loader(
        self,
        items: Sequence[TaskSample],
        batches: Sequence[Sequence[int]],
        *,
        generation: bool,
        in_step: bool,
    ) -> DataLoader[TaskSample]:
        """Return a loader of given batches; in step, of as many as the rank with most has."""
        fill = filler(items[0][1], generation=generation) if in_step else None
        if fill is not None:
            missing = self._most(len(batches)) - len(batches)
            batches = [*batches, *[[len(items)]] * missing]
        return sequential_loader(
            items,
            self.collator,
            batches=batches,
            generation=generation,
            filler=fill,
            **self._options,
        )

    def _most(self, count: int) -> int:
        """Return the largest count of all ranks."""
        assert self.trainer is not None  # ranks have one
        return max_over_ranks(count, self.trainer.strategy.root_device)

    def _evaluation_batches(
        self, name: str, items: TaskItems, indices: Sequence[int]
    ) -> list[list[int]]:
        samples, size = self._store.samples(name, "test"), self.eval_batch_size
        if self.eval_tokens_per_batch is None:
            return evaluation_batches(samples, indices, size, *_rank())

        def count(chosen: Sequence[int]) -> list[int]:
            return self.collator.count_tokens([items[i] for i in chosen], generation=True)

        tokens = self.eval_tokens_per_batch, self.task(name).max_new_tokens, count
        return evaluation_batches(samples, indices, size, *_rank(), tokens)

    def embedding_loader(
        self,
        samples: Sequence[TaskSample],
        *,
        generation: bool = False,
        shard: bool = False,
        batch_size: int | None = None,
    ) -> DataLoader[TaskSample]:
        """Return a loader of the given samples in their order, for embedding or scoring.

        Args:
            samples: Samples with the names of their tasks. Test samples have no answer and need
                ``generation``.
            generation: Whether batches are prompts, padded on the left and without labels.
            shard: Whether a rank gets only its share instead of all samples.
            batch_size: Samples in a batch; None takes the evaluation batch size.
        """
        rank, num_replicas = _rank() if shard else (0, 1)
        size = batch_size or self.eval_batch_size
        batches = split_batches(range(len(samples)), size, rank, num_replicas)
        in_step = shard and self._evaluates_in_step
        return self._loader(samples, batches, generation=generation, in_step=in_step)

    def proxy_batches(
        self, stage: Stage, tasks: Sequence[str], fraction: float, seed: int
    ) -> Iterator[list[Batch]]:
        """Return random batches of samples of some tasks that arrive in a stage, at least one.

        A proxy batch has the size of an optimizer step over all ranks and accumulated batches, so
        the choice depends only on the global batch size. It is split into parts that each fit on
        one device.

        Args:
            stage: The stage.
            tasks: One of its tasks, or those that its draw scores together.
            fraction: Share of the batches, rounded up, in (0, 1].
            seed: Seed of the choice.

        Returns:
            This rank's parts of each batch; of a small last batch it may have none, or in step a
            filler.

        Raises:
            ValueError: If the fraction is out of range.
        """
        items = self._store.items(stage.draw.arriving(tasks, self._store, self.seed))
        size, step = self._step_size(tasks)
        chosen = random_batches(len(items), step, fraction, derive_seed(seed, *tasks))
        return self._in_parts(items, ((batch, size) for batch in chosen))

    def random_steps(self, stage: Stage, steps: int, seed: int) -> Iterator[list[Batch]]:
        """Return random batches of the samples that arrive in a stage.

        Tasks that its draw scores apart from each other take turns. All samples of a task are used
        before one is used again. Size and parts are those of :meth:`proxy_batches`.

        Args:
            stage: The stage.
            steps: Number of batches.
            seed: Seed of the order.
        """
        groups = stage.draw.scored(stage.tasks)
        parts = [stage.draw.arriving(tasks, self._store, self.seed) for tasks in groups]
        turns, start = [], 0
        for tasks, own in zip(groups, parts, strict=True):
            size, step = self._step_size(tasks)
            count = len(self._store.items(own))
            batches = endless_batches(range(start, start + count), step, seed, tasks)
            turns.append(zip(batches, itertools.repeat(size)))
            start += count
        chosen = itertools.chain.from_iterable(zip(*turns, strict=False))
        items = self._store.items([*itertools.chain.from_iterable(parts)])
        return self._in_parts(items, itertools.islice(chosen, steps))

    def _step_size(self, tasks: Sequence[str]) -> tuple[int, int]:
        """Return the samples of a batch of some tasks, and of a step over all ranks."""
        size = self.stage_batch_size(tasks)
        return size, size * _rank()[1] * self._accumulated()

    def _in_parts(
        self, items: Sequence[TaskSample], batches: Iterable[tuple[Sequence[int], int]]
    ) -> Iterator[list[Batch]]:
        """Return this rank's parts of batches, each of which comes with the size of a part."""
        rank, num_replicas = _rank()
        ranks = [split_batches(batch, size) for batch, size in batches]
        parts = [batch[rank::num_replicas] for batch in ranks]
        if self._in_step:
            for own, batch in zip(parts, ranks, strict=True):
                own += [[len(items)]] * (math.ceil(len(batch) / num_replicas) - len(own))
        flat = [part for batch in parts for part in batch]
        loader = self._loader(items, flat, generation=False, in_step=self._in_step)
        return _grouped(loader, [len(batch) for batch in parts])

    def _accumulated(self) -> int:
        return 1 if self.trainer is None else self.trainer.accumulate_grad_batches

    def _all_answered(self, task: str, samples: Sequence[Sample]) -> bool:
        return all(f"{task}/test/{sample.id}" in self._answered for sample in samples)


def _grouped(batches: Iterable[Any], sizes: Sequence[int]) -> Iterator[list[Batch]]:
    """Yield consecutive batches as lists of the given sizes."""
    iterator = iter(batches)
    for size in sizes:
        yield list(itertools.islice(iterator, size))


def _rank() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
