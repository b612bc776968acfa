"""A common interface to transformers image-text-to-text models.

It loads model and processor, finds modalities and blocks, counts the rows of the vision encoder
and returns the hidden states for the router embeddings. It does not depend on experts or tasks.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dmole.experts.lora import expert_key
from dmole.messages import first_line
from dmole.models.discovery import Block, Parts, Patterns, discover
from dmole.models.families import family_of
from dmole.models.processors import load_processor, set_image_settings
from dmole.models.quantization import Quantization, entries, quantization_config
from dmole.models.rows import rows_per_sample
from dmole.storage.files import check_folder

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("dmole")


_EXPERT_INFIX = f".experts.{expert_key('')}"  # part of the name of an expert's parameter


class Backbone(nn.Module):
    """The frozen base model and its processor.

    Args:
        model: A transformers model for image-text-to-text.
        processor: Its processor.
        patterns: Overrides of the discovery of modalities and blocks.

    Raises:
        ValueError: If a modality is not found in the model.
    """

    def __init__(self, model: nn.Module, processor: Any, patterns: Patterns | None = None) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.model.eval()
        self.processor = processor
        self.parts: Parts = discover(model, patterns)
        self._family = family_of(model.config)
        self._family.prepare(model)
        self.name_or_path = str(getattr(model.config, "name_or_path", ""))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks that may hold experts."""
        return self.parts.blocks

    @property
    def vision_width(self) -> int:
        """Width of the vision encoder's hidden states."""
        config: Any = self.model.config
        return self._family.vision_width(config.vision_config)

    @property
    def context_length(self) -> int | None:
        """Maximum number of tokens of the language model; None if its config does not state it."""
        config: Any = self.model.config
        length = getattr(config.get_text_config(), "max_position_embeddings", None)
        return None if length is None else int(length)

    def parameter_count(self) -> int:
        """Return the number of parameters of the base model, without experts."""
        named = self.model.named_parameters()
        return sum(entries(p) for name, p in named if _EXPERT_INFIX not in name)

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return ``(in_features, out_features)`` of every linear of the blocks, by full path."""
        shapes = {}
        for block in self.blocks:
            for path in block.linears:
                linear: Any = self.model.get_submodule(path)
                shapes[path] = (linear.in_features, linear.out_features)
        return shapes

    def linear_parameters(self, path: str) -> list[nn.Parameter]:
        """Return weight and bias of a linear of the base model by path, wrapped or not.

        Raises:
            ValueError: If they are quantized, since such weights have no gradients for scores.
        """
        linear: Any = self.model.get_submodule(path)
        base = getattr(linear, "base", linear)
        parameters = list(base.parameters(recurse=False))
        if not all(parameter.is_floating_point() for parameter in parameters):
            raise ValueError(
                f"the weight of {path} is quantized and has no gradient, so units cannot be "
                "scored: use dmole.allocation.UniformAllocator"
            )
        return parameters

    def check_scorable(self) -> None:
        """Check that all linears have gradients for scores.

        Raises:
            ValueError: If a linear is quantized.
        """
        for path in self.linear_shapes():
            self.linear_parameters(path)

    def checkpoint_activations(self, context_fn: Callable[[], Any]) -> None:
        """Recompute activations in the backward pass, within the contexts of the function."""
        options = {"use_reentrant": False, "context_fn": context_fn}
        self.model.activation_checkpointing_enable(  # type: ignore[operator]
            activation_checkpointing_kwargs=options
        )

    def loss(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Return the mean cross-entropy over the answer tokens of the batch.

        Args:
            inputs: Output of the processor for the samples.
            labels: ``(B, T)`` token ids, -100 for ignored tokens.
        """
        loss: Tensor = self.outputs(inputs, labels).loss
        return loss

    def outputs(self, inputs: dict[str, Tensor], labels: Tensor | None = None) -> Any:
        """Return the model's output: ``logits`` ``(B, T, V)`` and, with labels, the mean ``loss``.

        Args:
            inputs: Output of the processor for the samples.
            labels: ``(B, T)`` token ids, -100 for ignored tokens.
        """
        options = {} if labels is None else {"labels": labels}
        return self.model(**inputs, **options, use_cache=False)

    @torch.no_grad()
    def generate(self, inputs: dict[str, Tensor], max_new_tokens: int, beams: int = 1) -> list[str]:
        """Generate answers to the prompts, deterministically.

        Args:
            inputs: Left-padded prompts and their images.
            max_new_tokens: Maximum number of tokens of an answer.
            beams: Width of the beam search; 1 is greedy.

        Returns:
            One stripped text per sample, without special tokens.
        """
        tokens = self.model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=beams
        )
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def vision_rows(
        self, inputs: dict[str, Tensor], image_counts: Tensor, beams: int = 1
    ) -> Tensor:
        """Return ``(B,)``: rows of the vision encoder that belong to each sample.

        Args:
            inputs: Output of the processor for the samples.
            image_counts: ``(B,)`` images of each sample.
            beams: Width of the beam search.
        """
        rows = rows_per_sample(self.model.config, inputs, image_counts)
        return rows * beams if self._family.beams_reach_vision else rows

    @torch.no_grad()
    def vision_hidden(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the last hidden states of the vision encoder, ``(rows, tokens, width)``."""
        encoder = self.model.get_submodule(self.parts.vision)
        return self._family.vision_hidden(self.model, encoder, inputs)

    @torch.no_grad()
    def text_hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the language model's last hidden states for text alone, ``(B, T, width)``."""
        language = self.model.get_submodule(self.parts.language)
        mask = self._family.text_mask(self.model, attention_mask)
        out = language(input_ids=input_ids, attention_mask=mask, use_cache=False)
        hidden: Tensor = out.last_hidden_state
        return hidden

    def fingerprint(self) -> str:
        """Return the sha256 of names and values of the base model's weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            if _EXPERT_INFIX in name:
                continue
            digest.update(name.replace(".base.", ".").encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class PretrainedBackbone(Backbone):
    """A base model loaded from a folder or a model hub.

    Args:
        name_or_path: Folder, hub name, or ``tiny`` for the model that ships with the package.
        dtype: Precision of the frozen weights: ``float32``, ``bfloat16``, ``float16``.
        attn_implementation: As in transformers: ``eager``, ``sdpa``, ``flash_attention_2``.
        revision: Commit, branch or tag on the hub.
        trust_remote_code: Run code from the model's folder. Off by default.
        patterns: Overrides of the discovery of modalities and blocks, for unknown families.
        quantization: Load the linears of the base model with ``8bit`` or ``4bit`` weights; needs
            the extra ``quantized``. Units of such a model cannot be scored by gradients.
        image_settings: Settings of the image processor to override, for instance ``max_pixels``.

    Raises:
        ValueError: If the model cannot be loaded; the message names it.

    Example:
        >>> from dmole import PretrainedBackbone
        >>> backbone = PretrainedBackbone("tiny")
        >>> [block.name for block in backbone.blocks][:2], backbone.parameter_count()
        (['vision.0', 'vision.1'], 2269184)
    """

    def __init__(
        self,
        name_or_path: str = "tiny",
        dtype: str = "float32",
        attn_implementation: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        patterns: Patterns | None = None,
        quantization: Quantization | None = None,
        image_settings: dict[str, Any] | None = None,
    ) -> None:
        from transformers import AutoModelForImageTextToText

        source = _resolve(name_or_path)
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if trust_remote_code:
            log.warning("trust_remote_code is on: code of %s runs on this machine", name_or_path)
        if revision is not None:
            options["revision"] = revision
        model_options: dict[str, Any] = {"dtype": dtype}
        if attn_implementation is not None:
            model_options["attn_implementation"] = attn_implementation
        if quantization is not None:
            model_options["quantization_config"] = quantization_config(quantization, dtype)
        try:
            processor = load_processor(source, **options)
            model = AutoModelForImageTextToText.from_pretrained(source, **options, **model_options)
        except (OSError, ValueError) as error:
            reason = _load_error(source, name_or_path, error)
            raise ValueError(f"cannot load the base model {name_or_path!r}: {reason}") from error
        if image_settings:
            set_image_settings(processor, image_settings)
        super().__init__(model, processor, patterns)


def _load_error(source: str, name: str, error: Exception) -> str:
    """Return one line with the reason why a base model cannot be loaded."""
    first = first_line(error)
    if "trust_remote_code" in str(error):
        return "it contains custom code; trust_remote_code: true runs it on this machine"
    if Path(source).exists():
        return first
    if name.startswith((".", "/", "~")):
        return "there is no such folder"
    if "connect" in first or "offline" in str(error).lower():
        return f"{name} is neither a folder nor in the local cache, and the hub is unreachable"
    return first


def _resolve(name_or_path: str) -> str:
    if name_or_path == "tiny":
        from dmole.demo.tiny import TINY_PATH

        return str(TINY_PATH)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        check_folder(path, "the base model")
    return str(path) if path.exists() else name_or_path
