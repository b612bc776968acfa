"""Tiny processors and models of three families, built on the spot, nothing to download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dmole.data.collate import Batch, Collator
from dmole.data.sample import ArrayImage, Sample, Turn
from dmole.models import Backbone

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


MODEL_FAMILIES = ["llava", "llava_next", "idefics3"]
"""One vision row an image; one a tile; one a tile with padding. All see images at random init."""

WIDTH = 32
_VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": 0.3,
}
_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    # flat logits would hide every difference
    "initializer_range": 0.3,
}


def make_model(family: str, processor: Any, vision_feature_layer: int = -1) -> Any:
    """Build a model of two vision and two language layers, width 32."""
    from transformers import (
        CLIPVisionConfig,
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )

    tokenizer = processor.tokenizer
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = LlamaConfig(vocab_size=len(tokenizer), **_TEXT, **ids)
    image = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    if family == "idefics3":
        config = Idefics3Config(
            vision_config=_VISION, text_config=text, image_token_id=image, scale_factor=1, **ids
        )
        model = Idefics3ForConditionalGeneration(config)
    else:
        options = {
            "vision_config": CLIPVisionConfig(**_VISION),
            "text_config": text,
            "image_token_index": image,
            "vision_feature_layer": vision_feature_layer,
            **ids,
        }
        if family == "llava_next":
            pinpoints = [[16, 32], [32, 16], [32, 32]]
            config = LlavaNextConfig(image_grid_pinpoints=pinpoints, **options)
            model = LlavaNextForConditionalGeneration(config)
        else:
            model = LlavaForConditionalGeneration(LlavaConfig(**options))
    model.eval()
    model.generation_config.eos_token_id = None  # answers of equal length
    model.generation_config.suppress_tokens = [image]  # a random model would say it
    return model


def make_backbone(family: str, vision_feature_layer: int = -1) -> Backbone:
    processor = make_processor(family)
    return Backbone(make_model(family, processor, vision_feature_layer), processor)


def make_image(seed: int, height: int = 20, width: int = 30) -> ArrayImage:
    rng = np.random.default_rng(seed)
    return ArrayImage(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


QUESTIONS = ["what color is it?", "is there a circle in the picture?", "why?", "how many shapes?"]
ANSWERS = ["red", "yes, a blue one", "the fox", "two"]


def make_samples(images: tuple[int, ...] = (1, 0, 1), answers: bool = True) -> list[Sample]:
    """Build samples with the given numbers of images, of different shapes and lengths."""
    samples = []
    for i, count in enumerate(images):
        question = "<image>\n" * count + QUESTIONS[i % 4]
        turns = [Turn("user", question)]
        if answers:
            turns.append(Turn("assistant", ANSWERS[i % 4]))
        pictures = tuple(make_image(10 * i + j, 20 + 8 * i, 30) for j in range(count))
        samples.append(Sample(f"s{i}", tuple(turns), pictures, ("red",)))
    return samples


def make_batch(backbone: Backbone, samples: list[Sample], task: str = "colors") -> Batch:
    """Collate; samples without an answer give a batch to generate from."""
    generation = samples[0].turns[-1].role == "user"
    items = [(sample, task) for sample in samples]
    return Collator(backbone.processor)(items, generation=generation)


def all_linears(backbone: Backbone) -> list[str]:
    return [path for layer in backbone.layers for path in layer.linears]


def randomize(library: Any, name: str, scale: float = 0.3) -> None:
    """Give an expert weights that change the output, the same for the same name."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    for _, parameter in library.parameters(name):
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
