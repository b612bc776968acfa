"""The model card of a bundle: text for people, and the metadata that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from dmole._version import __version__
from dmole.messages import visible
from dmole.metrics.evaluated import statement
from dmole.run.bundle import is_hub_name
from dmole.run.parts import Part, kind_of

if TYPE_CHECKING:
    from dmole.publish.parts import Source

_TAGS = ["dmole", "lora", "continual-learning", "mixture-of-experts"]
_ADDRESS = ("synthetic://", "hf://")


def write_card(
    source: Source, path: Path, title: str, licence: str | None, sources: Mapping[str, str]
) -> None:
    """Write the model card of a run.

    Args:
        source: The run.
        path: The file.
        title: Name of the bundle.
        licence: Identifier of its licence; None leaves the slot open.
        sources: Where the data of a task come from, by task.
    """
    texts = {
        str(task["name"]): sources.get(str(task["name"])) or data_source(task)
        for task in source.settings.data["tasks"]
    }
    head = _metadata(source, title, licence, texts)
    path.write_text(f"---\n{head}\n---\n\n{_body(source, title, licence, texts)}", "utf-8")


def data_source(task: Mapping[str, Any]) -> str:
    """Return where the data of a task come from, without the folder of a file.

    Example:
        >>> data_source({"train": "/home/me/data/receipts.json"})
        'receipts.json'
        >>> data_source({"train": "hf://org/set?split=train"})
        'hf://org/set?split=train'
    """
    address = task.get("train") or task.get("test") or ""
    if not address or str(address).startswith(_ADDRESS):
        return str(address) or "not stated"
    return PureWindowsPath(PurePosixPath(str(address)).name).name


def _metadata(source: Source, title: str, licence: str | None, texts: Mapping[str, str]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    name = source.base.name
    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type="dmole",
            dataset_name=f"sequence of {len(texts)} tasks: {', '.join(texts)}",
            metric_type=key.lower(),
            metric_name=key,
            metric_value=source.run.metrics[key],
        )
        for key in ("Last", "BWT")
        if source.run.metrics.get(key) is not None
    ]
    data_sets = [text[5:].partition("?")[0] for text in texts.values() if text.startswith("hf://")]
    card = ModelCardData(
        library_name="peft",
        pipeline_tag="image-text-to-text",
        base_model=name if name and is_hub_name(name) else None,
        license=licence,
        tags=_TAGS,
        datasets=sorted(set(data_sets)) or None,
        model_name=title,
        eval_results=results,
    )
    return str(card.to_yaml()).strip()


def _body(source: Source, title: str, licence: str | None, texts: Mapping[str, str]) -> str:
    base = source.base
    known = f"`{base.name}`" if base.name else "a model without a public name"
    revision = f", revision `{base.revision}`" if base.revision else ""
    figures = {key: _percent(source.run.metrics.get(key)) for key in ("Last", "BWT")}
    drawn = source.run.subsample
    return _TEXT.format(
        title=title,
        count="one LoRA expert"
        if len(source.experts) == 1
        else f"{len(source.experts)} LoRA experts",
        base=f"{known}{revision}",
        weights=base.weights,
        method=_method(source),
        version=__version__,
        last=figures["Last"],
        bwt=figures["BWT"],
        drawn=("" if drawn is None else f" Scored on a part of the test samples: {drawn}.")
        + _padded(statement(source.run.metrics)),
        rows="\n".join(_row(source, task, text) for task, text in texts.items()),
        licence=licence or "not stated",
        argument="" if base.name else ', base="FOLDER_OF_THE_BASE_MODEL"',
        place=base.name if base.name and is_hub_name(base.name) else "FOLDER_OF_THE_BASE_MODEL",
        expert=_plain_expert(source),
    )


def _padded(text: str) -> str:
    return f" {text}" if text else ""


def _row(source: Source, task: str, text: str) -> str:
    figures = (source.run.metrics.get("per_task") or {}).get(task) or {}
    setting: Mapping[str, Any] = source.run.task_configs.get(task) or {}
    metric = setting.get("metric", "exact_match")
    name = metric if isinstance(metric, str) else "of its author"
    cells = (task, _percent(figures.get("Learned")), _percent(figures.get("Last")), name, text)
    return "| " + " | ".join(visible(str(cell)).replace("|", "\\|") for cell in cells) + " |"


def _percent(value: Any) -> str:
    return "-" if value is None else f"{float(value):.1f}"


def _method(source: Source) -> str:
    """Return the parts of the method by the short names of dmole."""
    stream = source.settings.trainer.get("stream")
    router = source.settings.model["router"]
    allocator = source.run.section("model").get("allocator")
    path = allocator.get("class_path") if isinstance(allocator, dict) else None
    named = [
        ("router", router.kind),
        ("allocation", kind_of(str(path), "Allocator") if path else None),
        ("stream", stream.kind if isinstance(stream, Part) else "SequentialStream"),
    ]
    return ", ".join(f"{what} `{kind}`" for what, kind in named if kind)


def _plain_expert(source: Source) -> str:
    """Return the lines that load an expert with PEFT, or say that PEFT cannot."""
    folder = source.run.folder / "experts"
    plain = [name for name in source.experts if (folder / name / "adapter_config.json").is_file()]
    if not plain:
        return "PEFT has no layout for the experts of this method; they load with dmole alone."
    return _PEFT.format(name=plain[0])


_PEFT = """\
Each folder below `experts` is a PEFT adapter of its own:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "FOLDER_OF_THIS_BUNDLE/experts/{name}")
```"""

_TEXT = """\
# {title}

What one base model learned task after task: {count}, and the router that decides which
of them a prompt uses; made with dmole {version}.

- Base model: {base}. SHA-256 of its weights: `{weights}`.
- Method: {method}.
- Licence: {licence}.

## Figures

Last {last} (mean score after the last task), BWT {bwt} (change since each task was learned), in
percent.{drawn}

| task | when learned | at the end | metric | data |
|---|---|---|---|---|
{rows}

## Use

```python
import dmole

model = dmole.load("FOLDER_OF_THIS_BUNDLE"{argument})
print(model.generate(images="image.png", prompt="..."))
```

{expert}
"""
