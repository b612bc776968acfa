"""A tokenizer with the special tokens of all families, and their chat templates."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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
MORE = [
    "<|im_end|>",
    "<video>",
    "<img>",
    "</img>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
]
"""What only the newer families use; the three old ones keep their small vocabulary."""
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


def chat_template(begin: str, image: str, end: str, *, head: str = "", answerer: str = "") -> str:
    """Write the template of the ChatML kind: ``<begin>role``, images and text, ``<end>``."""
    template = (
        "HEAD{% for message in messages %}BEGIN"
        "{{ ANSWERER if message['role'] == 'assistant' else message['role'] }}{{ '\n' }}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}END{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}BEGIN{{ ANSWERER + '\n' }}{% endif %}"
    )
    words = {"HEAD": head, "BEGIN": begin, "IMAGE": image, "END": end}
    for word, value in {**words, "ANSWERER": f"'{answerer or 'assistant'}'"}.items():
        template = template.replace(word, value)
    return template


CHATML = {"begin": "<|im_start|>", "end": "<|im_end|>"}
TEMPLATES = {
    "llava": LLAVA_TEMPLATE,
    "llava_next": LLAVA_TEMPLATE,
    "idefics3": IDEFICS_TEMPLATE,
    "smolvlm": IDEFICS_TEMPLATE,
    "llava_onevision": chat_template(image="<image>\n", **CHATML),
    "internvl": chat_template(image="<image>\n", **CHATML),
    "qwen2_vl": chat_template(image="<|vision_start|><image><|vision_end|>", **CHATML),
    "gemma3": chat_template(
        "<start_of_turn>", "<start_of_image>", "<end_of_turn>", head="<s>", answerer="model"
    ),
    "mllama": chat_template("<|im_start|>", "<image>", "<|eot_id|>", head="<s>"),
}
TEMPLATES["qwen2_5_vl"] = TEMPLATES["qwen3_vl"] = TEMPLATES["qwen2_vl"]

NAMED = {
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<image>",
        "video_token": "<video>",
    },
    "gemma3": {
        "image_token": "<image>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    },
}
"""Special tokens that a tokenizer knows by name."""


def make_tokenizer(family: str = "llava", **kwargs: Any) -> Any:
    """Train a byte-level tokenizer; that of a chat family ends answers with its own token."""
    from transformers import PreTrainedTokenizerFast

    old = family in ("llava", "llava_plain", "llava_next", "idefics3")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL if old else SPECIAL + MORE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    named = NAMED.get(
        family, {"image_token": "<image>"} | ({} if old else {"video_token": "<video>"})
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens=named,
        **kwargs,
    )
