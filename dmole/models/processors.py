"""Loading of a model's processor for images and text, without the dependencies of videos.

transformers requires torchvision for every processor that supports videos, and the file of its
video part, which is not written where torchvision is missing. Videos are never used here, so such
a processor is built from its image and text parts alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from dmole.messages import one_line

log = logging.getLogger("dmole")

_EXTRAS = {"torchvision": "torchvision", "num2words": "smolvlm"}
"""Packages that a processor may require, and the extra of dmole that installs each."""

_TEXT_ARGUMENTS = ("truncation", "max_length", "stride", "return_attention_mask")
"""Arguments of a tokenizer's call that would cut texts, or drop what a batch needs."""


def load_processor(source: str, image_backend: str | None = None, **options: Any) -> Any:
    """Return the processor in a model folder or hub repository.

    transformers takes defaults of a processor's call, also those of images, from the tokenizer's
    config. Defaults that would cut texts or change images are removed.

    Args:
        source: Folder or hub name.
        image_backend: ``pil`` or ``torchvision``; None lets transformers choose.
        options: As for ``from_pretrained``: ``revision``, ``trust_remote_code``.

    Raises:
        ValueError: If the processor needs a package that is not installed, or does not have the
            backend; the message names the extra that installs it.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    loader: Any = _video_class(source, options) or AutoProcessor
    try:
        processor = loader.from_pretrained(source, **options)
        if image_backend is not None:  # an argument `backend` would reach the tokenizer, too
            images = AutoImageProcessor.from_pretrained(source, backend=image_backend, **options)
            processor.image_processor = images
    except ImportError as error:
        text = one_line(error)
        for package, extra in _EXTRAS.items():
            if package in text.lower():
                raise ValueError(
                    f"the processor of {source!r} needs the package {package}: "
                    f"pip install 'dmole[{extra}]'"
                ) from error
        raise ValueError(f"cannot load the processor of {source!r}: {text}") from error
    used = getattr(processor.image_processor, "backend", None)
    if image_backend not in (None, used):  # transformers falls back to another one
        raise ValueError(
            f"image_backend {image_backend} is not available, this machine has {used}: "
            f"{type(processor.image_processor).__name__}"
        )
    _drop_call_defaults(processor)
    return processor


def _drop_call_defaults(processor: Any) -> None:
    defaults = processor.tokenizer.init_kwargs
    images = defaults.keys() & image_arguments(processor)
    if images:
        log.warning("ignored image settings of the tokenizer: %s", ", ".join(sorted(images)))
    for name in images.union(_TEXT_ARGUMENTS):
        defaults.pop(name, None)


def image_arguments(processor: Any) -> set[str]:
    """Return the names of the settings of a processor's image part."""
    return set(processor.image_processor.valid_kwargs.__annotations__)


def decode_answers(processor: Any, tokens: Any) -> list[str]:
    """Return the text of generated answers, stripped and without special tokens.

    Args:
        processor: The processor of the model.
        tokens: ``(B, T)`` token ids, or a list of them for each answer.
    """
    texts = processor.batch_decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.strip() for text in texts]


def set_image_settings(processor: Any, settings: Mapping[str, Any]) -> None:
    """Override settings of a processor's image part, for instance ``max_pixels``.

    Args:
        processor: The processor, changed in place.
        settings: Arguments of its image processor.

    Raises:
        ValueError: If a setting is unknown to the image processor; the message lists all settings.
    """
    images = processor.image_processor
    valid = sorted(image_arguments(processor))
    for name in settings:
        if name not in valid:
            raise ValueError(
                f"image setting {name!r} is unknown to {type(images).__name__}, which has "
                f"{', '.join(valid)}"
            )
    current = {key: value for key, value in images.to_dict().items() if key in valid}
    processor.image_processor = type(images)(**{**current, **settings})
    # defaults of the processor class would override those of its image processor
    fixed = getattr(processor, "images_kwargs", {})
    processor.images_kwargs = {key: settings.get(key, value) for key, value in fixed.items()}
    # before transformers 5.23 a type holds them, and only the tokenizer's defaults override them
    typed = getattr(processor.valid_processor_kwargs, "_defaults", {}).get("images_kwargs", {})
    processor.tokenizer.init_kwargs |= {key: settings[key] for key in typed if key in settings}


def _video_class(source: str, options: dict[str, Any]) -> type | None:
    """Return a class without video for a processor that supports videos, else None."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = AutoConfig.from_pretrained(source, **options)
    processor = PROCESSOR_MAPPING.get(type(config), None)
    if processor is None or not any("video" in name for name in processor.get_attributes()):
        return None
    return without_video(processor)


def without_video(processor: type) -> type:
    """Return a processor class without the video part.

    Args:
        processor: A processor class of transformers with a ``video_processor``.
    """
    base: Any = processor
    attributes = base.get_attributes()
    kept = [name for name in attributes if "video" not in name]

    def get_attributes(cls: Any) -> list[str]:
        return list(kept)

    def from_parts(cls: Any, *args: Any, **kwargs: Any) -> list[Any]:
        # the constructor still takes the video part
        made = base._get_arguments_from_pretrained.__func__(cls, *args, **kwargs)
        parts = dict(zip(kept, made, strict=True))
        return [parts.get(name) for name in attributes]

    def reduce(self: Any) -> Any:  # pickle cannot find a dynamic class by name
        return _revive, (base, self.__dict__)

    body = {
        "get_attributes": classmethod(get_attributes),
        "_get_arguments_from_pretrained": classmethod(from_parts),
        "__reduce__": reduce,
        "__module__": base.__module__,
        "__doc__": base.__doc__,
    }
    if "apply_chat_template" in vars(base):  # SmolVLM reads the frame rate of the video part
        body["apply_chat_template"] = base.__mro__[1].apply_chat_template
    return type(base.__name__, (base,), body)


def _revive(base: type, state: dict[str, Any]) -> Any:
    made: Any = object.__new__(without_video(base))
    made.__dict__.update(state)
    return made
