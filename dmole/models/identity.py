"""The identity of a base model: the parts that its answers depend on, besides its weights.

Each part has a SHA-256 and, where they are few, its values, so that a message can name the value
that differs. The weights have a digest of their own, `Backbone.fingerprint`, which covers dtype,
quantization and adapters that the model's folder brings along.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dmole.models.generation import end_ids

if TYPE_CHECKING:
    from dmole.models.backbone import Backbone

Parts = dict[str, dict[str, Any]]
"""``sha256`` and, if they are few, ``values`` of each part, by name."""

FIXED = ("model config", "tokenizer", "chat template", "image processor")
"""Parts that a resumed run must share with its checkpoint."""
ADJUSTABLE = ("generation", "image backend")
"""Parts that a resumed run may change if it accepts changes."""
NUMERICS = "numerics"
"""The part that changes at most the rounding of results."""

_OF_LIBRARY = ("model config", "image processor")
_NOT_CONFIG = (
    *("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"),
    *("_attn_implementation", "processor_class", "tokenizer", "chat_template", "video_processor"),
)
_CALL_ARGUMENTS = (
    *("padding", "pad_to_multiple_of", "add_special_tokens", "split_special_tokens"),
    *("add_bos_token", "add_eos_token", "add_prefix_space"),
)
_ROUNDING = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG")


def base_parts(backbone: Backbone, beams: int = 1) -> Parts:
    """Return the identity of a base model without its weights, as plain values.

    Args:
        backbone: The base model.
        beams: Width of the beam search.
    """
    config: Any = backbone.model.config
    parts = {
        "model config": _part(dict(_flat(_plain(config)))),
        "generation": _part(_generation(backbone, beams)),
        NUMERICS: _part(_numerics(backbone)),
    }
    if backbone.processor is not None:
        images = backbone.processor.image_processor
        parts |= {
            "tokenizer": _tokenizer(backbone.processor.tokenizer),
            "chat template": _template(backbone),
            "image processor": _part(_image_settings(backbone.processor)),
            "image backend": _part(_image_backend(images)),
        }
    return parts


def changed_parts(saved: Any, current: Parts) -> dict[str, str]:
    """Return what differs between the parts of a run and those of now.

    Args:
        saved: Parts as a run recorded them; those that it did not record are left out.
        current: Parts of now.

    Returns:
        By name of the part, a phrase such as ``another image processor: size.height 336 -> 448``.
    """
    changes = {}
    versions = [_values(parts, NUMERICS).get("transformers") for parts in (saved, current)]
    for name, part in current.items():
        old = saved.get(name) if isinstance(saved, Mapping) else None
        if not isinstance(old, Mapping) or old.get("sha256") == part.get("sha256"):
            continue
        values = [_values(parts, name) for parts in (saved, current)]
        if versions[0] != versions[1] and name in _OF_LIBRARY:
            # another version of the library adds and drops settings
            values = [{k: v for k, v in each.items() if k in values[0].keys() & values[1].keys()}
                      for each in values]  # fmt: skip
            if values[0] == values[1]:
                continue
        changes[name] = f"another {name}{_difference(*values)}"
    return changes


def _values(parts: Any, name: str) -> Mapping[str, Any]:
    part = parts.get(name) if isinstance(parts, Mapping) else None
    values = part.get("values") if isinstance(part, Mapping) else None
    return values if isinstance(values, Mapping) else {}


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = sorted((old.keys() | new.keys()), key=str)
    names = [name for name in names if old.get(name) != new.get(name)]
    texts = [f"{name} {_short(old.get(name))} -> {_short(new.get(name))}" for name in names[:3]]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f": {', '.join(texts)}{more}" if texts else ""


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _part(values: Mapping[str, Any]) -> dict[str, Any]:
    content = json.loads(json.dumps(values, default=str, sort_keys=True))
    return {"sha256": _digest(json.dumps(content, sort_keys=True)), "values": content}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(owner: Any) -> Mapping[str, Any]:
    """Return the settings of a config or a processor; of a config, those that are not default."""
    method = getattr(owner, "to_diff_dict", getattr(owner, "to_dict", None))
    values: Mapping[str, Any] = vars(owner) if method is None else method()
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with dotted names."""
    for key, value in values.items():
        if key in _NOT_CONFIG:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _image_settings(processor: Any) -> dict[str, Any]:
    """Return the settings of the image processor, and those of the processor around it."""
    settings = {f"processor.{key}": value for key, value in _flat(_plain(processor))}
    settings |= {
        f"processor.images_kwargs.{key}": value
        for key, value in _flat(getattr(processor, "images_kwargs", {}))
    }
    inner = "processor.image_processor."
    return {key.removeprefix(inner): value for key, value in settings.items()}


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Return the part of a tokenizer: vocabulary, rules, special tokens and call defaults."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # left by the last call
        content.pop(state, None)
    defaults = {key: tokenizer.init_kwargs.get(key) for key in _CALL_ARGUMENTS}
    values = {
        "size": len(tokenizer),
        **{name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        **{key: value for key, value in defaults.items() if value is not None},
    }
    return {"sha256": _digest(json.dumps([content, values], default=str)), "values": values}


def _template(backbone: Backbone) -> dict[str, Any]:
    values = {**backbone.prompts.to_dict(), "style": backbone.prompt_style}
    text = json.dumps([backbone.template, values], default=str, sort_keys=True)
    return {"sha256": _digest(text), "values": values}


def _generation(backbone: Backbone, beams: int) -> dict[str, Any]:
    config: Any = backbone.model.generation_config
    ids = {"eos_token_id": end_ids(backbone.model), "pad_token_id": config.pad_token_id}
    return {"beams": beams, **ids, **backbone.generation}


def _image_backend(images: Any) -> dict[str, Any]:
    """Return class and libraries that turn an image file into numbers."""
    from importlib.metadata import version

    from PIL import features

    backend = str(getattr(images, "backend", "unknown"))
    values = {
        "class": type(images).__name__,
        "backend": backend,
        "pillow": version("pillow"),
        "libjpeg_turbo": features.version("libjpeg_turbo"),
    }
    return values | ({"torchvision": version("torchvision")} if backend == "torchvision" else {})


def _numerics(backbone: Backbone) -> dict[str, Any]:
    import torch
    import transformers

    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in backbone.model.parameters()})
    return {
        "dtype": dtypes,
        "attention": getattr(backbone.model.config, "_attn_implementation", None),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **{name: os.environ[name] for name in _ROUNDING if name in os.environ},
    }
