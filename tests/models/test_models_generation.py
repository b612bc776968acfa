"""Answers depend on no generation setting that a model's folder brings along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, make_backbone, make_batch, make_samples
from families.models import make_model
from families.processors import make_processor
from transformers import GenerationConfig

from dmole.demo.tiny import TINY_PATH
from dmole.models import Backbone, PretrainedBackbone
from dmole.models.generation import check_generation, end_ids

POISON: dict[str, Any] = {
    "max_length": 1, "max_new_tokens": 1, "min_length": 500, "min_new_tokens": 50,
    "early_stopping": True, "max_time": 1e-9, "stop_strings": ["e", "a"], "do_sample": True,
    "num_beams": 3, "use_mtp": True, "use_cache": False, "cache_implementation": "static",
    "cache_config": {"max_cache_len": 4}, "max_cache_len": 4, "temperature": 9.0, "top_k": 3,
    "top_p": 0.1, "min_p": 0.9, "top_h": 0.1, "typical_p": 0.1, "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.5, "repetition_penalty": 9.0, "encoder_repetition_penalty": 9.0,
    "length_penalty": 9.0, "no_repeat_ngram_size": 1, "bad_words_ids": [[i] for i in range(20, 99)],
    "renormalize_logits": True, "forced_bos_token_id": 30, "forced_eos_token_id": 31,
    "remove_invalid_values": True, "exponential_decay_length_penalty": (1, 9.0),
    "suppress_tokens": list(range(99, 200)), "begin_suppress_tokens": list(range(200, 250)),
    "sequence_bias": [[[40], 99.0]], "token_healing": True, "guidance_scale": 9.0,
    "watermarking_config": {"bias": 99.0}, "num_return_sequences": 2, "output_attentions": True,
    "output_hidden_states": True, "output_scores": True, "output_logits": True,
    "return_dict_in_generate": True, "pad_token_id": 41, "encoder_no_repeat_ngram_size": 1,
    "decoder_start_token_id": 42, "is_assistant": True, "num_assistant_tokens": 5,
    "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.9,
    "prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 3, "assistant_early_exit": 1,
    "assistant_lookbehind": 3, "target_lookbehind": 3, "assistant_ensemble_weight": 0.5,
    "speculation_type": "dflash", "compile_config": {"mode": "default"}, "disable_compile": False,
    "low_memory": True, "penalty_alpha": 0.6, "dola_layers": "high", "diversity_penalty": 9.0,
    "num_beam_groups": 3, "constraints": [1], "force_words_ids": [[43]], "prefill_chunk_size": 1,
    "continuous_batching_config": {}, "a_setting_of_tomorrow": 1,
}  # fmt: skip
"""A value of every setting of a generation config that would change answers or break them."""
NEUTRAL = {"bos_token_id", "eos_token_id", "transformers_version", "_from_model_config"}


def test_every_setting_of_the_library_is_poisoned() -> None:
    assert GenerationConfig().to_dict().keys() - NEUTRAL <= POISON.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_setting_of_a_folder_changes_an_answer(family: str) -> None:
    backbone = make_backbone(family)
    prompts = make_samples((1, 1) if family in ("paligemma", "mllama") else (1, 0), answers=False)
    batch = make_batch(backbone, prompts)
    plain = backbone.generate(batch.inputs, 5)
    assert any(plain)
    model = make_model(family, backbone.processor)
    for name, value in POISON.items():
        setattr(model.generation_config, name, value)
    assert Backbone(model, backbone.processor).generate(batch.inputs, 5) == plain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_PATH, tmp_path / "model"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def answers(backbone: Backbone) -> list[str]:
    batch = make_batch(backbone, make_samples((1, 0, 1), answers=False))
    return backbone.generate(batch.inputs, 8)


def test_a_folder_with_penalties_and_sampling_answers_like_one_without(folder: Path) -> None:
    plain = answers(PretrainedBackbone("tiny"))
    edit(folder, repetition_penalty=5.0, do_sample=True, temperature=0.7, max_length=3)
    assert answers(PretrainedBackbone(str(folder))) == plain


def test_a_generate_function_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "custom_generate").mkdir()
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\ndef generate(model, **inputs):\n    return None\n"
    (folder / "custom_generate" / "generate.py").write_text(code)
    edit(folder, custom_generate=str(folder))
    assert answers(PretrainedBackbone(str(folder))) == answers(PretrainedBackbone("tiny"))
    assert not mark.exists()


def test_settings_of_the_run_do_change_answers() -> None:
    backbone = PretrainedBackbone("tiny")
    batch = make_batch(backbone, make_samples((1, 0), answers=False))
    plain = backbone.generate(batch.inputs, 8)
    backbone.set_generation(check_generation({"suppress_tokens": first_tokens(backbone, plain)}))
    changed = backbone.generate(batch.inputs, 8)
    assert changed != plain
    backbone.set_generation({})
    assert backbone.generate(batch.inputs, 8) == plain


def first_tokens(backbone: Backbone, texts: list[str]) -> list[int]:
    tokenizer = backbone.processor.tokenizer
    return [tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition_penalti": 1.1}, "no setting 'repetition_penalti', there are repetition_pen"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a positive number, got 0"),
        ({"repetition_penalty": True}, "must be a positive number, got True"),
        ({"no_repeat_ngram_size": 1.5}, "must be an integer of at least 0, got 1.5"),
        ({"suppress_tokens": 3}, "must be a list of token ids, got 3"),
        ({"early_stopping": True}, "early_stopping has no effect without model.beams above 1"),
        ({"temperature": 0.7}, "takes no temperature: .* decoding is deterministic"),
        ({"num_beams": 3}, "takes no num_beams: set model.beams"),
        ({"cache_implementation": "static"}, "takes no cache_implementation: the dynamic cache is"),
        ({"max_new_tokens": 3}, "takes no max_new_tokens: set max_new_tokens of the tasks"),
        ({"eos_token_id": 3}, "takes no eos_token_id: it follows from the chat template"),
    ],
)
def test_a_setting_that_is_not_valid_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"model.generation.*{message}"):
        check_generation(settings)
    assert check_generation({"length_penalty": -1.0}, beams=2) == {"length_penalty": -1.0}


# -- ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "llava_plain"])
def test_the_token_that_ends_a_learned_answer_ends_a_generated_one(family: str) -> None:
    processor = make_processor(family)
    model = make_model("llava" if family == "llava_plain" else family, processor)
    assert end_ids(model) == []  # the generation config does not list it
    backbone = Backbone(model, processor)
    batch = make_batch(backbone, make_samples((1, 1)))
    for labels in batch.labels:
        assert int(labels[labels != -100][-1]) in end_ids(backbone.model)


def test_generation_stops_at_the_end_of_a_turn_that_the_folder_does_not_list() -> None:
    backbone = make_backbone("qwen2_vl")
    tokenizer = backbone.processor.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    batch = make_batch(backbone, make_samples((0,), answers=False))
    sequence = iter([70, end, 71, 72])

    def say(module: Any, args: Any, logits: Any) -> Any:
        logits = logits.clone()
        logits[..., next(sequence)] = 1e4
        return logits

    handle = backbone.model.lm_head.register_forward_hook(say)
    assert backbone.generate(batch.inputs, 4) == [tokenizer.decode([70]).strip()]
    handle.remove()
    assert next(sequence) == 71  # two steps were made


def test_other_ends_that_a_folder_lists_are_kept(folder: Path) -> None:
    edit(folder, eos_token_id=[1])
    assert end_ids(PretrainedBackbone(str(folder)).model) == [1, 2]


def test_padding_is_a_token_that_answers_leave_out(folder: Path) -> None:
    edit(folder, pad_token_id=300)
    assert answers(PretrainedBackbone(str(folder))) == answers(PretrainedBackbone("tiny"))


def test_an_end_that_is_text_in_the_tokenizer_is_refused_by_name(folder: Path) -> None:
    edit(folder, eos_token_id=[2, 300])
    with pytest.raises(
        ValueError, match=r"cannot use the base model '.*': eos_token_id .* 300"
    ) as c:
        PretrainedBackbone(str(folder))
    assert "answers would be cut there" in str(c.value)
    assert "\n" not in str(c.value)


def test_a_folder_without_a_generation_config_stops_at_the_learned_end(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"]):
        part.pop("eos_token_id", None)
        part["repetition_penalty"] = 5.0
    (folder / "config.json").write_text(json.dumps(config))
    backbone = PretrainedBackbone(str(folder))
    assert end_ids(backbone.model) == [2]
    assert answers(backbone) == answers(PretrainedBackbone("tiny"))
