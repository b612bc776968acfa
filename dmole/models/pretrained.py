"""A base model that is loaded from a folder or a model hub."""

from __future__ import annotations

import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

from dmole.data.templates import PromptSettings
from dmole.messages import first_line
from dmole.models.backbone import Backbone
from dmole.models.discovery import Patterns
from dmole.models.placement import loading_device
from dmole.models.processors import load_processor, set_image_settings
from dmole.models.quantization import Quantization, quantization_config
from dmole.storage.files import check_folder

log = logging.getLogger("dmole")

Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
"""Attention of transformers or of an installed package; other names would be code on the hub."""

BY_HASH = "sha256:"
"""Begins the place of a base model that a bundle names by the hash of its weights alone."""


class PretrainedBackbone(Backbone):
    """A base model loaded from a folder or a model hub.

    The weights are loaded into host memory, or on the device of `dmole.models.placement`.

    Args:
        name_or_path: Folder, hub name, or ``tiny`` for the model that ships with the package.
        dtype: Precision of the frozen weights: ``float32``, ``bfloat16``, ``float16``.
        attn_implementation: As in transformers: ``eager``, ``sdpa``, ``flash_attention_2``.
        revision: Commit, branch or tag on the hub.
        trust_remote_code: Run code from the model's folder. Off by default.
        patterns: Overrides of the discovery of modalities and blocks, for unknown families.
        quantization: Load the linears of the base model with ``8bit`` or ``4bit`` weights; needs
            the extra ``quantized``.
        image_settings: Settings of the image processor to override, for instance ``max_pixels``.
        image_backend: Library that the image processor uses, ``pil`` or ``torchvision``; by default
            transformers chooses it by family and by what is installed, and numbers differ.
        prompt_style: Name of a prompt style that replaces the chat template, ``llava`` or
            ``paligemma``; by default only for families whose published models have no template.
        template_variables: Variables of the chat template, for instance
            ``{enable_thinking: false}``.
        template_date: Day that the chat template reads as today, ``YYYY-MM-DD``. A template that
            reads the clock is refused without it.

    Raises:
        ValueError: If the model cannot be loaded, or its prompts cannot be written; the message
            names the model.

    Example:
        >>> from dmole import PretrainedBackbone
        >>> backbone = PretrainedBackbone("tiny")
        >>> [block.name for block in backbone.blocks][:2], backbone.parameter_count()
        (['vision.0', 'vision.1'], 2269184)
    """

    def __init__(
        self,
        name_or_path: str = "tiny",
        dtype: Dtype = "float32",
        attn_implementation: Attention | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        patterns: Patterns | None = None,
        quantization: Quantization | None = None,
        image_settings: dict[str, Any] | None = None,
        image_backend: Literal["pil", "torchvision"] | None = None,
        prompt_style: str | None = None,
        template_variables: dict[str, Any] | None = None,
        template_date: str | None = None,
    ) -> None:
        from transformers import AutoConfig, AutoModelForImageTextToText

        from dmole.models.efficientnet_lite import register

        register()
        source = _resolve(name_or_path)
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if trust_remote_code:
            log.warning("trust_remote_code is on: code of %s runs on this machine", name_or_path)
        if revision is not None:
            options["revision"] = revision
        model_options = _model_options(dtype, attn_implementation, quantization)
        prompts = PromptSettings(prompt_style, template_variables or {}, template_date)
        try:
            _check_adapter(source)
            processor = load_processor(source, image_backend, **options)
            if not trust_remote_code:
                _refuse_hub_kernels(AutoConfig.from_pretrained(source, **options))
            model = AutoModelForImageTextToText.from_pretrained(
                source, weights_only=True, **options, **model_options
            )
        except UnpicklingError as error:
            raise ValueError(
                f"cannot load the base model {name_or_path!r}: its weights are pickled with other "
                "objects than tensors; use safetensors"
            ) from error
        except (OSError, ValueError) as error:
            reason = _load_error(source, name_or_path, error)
            raise ValueError(f"cannot load the base model {name_or_path!r}: {reason}") from error
        if image_settings:
            set_image_settings(processor, image_settings)
        try:
            super().__init__(model, processor, patterns, prompts)
        except ValueError as error:
            raise ValueError(f"cannot use the base model {name_or_path!r}: {error}") from error


def _model_options(
    dtype: Dtype, attention: Attention | None, quantization: Quantization | None
) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that concern the weights."""
    options: dict[str, Any] = {"dtype": dtype}
    if attention is not None:
        options["attn_implementation"] = attention
    if quantization is not None:
        options["quantization_config"] = quantization_config(quantization, dtype)
    device = loading_device(quantized=quantization is not None)
    if device is not None:
        options["device_map"] = {"": device}
    return options


def _check_adapter(source: str) -> None:
    """Refuse a folder with an adapter, which transformers adds only if peft is installed.

    Raises:
        ValueError: If the folder has one.
    """
    if (Path(source) / "adapter_config.json").exists():
        raise ValueError(
            "the folder holds a PEFT adapter (adapter_config.json), which would be used only where "
            "peft is installed: merge it into the weights"
        )


def _refuse_hub_kernels(config: Any) -> None:
    """Refuse a model whose config names attention code on the hub.

    Raises:
        ValueError: If the attention of the model or of a part is the name of a repository.
    """
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        attention = getattr(part, "_attn_implementation", None)
        if attention is not None and "/" in str(attention):
            raise ValueError(f"its config.json names attention code on the hub: {attention}")


def _load_error(source: str, name: str, error: Exception) -> str:
    """Return one line with the reason why a base model cannot be loaded."""
    first = first_line(error)
    if "trust_remote_code" in str(error):
        return (
            "it contains custom code; --model.backbone.init_args.trust_remote_code true runs it on "
            "this machine"
        )
    if Path(source).exists():
        return first
    if name.startswith((".", "/", "~")):
        return "there is no such folder"
    if "connect" in first or "offline" in str(error).lower():
        return f"{name} is neither a folder nor in the local cache, and the hub is unreachable"
    return first


def _resolve(name_or_path: str) -> str:
    if name_or_path.startswith(BY_HASH):
        raise ValueError(
            f"the base model has no public name, only weights with the SHA-256 "
            f"{name_or_path.removeprefix(BY_HASH)}: name its folder, base= of dmole.load or "
            "--model.backbone.init_args.name_or_path"
        )
    if name_or_path == "tiny":
        from dmole.demo.tiny import TINY_PATH

        return str(TINY_PATH)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        check_folder(path, "the base model")
    return str(path) if path.exists() else name_or_path
