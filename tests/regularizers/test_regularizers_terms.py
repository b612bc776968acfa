"""The regularizers on a tiny model: what they are at the start, and whom their gradients reach."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import make_backbone, make_samples, randomize
from families.modules import batch_of
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torch.testing import assert_close

from dmole.allocation import UniformAllocator
from dmole.data.batch import Batch
from dmole.data.sample import Sample
from dmole.data.window import windows
from dmole.experts.gates import MixingRecord
from dmole.module import ContinualModule
from dmole.regularizers import (
    AdversarialTask,
    BranchFreezing,
    Distillation,
    ElasticWeights,
    LoadBalance,
    Orthogonality,
    Regularizer,
    ReplayImportance,
    RouterEntropy,
    StageView,
    elastic_penalty,
    load_balance,
    normalized_overlap,
    overlap,
)
from dmole.regularizers import replay_importance as learned_replay
from dmole.regularizers.replay_learner import ReplayLearner
from dmole.routing import (
    AllExpertsRouter,
    BranchMixing,
    CommonExpertRouter,
    CommonMixing,
    OracleRouter,
    Router,
    SharedRouter,
    TokenRouter,
    TopKGate,
    normalized_entropy,
)
from dmole.run.context import StageContext
from dmole.steps.accumulation import Share

TASKS = ("a", "b")
IMAGES = (1, 0, 2, 1)


def make_module(
    router: Router,
    *terms: Regularizer,
    experts: int = 1,
    dropout: float = 0.0,
    names: Sequence[str] = ("a",),
    family: str = "llava",
) -> ContinualModule:
    allocator = UniformAllocator(rank=2, experts=experts)
    module = ContinualModule(
        make_backbone(family), allocator, router, dropout=dropout, regularizers=list(terms)
    )
    for name in (*filter(None, [router.common]), *names):
        place(module, name)
        randomize(module.library, name, 0.1)
    experts = tuple(filter(None, (names[-1], router.common)))
    module.begin_stage(StageContext(1, experts, TASKS[:1]))
    return module


def place(module: ContinualModule, name: str) -> None:
    plan = module.allocator.allocate(name, module.units(), None, not module.library.names)
    module.add_expert(plan)


def view(module: ContinualModule, index: int = 1, samples: Sequence[Sample] = ()) -> StageView:
    """Return a stage that serves the given samples of task ``a``, as many a batch as is said."""

    def serve(count: int, size: int) -> Iterator[Batch]:
        for start in range(0, min(count, len(samples)), size):
            yield batch_of(module, samples[start : min(start + size, count)], "a" * size)

    return StageView(
        library=module.library,
        experts=module.training_experts,
        index=index,
        tasks=module.stage.tasks,
        all_tasks=TASKS,
        samples=serve,
        step=module.compute_step,
    )


def parameters(module: ContinualModule) -> dict[str, Tensor]:
    return view(module).parameters()


def gradients(value: Tensor, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def one_by_one(module: ContinualModule, tasks: str = "aaaa") -> list[Batch]:
    samples = make_samples(IMAGES)
    return [batch_of(module, [sample], task) for sample, task in zip(samples, tasks, strict=True)]


def whole(module: ContinualModule, tasks: str = "aaaa") -> Batch:
    return batch_of(module, make_samples(IMAGES), tasks)


# -- distillation ---------------------------------------------------------------------------


def test_distillation_and_its_gradient_are_exactly_zero_where_a_stage_starts() -> None:
    term = Distillation(coefficient=3.0)
    module = make_module(SharedRouter(), term)
    term.before_stage(view(module, index=2))
    _, step = module.compute_step(whole(module))
    value = term(step)
    assert value == 0
    assert not any(bool(g.any()) for g in gradients(value, parameters(module)).values())


def test_a_first_stage_has_nothing_to_distil() -> None:
    term = Distillation()
    module = make_module(SharedRouter(), term)
    term.before_stage(view(module, index=1))
    randomize(module.library, "a", 0.2)
    _, step = module.compute_step(whole(module))
    assert term(step) == 0
    assert not term.tensors()


def test_the_teacher_is_the_model_before_the_stage_whatever_the_student_drops() -> None:
    term = Distillation(coefficient=1.0, temperature=2.0)
    module = make_module(SharedRouter(), term, dropout=0.3)
    module.eval()  # the base model has no dropout, the experts' is off
    batch = whole(module)
    with torch.no_grad():
        _, step = module.compute_step(batch)
    before = step.logits
    term.before_stage(view(module, index=2))
    for parameter in parameters(module).values():
        parameter.data.add_(0.05)
    module.train()
    _, step = module.compute_step(batch)
    drawn = torch.random.get_rng_state()
    value = term(step)
    assert torch.equal(torch.random.get_rng_state(), drawn)  # the teacher draws nothing
    assert value == term(step)
    ours, theirs = ((logits / 2.0).log_softmax(-1) for logits in (step.logits, before))
    expected = 4.0 * kl_div(ours, theirs, reduction="batchmean", log_target=True)
    assert_close(value, expected, rtol=1e-4, atol=1e-6)
    assert value > 0


# -- elastic weights --------------------------------------------------------------------------


@pytest.mark.parametrize("online", [False, True])
def test_importance_is_the_mean_of_squared_gradients_of_single_samples(online: bool) -> None:
    term = ElasticWeights(coefficient=2.0, online=online)
    module = make_module(SharedRouter(), term)
    samples, batches = make_samples(IMAGES), one_by_one(module)
    own = parameters(module)
    expected = {name: torch.zeros_like(p) for name, p in own.items()}
    for batch in batches:
        for p in own.values():
            p.grad = None
        module.compute_step(batch)[0].backward()
        for name, p in own.items():
            if p.grad is not None:
                expected[name] += p.grad**2 / len(batches)
    term.after_stage(view(module, samples=samples))
    found = term.extra_tensors()
    assert len(found) == 2 * len(own)
    for name, p in own.items():
        assert torch.equal(found[f"0/anchor/{name}"], p.detach())
        assert_close(found[f"0/importance/{name}"], expected[name], rtol=1e-4, atol=1e-9)
    assert any(bool(importance.any()) for importance in expected.values())


@pytest.mark.parametrize("online", [False, True])
def test_elastic_weights_cost_nothing_at_the_anchor_and_the_closed_form_away_from_it(
    online: bool,
) -> None:
    term = ElasticWeights(coefficient=2.0, online=online)
    module = make_module(SharedRouter(), term)
    batches = one_by_one(module)
    term.after_stage(view(module, samples=make_samples(IMAGES)))
    _, step = module.compute_step(batches[0])
    own = parameters(module)
    assert term(step) == 0
    assert not any(bool(g.any()) for g in gradients(term(step), own).values())
    found = term.extra_tensors()
    anchors = {name: found[f"0/anchor/{name}"] for name in own}
    importance = {name: found[f"0/importance/{name}"] for name in own}
    for p in own.values():
        p.data.add_(0.1)
    assert_close(term(step), 2.0 * elastic_penalty(own, anchors, importance))
    for name, gradient in gradients(term(step), own).items():
        assert_close(gradient, 2.0 * importance[name] * (own[name] - anchors[name]).detach())


def learn_twice(term: ElasticWeights) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Let a term learn two tasks; return the anchors and the importance of each alone."""
    alone = []
    module = make_module(SharedRouter(), term)
    for index in (1, 2):
        for parameter in parameters(module).values():
            parameter.data.add_(0.01 * index)
        single = ElasticWeights()
        for one in (term, single):
            one.after_stage(view(module, index, make_samples(IMAGES)))
        found = single.extra_tensors()
        anchors, importance = ({}, {})
        for name in parameters(module):
            anchors[name] = found[f"0/anchor/{name}"]
            importance[name] = found[f"0/importance/{name}"]
        alone.append((anchors, importance))
    return alone


