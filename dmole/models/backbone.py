"""A common interface to transformers image-text-to-text models.

It finds modalities and blocks, counts the rows of the vision encoder
and returns the hidden states for the router embeddings. It does not depend on experts or tasks.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from dmole._moved import moved_name
from dmole.data.labels import Targets
from dmole.data.prompt_check import check_prompts
from dmole.data.rendering import ChatRenderer
from dmole.data.templates import PromptSettings
from dmole.experts.expert import expert_key
from dmole.experts.soft_prompts import holder_of
from dmole.models.answer_head import AnswerOutput, answer_output
from dmole.models.discovery import Block, Parts, Patterns, discover
from dmole.models.families import family_of
from dmole.models.generation import replace_generation_config
from dmole.models.insertion import Insertion, Side, check_insertion
from dmole.models.processors import decode_answers
from dmole.models.quantization import entries
from dmole.models.rows import rows_per_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dmole.models.sharding import BaseShards

log = logging.getLogger("dmole")

# older releases of transformers repeat the images for each beam before the vision encoder
_BEAMS_FIRST = not hasattr(GenerationMixin, "_prepare_multimodal_encoder_kwargs_for_generation")
_EXPERT_INFIX = f".experts.{expert_key('')}"  # part of the name of an expert's parameter


class Backbone(nn.Module):
    """The frozen base model and its processor.

    Args:
        model: A transformers model for image-text-to-text.
        processor: Its processor.
        patterns: Overrides of the discovery of modalities and blocks.
        prompts: How prompts are written, beyond the chat template.

    Attributes:
        prompts: The same.
        prompt_style: Name of the style that prompts are written in; None for a chat template.
        template: The chat template; None for a style.
        generation: Settings of generation that are not default.
        shards: How the weights are split over the ranks; None if they are whole.

    Raises:
        ValueError: If a modality is not found in the model, or its prompts cannot be written, see
            `dmole.data.prompt_check`.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        patterns: Patterns | None = None,
        prompts: PromptSettings | None = None,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.model.eval()
        self.processor = processor
        self.prompts = prompts or PromptSettings()
        self.prompt_style: str | None = None
        self.template: str | None = None
        self._end: str | None = None
        if processor is not None:
            renderer = ChatRenderer(processor, self.prompts)
            self._end = check_prompts(renderer, processor.tokenizer)
            self.prompt_style = renderer.style_name
            self.template = renderer.template.source if renderer.template else None
            if renderer.style_name is not None:
                log.info("prompts are written in the style %s", renderer.style_name)
        self.set_generation({})
        self.parts: Parts = discover(model, patterns)
        self._family = family_of(model.config)
        self._family.prepare(model)
        self.name_or_path = str(getattr(model.config, "name_or_path", ""))
        self.shards: BaseShards | None = None
        self._whole: tuple[str, int] | None = None

    @property
    def in_step(self) -> bool:
        """Whether all ranks must make the same passes: the base model is split over them."""
        return self.shards is not None and self.shards.in_step

    def evaluating(self) -> AbstractContextManager[None]:
        """Return the context of an evaluation, in which a split base model may be gathered."""
        return nullcontext() if self.shards is None else self.shards.evaluating()

    def release(self) -> None:
        """Free what a pass has gathered of a split base model."""
        if self.shards is not None:
            self.shards.release()

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks that may hold experts."""
        return self.parts.blocks

    @property
    def last_linears(self) -> tuple[str, ...]:
        """Full paths of the linears of the last block of the language model."""
        return next(b.linears for b in reversed(self.blocks) if b.modality == "language")

    @property
    def vision_width(self) -> int:
        """Width of the vision encoder's hidden states."""
        config: Any = self.model.config
        return self._family.vision_width(config.vision_config)

    @property
    def text_width(self) -> int:
        """Width of the language model's hidden states."""
        config: Any = self.model.config
        return int(config.get_text_config().hidden_size)

    @property
    def embedding_width(self) -> int:
        """Width of a router embedding: of the vision encoder and of the language model."""
        return self.vision_width + self.text_width

    @property
    def context_length(self) -> int | None:
        """Maximum number of tokens of the language model; None if its config does not state it."""
        config: Any = self.model.config
        length = getattr(config.get_text_config(), "max_position_embeddings", None)
        return None if length is None else int(length)

    def parameter_count(self) -> int:
        """Return the number of parameters of the base model, without experts."""
        if self._whole is not None:
            return self._whole[1]
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

    def input_unit(self) -> tuple[str, int]:
        """Return the path of the language model's input embedding and the width of a token.

        Raises:
            ValueError: If soft prompts cannot be put into the input of this model family.
        """
        model: Any = self.model
        check_insertion(model.config.model_type)
        embedding = model.get_input_embeddings()
        path = next(name for name, child in model.named_modules() if child is embedding)
        return path, int(embedding.embedding_dim)

    def gradient_sources(self, path: str) -> list[nn.Parameter | nn.Module]:
        """Return what a linear is scored by, wrapped or not: its weight and bias.

        It is the linear itself if its weight is quantized or split over the ranks, since autograd
        has no gradient for it.

        Args:
            path: Full path of the linear.
        """
        linear = self.model.get_submodule(path)
        base: nn.Module = getattr(linear, "base", linear)
        parameters = list(base.parameters(recurse=False))
        quantized = not all(parameter.is_floating_point() for parameter in parameters)
        return [base] if quantized or self.shards is not None else [*parameters]

    def checkpoint_activations(self, context_fn: Callable[[], Any]) -> None:
        """Recompute activations in the backward pass, within the contexts of the function."""
        model: Any = self.model
        kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        options = {"use_reentrant": False, "context_fn": context_fn}
        # transformers names both after gradients before 5.23
        getattr(model, f"{kind}_checkpointing_enable")(**{f"{kind}_checkpointing_kwargs": options})
        # it makes the inputs of all parts require gradients, which only reentrant checkpoints need:
        # a frozen vision encoder would keep its activations and run again in the backward pass
        model.disable_input_require_grads()

    def loss(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Return the mean cross-entropy over the answer tokens of the batch.

        For a batch on an accelerator the host waits for the labels; :meth:`answer_output` does not.

        Args:
            inputs: Output of the processor for the samples.
            labels: ``(B, T)`` token ids, -100 for ignored tokens.
        """
        return self.answer_output(inputs, Targets.of(labels)).loss()

    def answer_output(self, inputs: dict[str, Tensor], targets: Targets) -> AnswerOutput:
        """Return loss and logits of the answer tokens; no other logits are computed.

        Args:
            inputs: Output of the processor for the samples.
            targets: The answer tokens.
        """
        inputs, insertion = self._with_prompts(inputs, "right")
        targets = targets if insertion is None else insertion.moved(targets)
        return answer_output(self.model, inputs, targets)

    def outputs(self, inputs: dict[str, Tensor]) -> Any:
        """Return the model's output with the ``logits`` ``(B, T, V)`` of all positions.

        Soft prompts add their positions.

        Args:
            inputs: Left-padded prompts and their images.
        """
        return self.model(**self._with_prompts(inputs, "left")[0], use_cache=False)

    def _with_prompts(
        self, inputs: dict[str, Tensor], side: Side
    ) -> tuple[dict[str, Tensor], Insertion | None]:
        """Return a batch with places for the soft prompts of the current gates, if there are any.

        Raises:
            ValueError: If they cannot be inserted or make a sample too long.
        """
        embedding = holder_of(self.model)
        rows = None if embedding is None else embedding.rows()
        if embedding is None or rows is None:
            return inputs, None
        config: Any = self.model.config
        check_insertion(config.model_type)
        tokenizer = self.processor.tokenizer
        insertion = Insertion.of(inputs, rows, side, tokenizer.pad_token_id, tokenizer.bos_token_id)
        insertion.check_length(self.context_length)
        embedding.place(insertion.index)
        return insertion.inputs, insertion

    def set_generation(self, settings: Mapping[str, Any]) -> None:
        """Generate with these settings and the token ids of the model's folder, and nothing else.

        Args:
            settings: Settings of ``model.generation``, see `dmole.models.generation`.

        Raises:
            ValueError: If a token that ends an answer is unknown, or ordinary text.
        """
        tokenizer = None if self.processor is None else self.processor.tokenizer
        replace_generation_config(self.model, tokenizer, self._end, settings)
        self.generation = dict(settings)

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
        return self.decode(self.generate_tokens(inputs, max_new_tokens, beams))

    @torch.no_grad()
    def generate_tokens(
        self, inputs: dict[str, Tensor], max_new_tokens: int, beams: int = 1, **options: Any
    ) -> Tensor:
        """Return the token ids of answers, ``(B, T)``, padded on the right.

        Args:
            inputs: Left-padded prompts and their images.
            max_new_tokens: Maximum number of tokens of an answer.
            beams: Width of the beam search; 1 is greedy.
            options: Further arguments of ``generate`` of transformers.
        """
        inputs, _ = self._with_prompts(inputs, "left")
        if self.in_step:  # until the last rank has its answers
            options = {"synced_gpus": True, **options}
        tokens: Tensor = self.model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=beams, **options
        )
        return tokens[:, inputs["input_ids"].shape[1] :]

    def decode(self, tokens: Any) -> list[str]:
        """Return the texts of answers; see :func:`~dmole.models.processors.decode_answers`."""
        return decode_answers(self.processor, tokens)

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
        return rows * beams if _BEAMS_FIRST or self._family.beams_reach_vision else rows

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

    def remember_whole(self) -> None:
        """Compute what describes the whole weights, before they are split."""
        self._whole = self.fingerprint(), self.parameter_count()

    def fingerprint(self) -> str:
        """Return the sha256 of names and values of the base model's weights."""
        if self._whole is not None:
            return self._whole[0]
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            if _EXPERT_INFIX in name:
                continue
            digest.update(name.replace(".base.", ".").encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def __getattr__(name: str) -> Any:
    return moved_name(__name__, name)
