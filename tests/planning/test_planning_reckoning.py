"""Phases, experts and advice of a run that is not started."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from dmole.allocation import EvaInitializer
from dmole.cli.plan import read_config
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.planning.advice import advise
from dmole.planning.config import read_setup
from dmole.planning.experts import plan_experts
from dmole.planning.hardware import GPUS
from dmole.planning.hours import answers_per_sample, hours, phase_flops
from dmole.planning.images import image_tokens
from dmole.planning.reckoning import GIB, Reckoning
from dmole.planning.setup import Lengths, Setup
from dmole.planning.shape import model_shape

LLAVA = "llava-hf/llava-1.5-7b-hf"


def config_of(*names: str) -> dict[str, Any]:
    return read_config([word for name in names for word in ("--config", name)])


@pytest.fixture(scope="module")
def coin() -> dict[str, Any]:
    return config_of("coin.yaml")


@pytest.fixture(scope="module")
def setup(coin: dict[str, Any]) -> Setup:
    return read_setup(coin)


def phases(setup: Setup, name: str = LLAVA) -> dict[str, Any]:
    found = Reckoning(model_shape(name), setup, Lengths()).phases()
    return {phase.name: phase for phase in found}


def test_settings_and_sizes_are_read_from_the_config(setup: Setup) -> None:
    assert (setup.precision, setup.moments, setup.ranks, setup.sharded) == (
        *("bf16-mixed", 2, 1, False),
    )
    sizes = {task.name: task for task in setup.tasks}
    assert (sizes["ScienceQA"].test, sizes["ScienceQA"].assumed) == (4241, ("train",))
    assert sum(task.test for task in setup.tasks) == pytest.approx(270_000, rel=0.01)
    assert sizes["ScienceQA"].new_tokens == 1024


@pytest.mark.parametrize(
    ("method", "count", "past"),
    [("dmole", 5, 4), ("seq_ft", 1, 0), ("moe_cl", 6, 4), ("zero_shot", 0, 0)],
)
def test_the_experts_are_those_that_allocator_and_router_make(
    method: str, count: int, past: int
) -> None:
    setup = read_setup(config_of("quickstart.yaml", f"methods/{method}.yaml"))
    planned = plan_experts(model_shape("tiny"), setup)
    assert planned.count == count
    assert planned.past == past * planned.largest if method != "moe_cl" else planned.past > 0
    assert planned.past <= planned.parameters


def test_the_parameters_of_an_expert_are_those_of_the_module() -> None:
    setup = read_setup(config_of("comparison.yaml", "methods/mola.yaml"))
    module = ContinualModule(PretrainedBackbone("tiny"), setup.allocator, setup.router)
    plan = setup.allocator.allocate("shared", module.units(), None, first=True)
    planned = plan_experts(model_shape("tiny"), setup)
    assert planned.size.parameters == module.count_parameters(plan)


def test_a_batch_of_an_odd_size_is_divided_too(setup: Setup) -> None:
    reckoning = Reckoning(model_shape(LLAVA), setup, Lengths())
    changes = [advice.change for advice in advise(reckoning, 21 * GIB)]
    assert "data.batch_size 1 and trainer.accumulate_grad_batches 112" in changes


def test_the_most_pixels_of_an_image_are_a_number() -> None:
    config = model_shape("Qwen/Qwen2.5-VL-7B-Instruct").config
    with pytest.raises(ValueError, match="max_pixels must be at least 1, got 'many'"):
        image_tokens(config, {"max_pixels": "many"})


def test_ranks_and_passes_share_the_gradients_of_the_proxy_pass(setup: Setup) -> None:
    def kept(changed: Setup) -> float:
        parts = phases(changed)["proxy pass"].parts
        return float(parts["gradients"])

    largest = 4 * 4096 * 11008
    whole = 4 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    one = replace(setup, allocator=_with_passes(setup, 1))
    assert kept(one) - largest == pytest.approx(whole, rel=0.06)  # the vision encoder is the rest
    sums = kept(one) - largest
    assert kept(_passes(setup, 4)) - largest == pytest.approx(sums / 4)
    assert kept(replace(one, devices=8)) - 2 * largest == pytest.approx(sums / 8)  # and a copy


def test_norms_of_batches_in_parts_need_their_gradients(setup: Setup) -> None:
    assert setup.accumulate_grad_batches > 1
    fisher = copy.copy(setup.allocator)
    fisher.reduction = "fisher"
    parts = replace(setup, allocator=fisher)
    whole = replace(parts, accumulate_grad_batches=1)
    kept = [phases(s)["proxy pass"].parts["gradients"] / GIB for s in (setup, parts, whole)]
    assert kept[0] == kept[1] > 6
    assert kept[2] < 0.2


def _passes(setup: Setup, count: int) -> Setup:
    return replace(setup, allocator=_with_passes(setup, count))


def _with_passes(setup: Setup, count: int) -> Any:
    allocator = copy.copy(setup.allocator)
    allocator.proxy_passes = count
    return allocator


def test_a_sharded_base_keeps_its_part_and_what_is_gathered(setup: Setup) -> None:
    split = replace(setup, devices=8, sharded=True, gathers=True)
    base = phases(setup)["training step"].parts["base model"]
    parts = phases(split)["training step"].parts
    assert base / 8 < parts["base model"] < base / 8 + 0.1 * GIB
    answering = phases(split)["evaluation"].parts
    assert answering["gathered"] == pytest.approx(base, rel=0.01)  # all but projector and norms
    assert answering["base model"] == parts["base model"]  # beside its shard
    decoded = phases(replace(split, gathers=False))["evaluation"].parts
    assert decoded["base model"] == parts["base model"]
    block, head = 2 * 202_383_360, 2 * 32_064 * 4096
    assert parts["gathered"] == 2 * block + head
    assert "gathered" not in phases(split)["router fit"].parts


def test_past_experts_leave_the_gpu_but_those_that_a_batch_uses(setup: Setup) -> None:
    kept = {n: phases(replace(setup, past_experts_on_device=n)) for n in (None, 0, 3, 6)}
    one = 4 * plan_experts(model_shape(LLAVA), setup).largest
    found = {limit: found["training step"].parts["experts"] / one for limit, found in kept.items()}
    # those of the batches before stay while a batch loads its own
    assert found == {None: 7, 0: 2, 3: 3 + 2, 6: 7}
    assert kept[0]["proxy pass"].parts["experts"] == 0


def test_a_base_is_not_split_where_a_regularizer_excludes_it(setup: Setup) -> None:
    eight = replace(setup, devices=8)
    replay = replace(eight, regularizers=(("ReplayImportance", {}),))
    for changed, splits in ((eight, True), (replay, False)):
        reckoning = Reckoning(model_shape(LLAVA), changed, Lengths())
        changes = [advice.change for advice in advise(reckoning, 12 * GIB)]
        assert any("sharded_base" in change for change in changes) == splits


def test_a_quantized_base_is_a_quarter_but_its_embeddings(setup: Setup) -> None:
    shape = model_shape(LLAVA)
    packed = phases(replace(setup, quantization="4bit"))["evaluation"].parts["base model"]
    rest = 2 * (shape.parameters - shape.linear_parameters)
    assert packed - rest == pytest.approx(0.516 * shape.linear_parameters)
    with pytest.raises(ValueError, match="4bit cannot be split over GPUs"):
        phases(replace(setup, quantization="4bit", sharded=True))


def test_regularizers_keep_what_they_compare_with() -> None:
    method = read_setup(config_of("quickstart.yaml", "methods/ewc_lora.yaml"))
    found = phases(method, "tiny")["training step"].parts
    trained = plan_experts(model_shape("tiny"), method).size.parameters
    assert found["regularizers"] == 2 * 4 * trained  # a quadratic function of all past tasks


@pytest.mark.parametrize(
    ("method", "numbers"),
    [
        ("dgg", lambda linears, trained: 2 * trained),
        ("osf", lambda linears, trained: sum(0.5 * min(pair) * sum(pair) for pair in linears)),
        (
            "same",
            lambda linears, trained: trained + 5 * sum(i * min(i, 64) for i, _ in linears),
        ),
    ],
)
def test_gradient_rules_keep_their_state_beside_the_experts(method: str, numbers: Any) -> None:
    setup = read_setup(config_of("quickstart.yaml", f"methods/{method}.yaml"))
    size = plan_experts(model_shape("tiny"), setup).size
    assert size.linears
    found = phases(setup, "tiny")["training step"].parts["gradient rules"]
    assert found == pytest.approx(4 * numbers(size.linears, size.parameters))


def test_a_gradient_rule_of_another_package_is_refused(setup: Setup) -> None:
    with pytest.raises(ValueError, match="the memory of the gradient rule object cannot be"):
        phases(replace(setup, rules=(object(),)))


def test_the_first_advice_suffices_and_keeps_the_batch(setup: Setup) -> None:
    large = replace(_passes(setup, 1), batch_size=16, activation_checkpointing=False)
    reckoning = Reckoning(model_shape(LLAVA), large, Lengths())
    limit = 0.99 * phases(replace(large, activation_checkpointing=True))["proxy pass"].total
    found = [advice for advice in advise(reckoning, limit) if advice.phase == "proxy pass"]
    assert found[0].fits
    assert found[0].after <= limit < found[0].before
    changes = {advice.change for advice in found}
    assert "model.allocator.init_args.proxy_passes 2" not in changes  # not enough alone
    assert not any("sharded" in change for change in changes)  # there is one GPU
    batch = next((change for change in changes if "batch_size" in change), None)
    if batch is not None:
        words = batch.split()
        assert int(words[1]) * int(words[4]) == 16 * large.accumulate_grad_batches


def test_an_advice_on_batches_names_the_tasks_that_set_their_own(setup: Setup) -> None:
    own = read_setup(config_of("cmit.yaml"))
    found = []
    for changed in (setup, own):
        large = replace(changed, batch_size=64)
        reckoning = Reckoning(model_shape(LLAVA), large, Lengths())
        changes = [advice.change for advice in advise(reckoning, 22 * GIB)]
        found.append([c for c in changes if "batch_size" in c and "eval" not in c])
    assert found[0]
    assert not any("task" in change for change in found[0])
    assert found[1]
    assert all("at most in each task" in change for change in found[1])


def test_several_changes_are_joined_where_none_suffices(setup: Setup) -> None:
    greedy = replace(_passes(setup, 1), past_experts_on_device=None)
    reckoning = Reckoning(model_shape(LLAVA), greedy, Lengths())
    needed = {phase.name: phase.total for phase in reckoning.phases()}
    base = reckoning.whole_base + 4 * reckoning.experts.past
    limit = base + 0.1 * (needed["proxy pass"] - base)
    last = [advice for advice in advise(reckoning, limit) if advice.phase == "proxy pass"][-1]
    assert last.change.startswith("model.past_experts_on_device 0, ")
    assert "proxy_passes" in last.change
    assert last.fits
    assert last.after <= limit


def test_hours_are_work_over_rate_and_a_term_a_token(setup: Setup) -> None:
    reckoning = Reckoning(model_shape(LLAVA), setup, Lengths())
    gpu = GPUS["a100-80gb"]
    one, eight = hours(reckoning, gpu, 0.35), hours(_on_eight(setup), gpu, 0.35)
    assert all(one[phase] == pytest.approx(8 * eight[phase]) for phase in one)
    assert hours(reckoning, gpu, 0.7)["train"] == pytest.approx(one["train"] / 2)
    assert hours(reckoning, gpu, 0.7)["decode"] == one["decode"]  # the host is the limit
    shorter = replace(setup, eval_batch_size=2 * setup.eval_batch_size, eval_tokens_per_batch=None)
    fixed = replace(setup, eval_tokens_per_batch=None)
    half = Reckoning(model_shape(LLAVA), shorter, Lengths())
    whole = Reckoning(model_shape(LLAVA), fixed, Lengths())
    ratio = hours(half, gpu, 0.35)["decode"] / hours(whole, gpu, 0.35)["decode"]
    assert ratio == pytest.approx(0.5)


def test_a_base_in_shards_is_gathered_in_every_pass(setup: Setup) -> None:
    gpu = GPUS["h100-80gb"]
    eight = replace(setup, devices=8, max_tokens_per_batch=None)
    split = replace(eight, sharded=True, gathers=True)
    found = [
        hours(Reckoning(model_shape(LLAVA), changed, Lengths()), gpu, 0.35)
        for changed in (split, replace(split, gathers=False), eight)
    ]
    assert "gather" not in found[2]
    seen = sum(task.train * task.passes for task in setup.tasks)
    scored = seen / 100 * setup.allocator.proxy_passes
    seconds = 2 * (seen + scored) / setup.batch_size / 8 * 2 * 7_063_427_072 / 25e9
    assert found[0]["gather"] == pytest.approx(seconds / 3600)
    assert found[1]["gather"] > found[0]["gather"] + found[1]["decode"]  # once a token


def _on_eight(setup: Setup) -> Reckoning:
    return Reckoning(model_shape(LLAVA), replace(setup, devices=8), Lengths())


def test_one_adapter_is_evaluated_on_all_tasks_at_every_stage() -> None:
    shared = read_setup(config_of("quickstart.yaml", "methods/seq_ft.yaml"))
    routed = read_setup(config_of("quickstart.yaml"))
    counts = [
        answers_per_sample(Reckoning(model_shape("tiny"), setup, Lengths()))
        for setup in (shared, routed)
    ]
    assert counts == [6, 3]
    seen = replace(shared, evaluate="seen")
    assert answers_per_sample(Reckoning(model_shape("tiny"), seen, Lengths())) == 3


@pytest.mark.parametrize(
    ("method", "all_tasks", "seen"),
    [("o_lora", 6, 3), ("moe_cl_routed", 6, 3), ("zero_shot", 1, 1)],
)
def test_answers_change_with_an_expert_that_all_samples_use(
    method: str, all_tasks: int, seen: int
) -> None:
    setup = read_setup(config_of("quickstart.yaml", f"methods/{method}.yaml"))
    for which, expected in (("all", all_tasks), ("seen", seen)):
        changed = replace(setup, evaluate=which)
        assert answers_per_sample(Reckoning(model_shape("tiny"), changed, Lengths())) == expected


def test_replayed_samples_take_time(coin: dict[str, Any]) -> None:
    def trained(**arguments: Any) -> float:
        stream = {"class_path": "dmole.streams.ReplayStream", "init_args": arguments}
        setup = read_setup({**coin, "trainer": {**coin["trainer"], "stream": stream}})
        return phase_flops(Reckoning(model_shape(LLAVA), setup, Lengths()))["train"]

    setup = read_setup(coin)
    plain = phase_flops(Reckoning(model_shape(LLAVA), setup, Lengths()))["train"]
    samples = [task.train * task.passes for task in setup.tasks]
    half = plain * (1 + sum(samples[1:]) / sum(samples))  # as many in all stages but the first
    assert trained(buffer_size=9, share=0.5) == pytest.approx(half)
    few = plain * (1 + 7 * 1000 / sum(samples))
    assert trained(buffer_size=1000, share=None) == pytest.approx(few)


def test_only_so_many_test_samples_as_eval_limit_says_are_answered(coin: dict[str, Any]) -> None:
    limited = read_setup({**coin, "data": {**coin["data"], "eval_limit": 500}})
    assert {task.test for task in limited.tasks} == {500}
    assert [task.train for task in limited.tasks] == [task.train for task in read_setup(coin).tasks]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("trainer", "strategy"), "fsdp", "trainer.strategy fsdp cannot be reckoned"),
        (
            ("model", "optimizer"),
            {"class_path": "torch.optim.LBFGS"},
            "the state of model.optimizer LBFGS cannot be reckoned",
        ),
        (
            ("model", "backbone"),
            {"class_path": "mine.Base"},
            "a base model of class mine.Base cannot be reckoned",
        ),
    ],
)
def test_what_cannot_be_reckoned_is_refused(
    coin: dict[str, Any], path: tuple[str, str], value: Any, message: str
) -> None:
    part, key = path
    changed = {**coin, part: {**coin[part], key: value}}
    with pytest.raises(ValueError, match=message):
        read_setup(changed)


def test_a_short_training_is_reckoned_as_steps_of_experts_in_all_units() -> None:
    setup = read_setup(config_of("quickstart.yaml", "methods/dmole_delta.yaml"))
    module = ContinualModule(PretrainedBackbone("tiny"), setup.allocator, setup.router)
    largest = setup.allocator.largest("all", module.units(), first=True)
    every = copy.copy(setup.allocator)
    every.budget_fraction = 1.0
    whole = replace(setup, allocator=every)
    for changed in (setup, whole):
        scored = plan_experts(model_shape("tiny"), changed).scored
        assert scored is not None
        assert scored.parameters == module.count_parameters(largest)
        found = phases(changed, "tiny")
        assert ("proxy pass" in found, "scoring step" in found) == (False, True)
        more = found["scoring step"].total - found["training step"].total
        assert (more > 0) == (changed is setup)

    four = replace(whole, devices=2, accumulate_grad_batches=2)
    taken = hours(Reckoning(model_shape("tiny"), four, Lengths()), GPUS["a100-80gb"], 0.35)
    steps = len(setup.stages) * setup.allocator.score_steps
    trained = sum(task.train * task.passes for task in setup.tasks)
    share = steps * 4 * setup.batch_size / trained
    assert taken["proxy"] / taken["train"] == pytest.approx(share)

    every.initializer = EvaInitializer(proxy_fraction=0.5)
    both = hours(Reckoning(model_shape("tiny"), four, Lengths()), GPUS["a100-80gb"], 0.35)
    assert both["proxy"] > taken["proxy"]
