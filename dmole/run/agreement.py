"""Comparisons of what the ranks of a run read and learned: all of it must be the same.

Ranks that differ would wait for each other for ever, or train on different data or with another
learning rate without a sign of it. A rank may differ where its node has another config file,
another folder of data, or other versions of packages.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dmole.distributed import gather_objects, is_distributed
from dmole.messages import one_line
from dmole.run.settings import run_settings, stream_settings

if TYPE_CHECKING:
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

_PACKAGES = (
    *("dmole", "torch", "lightning", "transformers", "tokenizers", "safetensors"),
    *("numpy", "pillow", "pyarrow"),
)
_OF_NODE = (
    *("config", "ckpt_path"),
    *("trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.plugins"),
    *("trainer.loggers", "trainer.report_to", "trainer.profiler"),
    *("data.data_root", "data.num_workers"),
    *("data.cache_images", "data.cache_bytes", "data.cache_folder"),
    *("model.cache_vision", "model.cache_vision_bytes", "model.cache_vision_folder"),
    *("data.pin_memory", "model.backbone.init_args.name_or_path"),
)
"""Settings that may differ between nodes: places and costs, which change at most rounding."""
_OF_TASK_ON_NODE = ("train", "test", "image_root", "test_image_root", "side_files")
_SHOWN = 3  # differences that a message names


class DisagreementError(ValueError):
    """The ranks of a run differ in something that must be the same."""


@runtime_checkable
class LearnsTensors(Protocol):
    """A callback with tensors that later stages depend on."""

    def learned_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors by name."""


@runtime_checkable
class KnowsConfig(Protocol):
    """A callback that knows the config of the run."""

    def config_values(self) -> Mapping[str, Any]:
        """Return the nested settings of the run."""


Values = Mapping[str, Mapping[str, str]]
"""Texts by name, in groups; only the first group that differs is reported."""


def check_start(state: SequenceState, module: ContinualModule) -> None:
    """Compare settings, data, base model and versions over the ranks. All ranks must call it.

    Raises:
        DisagreementError: If a rank differs from rank 0; names rank, setting and values.
    """
    if is_distributed():
        check_agreement(lambda: start_values(state, module))


def check_learned(state: SequenceState, module: ContinualModule, where: str) -> None:
    """Compare experts, other trained parameters and router over the ranks.

    All ranks must call it.

    Args:
        state: State of the sequence.
        module: Has experts and router.
        where: Position in the run, for the message.

    Raises:
        DisagreementError: If a rank differs from rank 0; names rank and tensor.
    """
    if is_distributed():
        check_agreement(lambda: learned_values(state, module), where)


def check_agreement(values: Callable[[], Values], where: str = "") -> None:
    """Compare named texts over the ranks. All ranks must call it.

    The ranks exchange one digest, and the texts only if the digests differ.

    Args:
        values: Returns the texts of this rank.
        where: Position in the run, for the message.

    Raises:
        DisagreementError: If a rank differs from rank 0 or fails in ``values``; on all ranks.
    """
    texts, error = _computed(values)
    digests = gather_objects(_digest({"error": error, **texts}))
    if len(set(digests)) > 1 or error:
        message = difference(gather_objects((texts, error)))
        raise DisagreementError(f"{message}, {where}" if where else message)


def difference(ranks: Sequence[tuple[Values, str]]) -> str:
    """Return what differs between rank 0 and the first rank that differs from it.

    Args:
        ranks: For each rank its texts and its error, empty if there is none.

    Example:
        >>> difference([({"data": {"data.seed": "0"}}, ""), ({"data": {"data.seed": "1"}}, "")])
        'rank 1 has another data.seed: 1 against 0 of rank 0'
    """
    for rank, (_, error) in enumerate(ranks):
        if error:
            return f"rank {rank} failed: {error}"
    for group, first in ranks[0][0].items():
        for rank, (values, _) in enumerate(ranks):
            texts = values.get(group, {})
            names = dict.fromkeys([*first, *texts])
            shown = [
                _contrast(n, texts.get(n), first.get(n))
                for n in names
                if first.get(n) != texts.get(n)
            ]
            if shown:
                more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
                return f"rank {rank} has another {', another '.join(shown[:_SHOWN])}{more}"
    return "the ranks differ"


def start_values(state: SequenceState, module: ContinualModule) -> Values:
    """Return all that must be the same on every rank before the first stage."""
    digests = dict(state.fingerprints(module))
    data = digests.pop("data")
    versions = {f"version of {package}": _version(package) for package in _PACKAGES}
    return {
        "config": _config_values(state),
        "parts": _optimizer_values(module) | run_settings(state, module),
        "sequence": stream_settings(state.stream) | _trainer_values(state),
        "data": {
            "list of tasks without test files": _text(
                sorted(task for task, split in state.data.missing if split == "test")
            ),
        }
        | {
            f"data of {task} ({split})": text
            for task, of_split in data.items()
            for split, text in _flat("", of_split)
        },
        "base": dict(_flat("", {"base model": digests.pop("base"), **digests})),
        "versions": versions | {"version of python": platform.python_version()},
    }