def test_the_penalty_of_two_tasks_is_their_sum_and_needs_no_more_tensors_than_one() -> None:
    term = ElasticWeights(coefficient=2.0)
    alone = learn_twice(term)
    module = make_module(SharedRouter(), term)
    own = parameters(module)
    for parameter in own.values():
        parameter.data.add_(0.1)
    _, step = module.compute_step(whole(module))
    expected = 2.0 * torch.stack([elastic_penalty(own, *pair) for pair in alone]).sum()
    assert_close(term(step), expected)
    ours, theirs = gradients(term(step), own), gradients(expected, own)
    for name, gradient in ours.items():
        assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-6)
    state = term.extra_tensors()
    assert sum(tensor.numel() for tensor in state.values()) == 1 + 2 * sum(
        parameter.numel() for parameter in own.values()
    )
    pairs = {  # as older checkpoints have them
        f"{index}/{kind}/{name}": tensor
        for index, tables in enumerate(alone)
        for kind, table in zip(("anchor", "importance"), tables, strict=True)
        for name, tensor in table.items()
    }
    for saved in (state, pairs):
        other = ElasticWeights(coefficient=2.0)
        other.load_extra_tensors(saved)
        assert other.extra_tensors().keys() == state.keys()
        assert all(torch.equal(v, state[k]) for k, v in other.extra_tensors().items())


