"""The base model whose processor examines samples; its weights are not loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dmole.data.collate import Collator
from dmole.data.prompt_check import check_prompts
from dmole.data.rendering import ChatRenderer
from dmole.data.templates import PromptSettings
from dmole.messages import first_line


@dataclass(frozen=True)
class BaseModel:
    """The model whose processor tokenizes the texts.

    Args:
        source: Folder or hub name.
        revision: Commit, branch or tag on the hub.
        trust_remote_code: Whether to run code from the model's folder.
        prompts: How prompts are written, beyond the chat template.
        image_settings: Settings of the image processor that the config overrides, as pairs.
        image_backend: Library that the image processor uses; None lets transformers choose.
    """

    source: str
    revision: str | None = None
    trust_remote_code: bool = False
    prompts: PromptSettings = field(default_factory=PromptSettings)
    image_settings: tuple[tuple[str, Any], ...] = ()
    image_backend: str | None = None

    def __hash__(self) -> int:
        """Return a hash that equal models share; image settings may be nested."""
        return hash((self.source, self.revision, self.prompts, repr(self.image_settings)))

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for the loaders of transformers."""
        revision = {} if self.revision is None else {"revision": self.revision}
        return {"trust_remote_code": self.trust_remote_code, **revision}


@cache
def load_processor(model: BaseModel) -> Any:
    """Return the processor of a model; forked processes share the loaded one.

    Raises:
        ValueError: If the processor cannot be loaded; the message names the model.
    """
    from dmole.models import processors

    try:
        processor = processors.load_processor(model.source, model.image_backend, **model.options)
        if model.image_settings:
            processors.set_image_settings(processor, dict(model.image_settings))
    except (OSError, ValueError, ImportError, AttributeError) as error:
        prefix = f"cannot load the processor of {model.source!r}: "
        raise ValueError(prefix + first_line(error).removeprefix(prefix)) from error
    return processor


def find_prompt_error(model: BaseModel) -> str | None:
    """Return why `fit` would refuse the prompts of a model; None if it would not."""
    processor = load_processor(model)
    try:
        check_prompts(ChatRenderer(processor, model.prompts), processor.tokenizer)
        Collator(processor, prompts=model.prompts)
    except ValueError as error:
        return f"cannot use the base model {model.source!r}: {error}"
    return None


def context_length(model: BaseModel) -> int | None:
    """Return the context length of a model in tokens; None if its config does not state it.

    Raises:
        ValueError: If the config cannot be loaded; the message names the model.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model.source, **model.options)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"cannot load the config of {model.source!r}: {first_line(error)}"
        ) from error
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)
