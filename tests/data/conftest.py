"""Processors of three families, built on the spot with a tokenizer trained on a few lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dmole.data.sample import ArrayImage

SPECIAL = [
    "<pad>",
    "<s>",
    "</s>",
    "<image>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<global-img>",
    "<|im_start|>",
]
LINES = [
    "USER: what color is the shape? ASSISTANT: red</s>",
    "User: is there a circle? Assistant: yes, a blue one.",
    "the quick brown fox jumps over the lazy dog " * 2,
]
LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def make_tokenizer(**kwargs: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
        **kwargs,
    )


def make_processor(family: str) -> Any:
    """Build the processor of a family; ``llava_plain`` is LLaVA without a chat template."""
    from transformers import Idefics3Processor, LlavaNextProcessor, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    tokenizer = make_tokenizer()
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    llava = {
        "patch_size": 8,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    if family == "llava_plain":
        return LlavaProcessor(CLIPImageProcessorPil(**size), tokenizer, **llava)
    if family == "llava":
        return LlavaProcessor(
            CLIPImageProcessorPil(**size), tokenizer, chat_template=LLAVA_TEMPLATE, **llava
        )
    if family == "llava_next":
        pinpoints = [[16, 32], [32, 16], [32, 32]]
        return LlavaNextProcessor(
            LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints, **size),
            tokenizer,
            chat_template=LLAVA_TEMPLATE,
            **llava,
        )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE)


FAMILIES = ["llava_plain", "llava", "llava_next", "idefics3"]


@pytest.fixture(scope="session")
def processors() -> dict[str, Any]:
    return {family: make_processor(family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def processor(request: pytest.FixtureRequest, processors: dict[str, Any]) -> Any:
    return processors[request.param]


@pytest.fixture(scope="session")
def picture() -> ArrayImage:
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return ArrayImage(values)