def test_online_the_anchor_is_the_last_one_and_the_importance_fades() -> None:
    term = ElasticWeights(online=True, decay=0.5)
    (_, first), (anchors, second) = learn_twice(term)
    found = term.extra_tensors()
    assert len(found) == 2 * len(anchors)
    for name, anchor in anchors.items():
        assert torch.equal(found[f"0/anchor/{name}"], anchor)
        assert_close(found[f"0/importance/{name}"], 0.5 * first[name] + second[name])
    other = ElasticWeights(online=True, decay=0.5)
    other.load_tensors(term.tensors())
    assert all(torch.equal(v, found[k]) for k, v in other.extra_tensors().items())


def micro_batches(module: ContinualModule, rank_tasks: Sequence[str]) -> list[list[Batch]]:
    """Return the windows of the ranks; a sample of task ``-`` has no answer tokens."""
    ranks = []
    for tasks in rank_tasks:
        batches = [
            replace(batch, labels=torch.full_like(batch.labels, -100)) if task == "-" else batch
            for batch, task in zip(one_by_one(module), tasks, strict=False)
        ]
        ranks.append(list(windows(batches, len(tasks), 0, len(tasks))))
    return ranks


@pytest.mark.parametrize("rank_tasks", [("aaa",), ("-aa",), ("aa", "aa"), ("-a", "--", "aa")])
def test_a_term_of_parameters_is_computed_once_a_step_on_each_rank_and_counts_once(
    rank_tasks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module(SharedRouter(), ElasticWeights(coefficient=2.0), Orthogonality(l2=0.1))
    own = parameters(module)
    ranks = micro_batches(module, rank_tasks)
    for term in module.regularizers:
        term.after_stage(view(module, samples=make_samples(IMAGES)))
    for parameter in own.values():
        parameter.data.add_(0.1)
    _, whole_step = module.compute_step(whole(module))
    expected = gradients(torch.stack([term(whole_step) for term in module.regularizers]).sum(), own)
    total = torch.tensor([batches[0].window.total for batches in ranks]).sum(0)
    parts = len(ranks) * len(rank_tasks[0])
    found = {name: torch.zeros_like(parameter) for name, parameter in own.items()}
    computed: list[str] = []
    for term in module.regularizers:
        forward = term.forward
        monkeypatch.setattr(
            term, "forward", lambda step, f=forward, t=term: computed.append(type(t)) or f(step)
        )
    for batch in itertools.chain(*ranks):
        step = module.compute_step(batch)[1] if batch.window.own.tokens else None
        share = Share(batch.window.own, total, parts)
        watch = lambda *_: None  # noqa: E731
        value = module.regularizers.total(step, share, batch.labels.device, watch, watch)
        if value.requires_grad:
            for name, gradient in gradients(value, own).items():
                found[name] += gradient / parts  # as Lightning and distributed training do
    assert Counter(computed) == dict.fromkeys(
        (ElasticWeights, Orthogonality), sum("a" in tasks for tasks in rank_tasks)
    )
    for name, gradient in found.items():
        assert_close(gradient, expected[name])


# -- orthogonality ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["sum", "normalized"])
def test_orthogonality_is_that_of_all_layers_and_reaches_the_new_down_projections_alone(
    form: str,
) -> None:
    term = Orthogonality(coefficient=0.3, form=form)
    module = make_module(AllExpertsRouter(), term, names=("a", "b", "c"))
    library = module.library
    _, step = module.compute_step(whole(module, "cccc"))
    value = term(step)
    layers = []
    for path, expert in library.experts("c"):
        past = [dict(library.experts(name))[path].lora_a for name in "ab"]
        layers.append(
            normalized_overlap(expert.lora_a, past)
            if form == "normalized"
            else overlap(expert.lora_a, torch.cat(past))
        )
    joined = torch.stack(layers)
    expected = 0.3 * (joined.mean() if form == "normalized" else joined.sum())
    assert_close(value, expected)
    everyone = {
        f"{name}/{path}.{key}": p
        for name in "abc"
        for path, expert in library.experts(name)
        for key, p in expert.named_parameters()
    }
    for p in everyone.values():
        p.requires_grad_(True)
    found = gradients(term(step), everyone)
    reached = {name for name, gradient in found.items() if gradient.any()}
    assert reached == {n for n in everyone if n.startswith("c/") and n.endswith("lora_a")}


def test_the_first_expert_has_nothing_to_be_orthogonal_to() -> None:
    term = Orthogonality()
    module = make_module(AllExpertsRouter(), term)
    _, step = module.compute_step(whole(module))
    assert term(step) == 0


# -- routers within layers --------------------------------------------------------------------


def left_padded(module: ContinualModule, batch: Batch, count: int) -> Batch:
    """Return a batch with more padding before every sample."""
    pad = module.backbone.processor.tokenizer.pad_token_id
    fill = {"input_ids": pad, "attention_mask": 0}

    def wider(tensor: Tensor, value: int) -> Tensor:
        return torch.cat([tensor.new_full((len(tensor), count), value), tensor], dim=1)

    inputs = {
        key: wider(value, fill[key]) if key in fill else value
        for key, value in batch.inputs.items()
    }
    return replace(batch, inputs=inputs, labels=wider(batch.labels, -100))


@pytest.mark.parametrize(
    "term",
    [LoadBalance(0.5), LoadBalance(0.5, "mean", soft=True), RouterEntropy(0.5, "sum")],
    ids=["balance", "soft balance", "entropy"],
)
def test_terms_of_routers_do_not_count_padding(term: Regularizer) -> None:
    module = make_module(TokenRouter(TopKGate(2)), term, experts=3, names=("shared",))
    batch = whole(module)
    values = [term(module.compute_step(each)[1]) for each in (batch, left_padded(module, batch, 7))]
    assert values[0] > 0
    assert_close(*values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_terms_of_routers_do_not_count_the_images_of_a_sample_without_labels(family: str) -> None:
    term = LoadBalance(0.5)
    module = make_module(
        TokenRouter(TopKGate(2)), term, experts=3, names=("shared",), family=family
    )
    samples = make_samples((2, 1, 1))
    batch = batch_of(module, samples, ("shared",) * 3)
    labels = batch.labels.clone()
    labels[1:] = -100  # as of a sample that only fills the batch
    alone = batch_of(module, samples[:1], ("shared",))
    filled = replace(batch, labels=labels)
    values = [term(module.compute_step(each)[1]) for each in (alone, filled)]
    assert_close(*values, rtol=1e-4, atol=1e-5)
    assert abs(term(module.compute_step(batch)[1]) - values[0]) > 1e-3


@pytest.mark.parametrize("over", ["mean", "sum"])
def test_terms_of_routers_are_those_of_what_each_layer_recorded(over: str) -> None:
    terms = LoadBalance(0.5, over), RouterEntropy(0.25, over, index=1.3)
    module = make_module(TokenRouter(TopKGate(2)), *terms, experts=3, names=("shared",))
    _, step = module.compute_step(whole(module))
    records = step.gates.records
    assert len(records) == len(list(module.library.experts("shared")))
    measured = (
        torch.stack([load_balance(r.probabilities, r.weights) for r in records]),
        torch.stack([normalized_entropy(r.probabilities, 1.3).mean() for r in records]),
    )
    for term, found in zip(terms, measured, strict=True):
        joined = found.mean() if over == "mean" else found.sum()
        assert_close(term(step), term.coefficient * joined)


# -- the adversary ----------------------------------------------------------------------------


def test_experts_climb_the_classifiers_loss_and_classifiers_descend_it() -> None:
    weight = 0.7
    term = AdversarialTask(coefficient=weight)
    router = CommonExpertRouter(OracleRouter(), CommonMixing())
    module = make_module(router, term, names=TASKS)
    module.begin_stage(StageContext(2, ("b", "common"), TASKS[1:]))
    term.before_stage(view(module))
    _, step = module.compute_step(whole(module, "bbbb"))
    own = parameters(module)
    classifiers = dict(term.named_parameters())
    records = [r for r in step.gates.records if r.path.endswith("down_proj")]
    assert len(records) == len(term.classifiers) == 2
    truth = torch.ones(len(IMAGES), dtype=torch.long)
    plain = torch.stack(
        [
            cross_entropy(classifier(record.output), truth)
            for record, classifier in zip(records, term.classifiers, strict=True)
        ]
    ).mean()
    value = term(step)
    assert_close(value, plain)
    ours, theirs = gradients(value, own), gradients(plain, own)
    assert any(bool(g.any()) for g in theirs.values())
    for name, gradient in ours.items():
        assert_close(gradient, -weight * theirs[name], rtol=1e-4, atol=1e-8)
    theirs = gradients(plain, classifiers)
    for name, gradient in gradients(value, classifiers).items():
        assert torch.equal(gradient, theirs[name])
        assert gradient.any()


def test_without_a_weight_the_adversary_changes_no_gradient_and_no_norm() -> None:
    term = AdversarialTask(coefficient=0.0)
    router = CommonExpertRouter(OracleRouter(), CommonMixing())
    module = make_module(router, term, names=TASKS)
    term.before_stage(view(module))
    _, step = module.compute_step(whole(module, "aaaa"))
    value = term(step)
    assert value == 0
    found = gradients(value, dict(term.named_parameters()))
    assert len(found) == 2  # still in the graph, as distributed training requires
    assert not any(gradient.any() for gradient in found.values())


def test_classifiers_are_those_of_the_seed_and_stay_over_the_stages() -> None:
    router = CommonExpertRouter(OracleRouter(), CommonMixing())
    module = make_module(router, names=TASKS)
    terms = [AdversarialTask(seed=seed) for seed in (1, 1, 2)]
    for term in terms:
        term.before_stage(view(module))
    first, same, other = (term.tensors() for term in terms)
    assert all(torch.equal(value, same[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())
    kept = {key: value.clone() for key, value in first.items()}
    terms[0].before_stage(view(module, index=2))
    assert all(torch.equal(value, kept[key]) for key, value in terms[0].tensors().items())
    empty = AdversarialTask(seed=5)
    empty.load_tensors(kept)
    assert all(torch.equal(value, kept[key]) for key, value in empty.tensors().items())


# -- branches -------------------------------------------------------------------------------


def test_of_branches_chosen_equally_often_the_heavier_is_frozen_and_unused_ones_never() -> None:
    term = BranchFreezing(top_k=3)
    router = CommonExpertRouter(OracleRouter(), BranchMixing(top_k=2))
    module = make_module(router, term, experts=4)
    term.after_stage(view(module))
    common = dict(module.library.experts("common"))
    assert not any(expert.frozen.any() for expert in common.values())
    # all tokens equal, as the first tokens of sequences with the same beginning
    batch = one_by_one(module)[0]
    weights = torch.tensor([[0.0, 0.2, 0.0, 0.8]])

    def same_choice(*_: object) -> tuple[None, Any]:
        gates = SimpleNamespace(records=[MixingRecord(p, weights, weights) for p in common])
        return None, SimpleNamespace(gates=gates)

    stage = SimpleNamespace(
        samples=lambda *_: [batch] * 3,
        step=same_choice,
        library=module.library,
        experts=("a", "common"),
    )
    term.after_stage(stage)
    assert all(expert.frozen.tolist() == [0, 1, 0, 1] for expert in common.values())
    for expert in common.values():
        expert.frozen.zero_()
    BranchFreezing(top_k=1).after_stage(stage)
    assert all(expert.frozen.tolist() == [0, 0, 0, 1] for expert in common.values())


def test_the_most_used_branches_are_frozen_and_stay_as_they_are_in_later_stages() -> None:
    term = BranchFreezing(top_k=1)
    router = CommonExpertRouter(OracleRouter(), BranchMixing(top_k=2))
    module = make_module(router, term, experts=3)
    randomize(module.library, "a", 1.0)
    batches = one_by_one(module)
    used = {}
    for batch in batches:
        for record in module.compute_step(batch)[1].gates.records:
            used[record.path] = used.get(record.path, 0) + record.weights.sum(0)
    term.after_stage(view(module, samples=make_samples(IMAGES)))
    common = dict(module.library.experts("common"))
    for path, expert in common.items():
        frozen = expert.frozen.nonzero().flatten().tolist()
        assert len(frozen) == 1
        assert used[path][frozen[0]] == used[path].max()
        assert not expert.trunk_frozen
    place(module, "b")
    module.begin_stage(StageContext(2, ("b", "common"), TASKS[1:]))
    trained = [p for p in module.parameters() if p.requires_grad]
    before = {path: {k: v.clone() for k, v in e.named_parameters()} for path, e in common.items()}
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        module.compute_step(whole(module, "bbbb"))[0].backward()
        optimizer.step()
    for path, expert in common.items():
        (frozen,) = expert.frozen.nonzero().flatten().tolist()
        for key, value in expert.named_parameters():
            same = torch.equal(value, before[path][key])
            assert same == (key == f"lora_b_{frozen}"), (path, key)


def test_a_frozen_trunk_does_not_train_and_freezing_continues_until_no_branch_is_left() -> None:
    term = BranchFreezing(top_k=2, freeze_trunk=True)
    router = CommonExpertRouter(OracleRouter(), BranchMixing(top_k=2))
    module = make_module(router, term, experts=3)
    term.after_stage(view(module, samples=make_samples(IMAGES)[:1]))
    module.focus(StageContext(1, ("a", "common"), TASKS[:1]))
    common = dict(module.library.experts("common"))
    assert not any(expert.lora_a.requires_grad for expert in common.values())
    for expert in common.values():
        expert.frozen.fill_(1.0)
    module.focus(StageContext(1, ("a", "common"), TASKS[:1]))
    assert not any(expert.learning for expert in common.values())
    assert all(p.requires_grad for _, p in module.library.parameters("a"))
    module.compute_step(one_by_one(module)[0])[
        0
    ].backward()  # the routers of the task continue to train


def test_branch_freezing_without_branches_is_refused() -> None:
    module = make_module(SharedRouter(), BranchFreezing())
    with pytest.raises(ValueError, match="no linear has branches"):
        module.regularizers[0].before_stage(view(module))


# -- replay -----------------------------------------------------------------------------------


def learner_of(term: ReplayImportance, module: ContinualModule, steps: int) -> None:
    """Let the weights follow some batches in which two samples are replayed."""
    for _ in range(steps):
        batch = whole(module, "abba")  # the stage learns a
        _, step = module.compute_step(batch)
        term(step)
        term.after_step()


def held(term: ReplayImportance, samples: Sequence[Sample]) -> list[bool]:
    return [term._is_held(sample.id) for sample in samples]


def seed_that_holds_out_a_current_sample() -> int:
    for seed in range(1000):
        term = ReplayImportance(every=1, heldout=0.4, seed=seed)
        if held(term, make_samples(IMAGES)) == [True, False, False, False]:
            return seed
    raise AssertionError


def test_a_rank_without_replayed_samples_follows_the_others_and_asks_only_when_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two ranks only the first has a gradient; the second receives what that one sends."""
    seed = seed_that_holds_out_a_current_sample()
    term, idle = (ReplayImportance(every=3, heldout=0.4, seed=seed) for _ in range(2))
    module = make_module(SharedRouter(), term)
    for one in (term, idle):
        one.before_stage(view(module, index=2))
    _, step = module.compute_step(whole(module, "abba"))
    _, other = module.compute_step(whole(module, "aaaa"))
    sent: list[Any] = []
    monkeypatch.setattr(learned_replay, "is_distributed", lambda: True)

    def first_rank(value: Any, *_: Any) -> Any:
        sent.append(value)
        return value

    def second_rank(value: Any, *_: Any) -> Any:
        assert not torch.as_tensor(value).any()
        return sent.pop(0)

    for number in range(5):
        term(step)
        idle(other)
        assert idle._gradient is None
        for one, collective in ((term, first_rank), (idle, second_rank)):
            monkeypatch.setattr(learned_replay, "max_over_ranks", collective)
            monkeypatch.setattr(learned_replay, "sum_over_ranks", collective)
            one.after_step()
            if one is term:
                assert len(sent) == (2 if number % 3 == 0 else 0)
        assert not sent
    ours, theirs = term.tensors(), idle.tensors()
    assert ours["extra/second"].any()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_twenty_updates_weigh_samples_noticeably() -> None:
    learner = ReplayLearner(16, 64, 1, learning_rate=1e-2, seed=0)
    embeddings = 8 * torch.nn.functional.normalize(torch.randn(2, 64))
    signal, tasks = torch.tensor([1.0, -1.0]), torch.tensor([0, 0])
    for _ in range(20):
        learner.step(learner.gradient((signal * learner.weights(embeddings, tasks)).sum()))
    low, high = learner.weights(embeddings, tasks).tolist()
    assert high > 1.2 * low


def test_weights_of_replayed_samples_start_at_one() -> None:
    term = ReplayImportance(every=1, heldout=0.0)
    module = make_module(SharedRouter(), term)
    term.before_stage(view(module, index=2))
    _, step = module.compute_step(whole(module, "abba"))
    assert_close(term(step), torch.zeros(()), rtol=0, atol=1e-6)
    for gradient in gradients(term(step), parameters(module)).values():
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)


def test_held_out_samples_are_never_learned_from() -> None:
    term = ReplayImportance(every=0, heldout=0.4, seed=seed_that_holds_out_a_current_sample())
    module = make_module(SharedRouter(), term)
    term.before_stage(view(module, index=2))
    loss, step = module.compute_step(whole(module, "abba"))
    kept = step.targets.samples > 0  # all but the first, which is held out
    rest = cross_entropy(step.logits[kept], step.targets.tokens[kept], reduction="sum")
    counted = (step.labels[:, 1:] != -100).sum()
    assert_close(loss + term(step), rest / counted)


def test_learned_weights_resume_from_a_checkpoint_as_without_interruption() -> None:
    seed = seed_that_holds_out_a_current_sample()
    term, other = (ReplayImportance(every=1, heldout=0.4, seed=seed) for _ in range(2))
    module = make_module(SharedRouter(), term)
    term.before_stage(view(module, index=2))
    learner_of(term, module, 2)
    saved = {key: value.clone() for key, value in term.tensors().items()}
    assert saved["extra/second"].any()  # it has learned
    other.before_stage(view(module, index=2))
    other.load_tensors(saved)
    assert all(torch.equal(value, saved[key]) for key, value in other.tensors().items())
    for one in (term, other):
        learner_of(one, module, 1)
    assert other.tensors().keys() == term.tensors().keys()
    for key, value in term.tensors().items():
        assert torch.equal(value, other.tensors()[key]), key
    assert any(not torch.equal(value, saved[key]) for key, value in term.tensors().items())
