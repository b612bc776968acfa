"""The processor of the tiny model: pixels in [-1, 1], 64 tokens per image, the chat template."""

from __future__ import annotations

from typing import Any

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ['user', 'assistant'] -%}
{{- raise_exception("the roles are 'user' and 'assistant', got " + message['role']) -}}
{%- endif -%}
{%- if message['content'] is string -%}
{%- set parts = [{'type': 'text', 'text': message['content']}] -%}
{%- else -%}
{%- set parts = message['content'] -%}
{%- endif -%}
{%- set state = namespace(images='', text='') -%}
{%- for part in parts -%}
{%- if part['type'] == 'image' -%}
{%- set state.images = state.images + '<image>' -%}
{%- elif part['type'] == 'text' -%}
{%- set pieces = part['text'].split('<image>') -%}
{%- set state.images = state.images + '<image>' * (pieces | length - 1) -%}
{%- set state.text = state.text + ' ' + pieces | join(' ') | trim -%}
{%- else -%}
{{- raise_exception("a content part is of type 'image' or 'text', got " + part['type']) -}}
{%- endif -%}
{%- endfor -%}
{%- if message['role'] == 'user' -%}
{{- state.images + 'USER:' + state.text | trim -}}
{%- else -%}
{%- generation -%}
{{- 'ASSISTANT:' + state.text | trim + eos_token -}}
{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
"""`<s>` + image tokens + `USER:` + question + `ASSISTANT:` + answer + `</s>`; images go first."""


def build_processor(tokenizer: Any, image_size: int = 64, patch_size: int = 8) -> Any:
    """Return the `LlavaProcessor` of the tiny model.

    Args:
        tokenizer: The tokenizer of the model.
        image_size: Height and width to which every image is resized, in pixels.
        patch_size: Height and width of a patch, in pixels.

    Returns:
        A processor whose ``pixel_values`` are ``x / 127.5 - 1`` and which puts
        ``(image_size / patch_size) ** 2`` image tokens in place of each ``<image>``.
    """
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image_processor = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": image_size, "width": image_size},
        do_center_crop=False,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" drops
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )
