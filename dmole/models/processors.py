"""Loads the processor of a model: its images and texts, without what only videos need.

transformers asks for torchvision wherever a processor can read videos. We never show videos, so
where torchvision is absent such a processor is built of its image and text parts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmole.messages import one_line

_EXTRAS = {"torchvision": "torchvision", "num2words": "smolvlm"}
"""Package a processor may ask for, and the extra of ours that brings it."""


def load_processor(source: str, **options: Any) -> Any:
    """Return the processor in a model folder or hub repository.

    Args:
        source: Folder or hub name.
        options: As for ``from_pretrained``: ``revision``, ``trust_remote_code``.

    Raises:
        ValueError: If the processor needs a package that is not installed; the message names the
            extra that brings it.
    """
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available

    loader: Any = AutoProcessor
    if not is_torchvision_available():
        loader = _video_class(source, options) or AutoProcessor
    try:
        return loader.from_pretrained(source, **options)
    except ImportError as error:
        text = one_line(error)
        for package, extra in _EXTRAS.items():
            if package in text.lower():
                raise ValueError(
                    f"the processor of {source!r} needs the package {package}: "
                    f"pip install 'dmole[{extra}]'"
                ) from error
        raise ValueError(f"cannot load the processor of {source!r}: {text}") from error


def set_image_settings(processor: Any, settings: Mapping[str, Any]) -> None:
    """Replace settings of a processor's image part, for instance ``max_pixels``.

    Args:
        processor: The processor, changed in place.
        settings: Arguments of its image processor.

    Raises:
        ValueError: If the image processor knows no such setting; the message lists those it has.
    """
    images = processor.image_processor
    known = sorted(images.valid_kwargs.__annotations__)
    for name in settings:
        if name not in known:
            raise ValueError(
                f"image setting {name!r} is unknown to {type(images).__name__}, which has "
                f"{', '.join(known)}"
            )
    own = {key: value for key, value in images.to_dict().items() if key in known}
    processor.image_processor = type(images)(**{**own, **settings})
    # what a processor class sets for every call would win over its image processor
    fixed = getattr(processor, "images_kwargs", {})
    processor.images_kwargs = {key: settings.get(key, value) for key, value in fixed.items()}


def _video_class(source: str, options: dict[str, Any]) -> type | None:
    """Return the video-less class of a processor that could read videos, else None."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = AutoConfig.from_pretrained(source, **options)
    known = PROCESSOR_MAPPING.get(type(config), None)
    if known is None or not any("video" in name for name in known.get_attributes()):
        return None
    return without_video(known)


def without_video(processor: type) -> type:
    """Return a processor class that has no video part.

    Args:
        processor: A processor class of transformers with a ``video_processor``.
    """
    base: Any = processor
    attributes = base.get_attributes()
    kept = [name for name in attributes if "video" not in name]

    def get_attributes(cls: Any) -> list[str]:
        return list(kept)

    def from_parts(cls: Any, *args: Any, **kwargs: Any) -> list[Any]:
        # the constructor still has a place for the video part
        made = base._get_arguments_from_pretrained.__func__(cls, *args, **kwargs)
        parts = dict(zip(kept, made, strict=True))
        return [parts.get(name) for name in attributes]

    def reduce(self: Any) -> Any:  # a class made on the fly has no name that pickle could find
        return _revive, (base, self.__dict__)

    body = {
        "get_attributes": classmethod(get_attributes),
        "_get_arguments_from_pretrained": classmethod(from_parts),
        "__reduce__": reduce,
        "__module__": base.__module__,
        "__doc__": base.__doc__,
    }
    if "apply_chat_template" in vars(base):  # SmolVLM asks the video part for its frame rate
        body["apply_chat_template"] = base.__mro__[1].apply_chat_template
    return type(base.__name__, (base,), body)


def _revive(base: type, state: dict[str, Any]) -> Any:
    made: Any = object.__new__(without_video(base))
    made.__dict__.update(state)
    return made
