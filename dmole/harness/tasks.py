"""Writes tasks as a folder of tasks of lmms-eval, with data that `datasets` reads offline."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole.benchmarks.registry import build_metric
from dmole.data.decoding import AS_STORED, read_image
from dmole.data.sample import EmbeddedImage, FileImage, ImageSource, Sample
from dmole.harness.conversations import survives
from dmole.harness.task_functions import score_names
from dmole.storage.files import check_name
from dmole.storage.folders import new_folder

if TYPE_CHECKING:
    import pyarrow as pa

    from dmole.data.task import Task
    from dmole.datamodule import ContinualDataModule

log = logging.getLogger("dmole")

DATA, UTILS = "data", "utils.py"
_GROUP = "all"
_ROWS = 64  # rows in memory

_FUNCTIONS = (
    *("aggregate", "aggregate_corrected", "aggregate_published", "doc_to_messages"),
    *("doc_to_target", "doc_to_text", "doc_to_visual", "process_results"),
)
_UTILS = '''\
"""Functions of the tasks in this folder, written by ``dmole data export-tasks``."""

from dmole.harness.task_functions import (
    {},
)
'''.format(",\n    ".join(_FUNCTIONS))
_TASK = """\
task: {name}
dataset_path: {data}
test_split: test
output_type: generate_until
doc_to_messages: !function utils.doc_to_messages
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: !function utils.doc_to_target
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: {length}
  until: []
  temperature: 0
  do_sample: false
metric_list:
{scores}metadata:
  version: 1
"""
_SCORE = """\
  - metric: {name}
    aggregation: !function utils.{function}
    higher_is_better: true
"""


def export_tasks(data: ContinualDataModule, output: Path, *, prefix: str = "dmole") -> list[str]:
    """Write the test samples of tasks as tasks of lmms-eval, and a group of all of them.

    The folder is the value of lmms-eval's ``--include_path``. A metric with two profiles gives the
    scores ``published`` and ``corrected``, any other metric ``score``; dmole computes them.

    Args:
        data: The tasks; an update without test samples is left out.
        output: The folder to make. The tasks name it, so it has to stay where it is.
        prefix: Beginning of the names of the tasks; the group is called ``<prefix>_all``.

    Returns:
        Names of the tasks in lmms-eval.

    Raises:
        ValueError: If the output exists, data cannot be read, a task has the name of the group, or
            a metric is an object, which a name cannot stand for.
    """
    check_name(prefix, "prefix")
    tasks = [data.task(name) for name in data.column_names]
    for task in tasks:
        if not isinstance(task.metric, str):
            raise ValueError(
                f"task {task.name!r}: its metric is configured by a class_path; lmms-eval needs "
                "the name of a metric"
            )
        if task.name == _GROUP:
            raise ValueError(f"task {task.name!r} has the name of the group of all tasks")
    names = [f"{prefix}_{task.name}" for task in tasks]
    with new_folder(output) as folder:
        (folder / UTILS).write_text(_UTILS, encoding="utf-8")
        for task, name in zip(tasks, names, strict=True):
            _write_data(task, data.test_samples(task.name), folder / DATA / task.name)
            text = task_text(task, name, output.resolve() / DATA / task.name)
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        group = f"{prefix}_{_GROUP}"  # not the prefix: lmms-eval takes the name of a folder for it
        (folder / f"{group}.yaml").write_text(_group(group, names), encoding="utf-8")
    return names


def task_text(task: Task, name: str, data: Path) -> str:
    """Return the YAML of a task.

    Args:
        task: The task.
        name: Its name in lmms-eval.
        data: Folder of its data.
    """
    scores = (
        _SCORE.format(name=each, function="aggregate" if each == "score" else f"aggregate_{each}")
        for each in score_names(str(task.metric))
    )
    return _TASK.format(
        name=name, data=json.dumps(str(data)), length=task.max_new_tokens, scores="".join(scores)
    )


def _group(name: str, names: Iterable[str]) -> str:
    return f"group: {name}\ntask:\n" + "".join(f"  - {name}\n" for name in names)


def _schema() -> pa.Schema:
    """Return the columns of the data: one row a test sample."""
    import pyarrow as pa

    turn = pa.struct({"role": pa.string(), "text": pa.string()})
    image = pa.struct({"content": pa.binary(), "background": pa.string(), "apply_exif": pa.bool_()})
    return pa.schema(
        {
            "id": pa.string(),
            "task": pa.string(),
            "metric": pa.string(),
            "turns": pa.list_(turn),
            "images": pa.list_(image),
            "references": pa.list_(pa.string()),
            "metadata": pa.string(),
        }
    )


def _write_data(task: Task, samples: Sequence[Sample], folder: Path) -> None:
    """Write the test samples of a task as one file of parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    schema, changed = _schema(), 0
    with pq.ParquetWriter(folder / "test.parquet", schema) as writer:
        for start in range(0, len(samples), _ROWS):
            some = [samples[i] for i in range(start, min(start + _ROWS, len(samples)))]
            changed += sum(not survives(sample.turns) for sample in some)
            rows = list(_rows(task, some))
            writer.write_table(pa.Table.from_pylist(rows, schema))
    if changed:
        log.warning(
            "task %r: %d prompts have an image in a line with text; a model of lmms-eval reads "
            "a line break between them",
            task.name,
            changed,
        )


def _rows(task: Task, samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    needs = build_metric(task.metric).needs
    for sample in samples:
        facts = {key: sample.metadata[key] for key in needs if key in sample.metadata}
        yield {
            "id": sample.id,
            "task": task.name,
            "metric": task.metric,
            "turns": [{"role": turn.role, "text": turn.text} for turn in sample.turns],
            "images": [_image(image) for image in sample.images],
            "references": list(sample.references),
            "metadata": json.dumps(facts, ensure_ascii=False),
        }


def _image(image: ImageSource) -> dict[str, Any]:
    """Return an image as it is stored, with its treatment; an image in memory as PNG."""
    options = AS_STORED
    if isinstance(image, FileImage):
        content, options = read_image(image.path), image.options
    elif isinstance(image, EmbeddedImage):
        content, options = image.read(), image.options
    else:
        buffer = io.BytesIO()
        image.load().save(buffer, "PNG")
        content = buffer.getvalue()
    return {
        "content": content,
        "background": options.background,
        "apply_exif": options.apply_exif,
    }
