"""A training step of the random LLaVA by implementation of attention."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.gpu.common import Row, Setting, medians, peak_gib
from experiments.gpu.llava import SIZES, build_module, make_batch, recompute
from experiments.gpu.routed import outside_a_run, place_experts, training_step


def attention(setting: Setting, size: int = 4) -> Iterator[Row]:
    """Yield time and memory of a training step by implementation of attention."""
    from transformers.utils import is_flash_attn_2_available

    for name in ("eager", "sdpa", "flash_attention_2"):
        if name == "flash_attention_2" and not is_flash_attn_2_available():
            yield name, "not run", "package flash_attn is not installed"
            continue
        module, batch = build_module(setting, name), make_batch(setting, size)
        rank = SIZES[setting.base][0]
        place_experts(module, ["task"], rank, 2.0 * rank)
        outside_a_run(module, "task")
        recompute(module.backbone.model, False)
        step = training_step(module, batch)
        times = medians({name: step}, setting.device, setting.repeats)
        peak = peak_gib(step, setting.device)
        yield (
            f"{name}: training step, ms",
            round(1000 * times[name], 1),
            (f"batch {size}, peak {peak:.1f} GiB, activations kept"),
        )
        del module, step