def learned_values(state: SequenceState, module: ContinualModule) -> Values:
    """Return the finished phases and digests of all learned tensors and of the router's state.

    Tensors of experts that no longer train, and of their router
    entries, are digested once.
    """
    frozen = [name for name in module.library.names if name not in state.stage.experts]
    prefixes = tuple(start for name in frozen for start in (f"{name}/", f"router experts.{name}."))

    def digest(key: str, tensor: Tensor) -> str:
        kept = key.startswith(prefixes)
        return state.digests.of(key, {"": tensor}) if kept else _digest_of(tensor)

    learned = [cb.learned_tensors() for cb in state.callbacks if isinstance(cb, LearnsTensors)]
    return {
        "phases": {"list of finished phases": _text(sorted(state.done))},
        "tensors": {key: digest(key, tensor) for key, tensor in module.state_dict().items()},
        "rules": {
            f"gradient rule's {key}": _digest_of(value)
            for tensors in learned
            for key, value in tensors.items()
        },
        "router": {
            key: digest(key, value) if isinstance(value, Tensor) else _text(value)
            for key, value in _leaves("router ", module.router.state_dict())
        },
    }


def _config_values(state: SequenceState) -> dict[str, str]:
    """Return the settings of the config by key, without those of a node."""
    values: dict[str, str] = {}
    for callback in state.callbacks:
        if isinstance(callback, KnowsConfig):
            values |= {k: v for k, v in _flat("", callback.config_values()) if not _of_node(k)}
    return values


def _of_node(key: str) -> bool:
    parts = key.split(".")
    if parts[:2] == ["data", "tasks"]:
        return len(parts) > 3 and parts[3] in _OF_TASK_ON_NODE
    return any(key == name or key.startswith(f"{name}.") for name in _OF_NODE)


def _optimizer_values(module: ContinualModule) -> dict[str, str]:
    """Return class and defaults of the optimizer by the key of a config."""
    optimizer = module.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    values = {f"model.optimizer.{key}": _text(v) for key, v in optimizer.defaults.items()}
    return {"model.optimizer": type(optimizer).__name__, **values}


def _trainer_values(state: SequenceState) -> dict[str, str]:
    """Return settings without effect on one process, in which several must agree."""
    trainer, data = state.trainer, state.data
    return {
        "order of stages": _text([[s.name, s.expert, *s.tasks] for s in state.plan]),
        "data.max_tokens_per_batch": str(data.max_tokens_per_batch),
        "data.eval_batch_size": str(data.eval_batch_size),
        "data.eval_limit": str(data.eval_limit),
        "data.eval_tokens_per_batch": str(data.eval_tokens_per_batch),
        "trainer.incremental_evaluation": str(state.incremental_evaluation),
        "trainer.accept_changes": str(state.accept_changes),
        "trainer.evaluate": state.evaluates,
        "trainer.fill_rows": str(state.fills_rows),
        "trainer.keep_embeddings": str(state.keeps_embeddings),
        "trainer.log_every_n_steps": str(trainer.log_every_n_steps),  # type: ignore[attr-defined]
        "trainer.checkpoint_every_n_steps": _text(
            [getattr(cb, "every_n_steps", None) for cb in state.callbacks]
        ),
        "trainer.callbacks": _text([cb.state_key for cb in state.callbacks]),
    }


def _computed(values: Callable[[], Values]) -> tuple[Values, str]:
    """Return the texts, or the message of the error that kept them from being computed."""
    try:
        return values(), ""
    except (ValueError, OSError) as error:  # of the input; the other ranks must learn of it
        return {}, one_line(error)


def _contrast(name: str, here: str | None, there: str | None) -> str:
    texts = ["none" if text is None else f"{text:.60}" for text in (here, there)]
    return f"{name}: {texts[0]} against {texts[1]} of rank 0"


def _flat(prefix: str, content: Any) -> list[tuple[str, str]]:
    """Return the leaves of nested settings as pairs of key and text."""
    return [(key, _text(value)) for key, value in _leaves(prefix, content)]


def _leaves(prefix: str, content: Any) -> list[tuple[str, Any]]:
    """Return the leaves of nested settings or states as pairs of key and value."""
    if isinstance(content, Mapping) and content:
        pairs = [(_below(prefix, key), value) for key, value in content.items()]
    elif isinstance(content, (list, tuple)) and content:
        pairs = [(_below(prefix, index), value) for index, value in enumerate(content)]
    else:
        return [(prefix, content)]
    return [leaf for key, value in pairs for leaf in _leaves(key, value)]


def _below(prefix: str, key: object) -> str:
    return f"{prefix}{key}" if not prefix or prefix.endswith(" ") else f"{prefix}.{key}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _digest_of(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return _digest([str(tensor.dtype), list(tensor.shape)], data)


def _digest(content: Any, data: bytes = b"") -> str:
    return hashlib.sha256(json.dumps(content).encode() + data).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
