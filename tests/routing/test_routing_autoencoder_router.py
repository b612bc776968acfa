from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmole.routing import AutoencoderRouter, OracleRouter, RouteQuery

TASKS = ("red", "green", "blue")
WIDTH = 24


def cluster(task: str, count: int, seed: int = 0) -> Tensor:
    """Samples around a center of their own, with their own directions of variation."""
    basis = torch.Generator().manual_seed(sum(task.encode()))
    center = torch.randn(WIDTH, generator=basis) * 3
    directions = torch.randn(3, WIDTH, generator=basis)
    noise = torch.Generator().manual_seed(seed)
    spread = torch.randn(count, 3, generator=noise) @ directions
    return center + 0.3 * spread + 0.02 * torch.randn(count, WIDTH, generator=noise)


def fitted(**kwargs: object) -> AutoencoderRouter:
    router = AutoencoderRouter(**{"components": 4, **kwargs})  # type: ignore[arg-type]
    for task in TASKS:
        router.fit(task, cluster(task, 100))
    return router


def mixed_batch() -> tuple[Tensor, list[str]]:
    rows = torch.cat([cluster(task, 20, seed=1) for task in TASKS])
    return rows, [task for task in TASKS for _ in range(20)]


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"standardize": False},
        {"reconstructor": "mlp_linear", "components": 16, "max_epochs": 300, "patience": 50},
    ],
)
def test_samples_of_distant_clusters_find_their_expert(kwargs: dict[str, object]) -> None:
    rows, names = mixed_batch()
    routing = fitted(threshold_scale=2.0, **kwargs).route(
        RouteQuery(rows, names, "test", None, TASKS)
    )
    assert [order[0] for order in routing.order] == names
    assert routing.losses is not None
    assert routing.losses.shape == (60, 3)
    assert torch.equal(routing.gates.sum(1), torch.tensor([float(len(o)) for o in routing.order]))


def test_a_far_point_is_left_to_the_base_model() -> None:
    rows = cluster("unseen", 10)
    routing = fitted().route(RouteQuery(rows, ["red"] * 10, "test", None, TASKS))
    assert routing.gate_sets() == ["base"] * 10
    assert not routing.gates.any()


def test_scale_0_gives_the_base_model_and_infinity_the_two_nearest() -> None:
    router = fitted(threshold_scale=0.0)
    rows, names = mixed_batch()
    assert router.route(RouteQuery(rows, names, "test", None, TASKS)).order == [()] * 60
    router.threshold_scale = math.inf
    routing = router.route(RouteQuery(rows, names, "test", None, TASKS))
    assert routing.losses is not None
    nearest = routing.losses.argsort(dim=1)[:, :2].tolist()
    assert routing.order == [tuple(TASKS[i] for i in pair) for pair in nearest]
    with pytest.raises(ValueError, match="threshold_scale"):
        router.threshold_scale = -1.0


def test_a_samples_routing_does_not_depend_on_its_batch_mates() -> None:
    router = fitted()
    rows, names = mixed_batch()
    together = router.route(RouteQuery(rows, names, "test", None, TASKS))
    for i in range(0, 60, 7):
        alone = router.route(RouteQuery(rows[i : i + 1], names[i : i + 1], "test", None, TASKS))
        assert torch.equal(alone.gates[0], together.gates[i])
        assert alone.losses is not None
        assert together.losses is not None
        assert torch.equal(alone.losses[0], together.losses[i])


def test_columns_follow_the_experts_that_are_named() -> None:
    rows, names = mixed_batch()
    routing = fitted(threshold_scale=2.0).route(
        RouteQuery(rows[:1], names[:1], "test", None, ("new", "blue", "red"))
    )
    assert routing.order[0][0] == "red"
    assert routing.gates[0, 2] == 1
    assert routing.losses is not None
    assert routing.losses[0, 0] == math.inf


def test_in_training_the_current_expert_is_first_and_one_partner_may_help() -> None:
    router = AutoencoderRouter(components=4, threshold_scale=2.0)
    router.fit("red", cluster("red", 100))
    router.fit("green", cluster("green", 100))
    rows = torch.cat([cluster("green", 2, seed=3), cluster("blue", 2, seed=3)])
    routing = router.route(RouteQuery(rows, ["blue"] * 4, "train", "blue", TASKS))
    assert routing.order == [("blue", "green")] * 2 + [("blue",)] * 2
    assert torch.equal(routing.gates[:, 2], torch.ones(4))
    assert routing.losses is not None
    assert torch.isinf(routing.losses[:, 2]).all()


def test_a_task_is_never_its_own_partner() -> None:
    routing = fitted(threshold_scale=math.inf).route(
        RouteQuery(cluster("red", 3), ["red"] * 3, "train", "red", TASKS)
    )
    assert all(order[0] == "red" and order[1] in ("green", "blue") for order in routing.order)


def test_embeddings_are_needed_only_where_a_past_autoencoder_is_used() -> None:
    router = AutoencoderRouter(components=4)
    assert not router.needs(RouteQuery(None, (), "train", "red", ["red"]))
    assert router.route(RouteQuery(None, ["red"], "train", "red", ["red"])).order == [("red",)]
    router.fit("red", cluster("red", 50))
    assert router.needs(RouteQuery(None, (), "train", "green", ["red", "green"]))
    assert router.needs(RouteQuery(None, (), "test", None, ["red"]))
    assert not fitted(partner=False).needs(RouteQuery(None, (), "train", "green", TASKS))
    with pytest.raises(ValueError, match="expected 1 embeddings, got None"):
        router.route(RouteQuery(None, ["red"], "test", None, ["red"]))


def test_the_batch_vote_gives_all_samples_one_gate_set() -> None:
    rows = torch.cat([cluster("red", 7, seed=5), cluster("blue", 3, seed=5)])
    router = fitted(vote="batch", threshold_scale=2.0)
    assert (
        router.route(RouteQuery(rows, ["red"] * 10, "test", None, TASKS)).order
        == [("red", "blue")] * 10
    )
    order = router.route(RouteQuery(rows, ["red"] * 10, "train", "green", TASKS)).order
    assert order == [("green", "red")] * 10


def test_the_threshold_is_the_scaled_quantile_of_the_heldout_losses() -> None:
    router = AutoencoderRouter(components=4, quantile=0.5, heldout_fraction=0.25)
    fit = router.fit("red", cluster("red", 40))
    assert fit.losses_heldout.shape == (10,)
    assert fit.threshold == pytest.approx(fit.quantiles["Q50"])
    router.threshold_scale = 3.0
    assert router.threshold("red") == pytest.approx(3 * fit.threshold)


def test_identical_embeddings_still_accept_themselves() -> None:
    router = AutoencoderRouter()
    rows = torch.ones(10, WIDTH)
    router.fit("flat", rows)
    assert router.route(RouteQuery(rows[:1], ["flat"], "test", None, ["flat"])).order == [("flat",)]


def test_statistics_are_those_of_the_first_task_for_ever() -> None:
    router = AutoencoderRouter(components=4)
    router.fit("red", cluster("red", 50))
    rows = cluster("red", 10, seed=2)
    before = router.losses(rows, ["red"])
    router.fit("blue", 100 * cluster("blue", 50))
    assert torch.equal(router.losses(rows, ["red"]), before)


def test_a_fit_depends_on_seed_and_task_alone() -> None:
    one, two = AutoencoderRouter(components=4), AutoencoderRouter(components=4)
    rows = cluster("red", 50)
    torch.manual_seed(1)
    first = one.fit("red", rows)
    torch.manual_seed(2)
    assert torch.equal(first.losses_heldout, two.fit("red", rows).losses_heldout)
    other = AutoencoderRouter(components=4, seed=7).fit("red", rows)
    assert not torch.equal(first.losses_heldout, other.losses_heldout)


@pytest.mark.parametrize("reconstructor", ["pca", "mlp_linear", "mlp_sigmoid"])
def test_fit_and_routing_are_the_same_to_the_bit_under_autocast(reconstructor: str) -> None:
    options = {"reconstructor": reconstructor, "standardize": False, "max_epochs": 5}
    data = {task: cluster(task, 50) for task in TASKS}
    rows, names = mixed_batch()
    plain, mixed = (AutoencoderRouter(components=4, **options) for _ in range(2))  # type: ignore[arg-type]
    for task in TASKS:
        plain.fit(task, data[task])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for task in TASKS:
            mixed.fit(task, data[task])
        found = mixed.route(RouteQuery(rows, names, "test", None, TASKS))
    expected = plain.route(RouteQuery(rows, names, "test", None, TASKS))
    assert found.order == expected.order
    assert found.losses is not None
    assert expected.losses is not None
    assert found.losses.dtype == torch.float32
    assert torch.equal(found.losses, expected.losses)
    for task in TASKS:
        assert mixed.threshold(task) == plain.threshold(task)


@pytest.mark.parametrize("standardize", [True, False])
def test_a_saved_router_routes_equally_and_thresholds_stay_open(
    tmp_path: Path, standardize: bool
) -> None:
    router = fitted(standardize=standardize)
    router.save(tmp_path / "router")
    router.save(tmp_path / "router")
    files = sorted(path.name for path in (tmp_path / "router").iterdir())
    assert files == sorted(["router.json", *(f"{task}.safetensors" for task in TASKS)])
    copy = AutoencoderRouter(components=4, standardize=standardize)
    copy.load(tmp_path / "router")
    rows, names = mixed_batch()
    one, two = (r.route(RouteQuery(rows, names, "test", None, TASKS)) for r in (router, copy))
    assert one.order == two.order
    assert one.losses is not None
    assert two.losses is not None
    assert torch.equal(one.losses, two.losses)
    assert copy.fitted == TASKS
    index = json.loads((tmp_path / "router" / "router.json").read_text())
    assert index["experts"][0]["threshold"] == router.threshold("red")


def test_a_router_that_an_earlier_version_saved_is_loaded(tmp_path: Path) -> None:
    router = fitted()
    router.save(tmp_path)
    path = tmp_path / "router.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "format": 1, "tasks": index.pop("experts")}))
    copy = AutoencoderRouter(components=4)
    copy.load(tmp_path)
    assert copy.fitted == router.fitted
    assert copy.threshold("red") == router.threshold("red")


def test_state_survives_a_round_trip_and_can_be_continued() -> None:
    state = fitted().state_dict()
    copy = AutoencoderRouter(components=4)
    copy.load_state_dict(state)
    fresh = fitted()
    fresh.fit("late", cluster("late", 60))
    copy.fit("late", cluster("late", 60))
    rows = cluster("late", 5)
    tasks = (*TASKS, "late")
    assert torch.equal(copy.losses(rows, tasks), fresh.losses(rows, tasks))


def test_a_router_of_another_kind_is_refused(tmp_path: Path) -> None:
    fitted().save(tmp_path)
    with pytest.raises(ValueError, match=r"saved by AutoencoderRouter, not by OracleRouter"):
        OracleRouter().load(tmp_path)
    with pytest.raises(ValueError, match="router state is of"):
        AutoencoderRouter(standardize=False).load(tmp_path)
    with pytest.raises(ValueError, match="cannot read router"):
        AutoencoderRouter().load(tmp_path / "nowhere")
    (tmp_path / "green.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"green\.safetensors"):
        AutoencoderRouter().load(tmp_path)
    with pytest.raises(ValueError, match="has no state"):
        OracleRouter().load_state_dict({"kind": 1})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reconstructor": "svd"}, "reconstructor"),
        ({"reconstructor": "mlp_sigmoid"}, "standardize: false"),
        ({"vote": "task"}, "vote"),
        ({"quantile": 1.5}, "quantile"),
        ({"heldout_fraction": -0.1}, "heldout_fraction"),
        ({"vote_support": 2.0}, "vote_support"),
        ({"max_experts": 0}, "max_experts"),
        ({"second_ratio": 0.5}, "second_ratio"),
        ({"components": 0}, "components"),
    ],
)
def test_bad_arguments_are_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderRouter(**kwargs)  # type: ignore[arg-type]


def test_bad_embeddings_are_refused() -> None:
    with pytest.raises(ValueError, match="expert red: the router needs"):
        AutoencoderRouter().fit("red", torch.zeros(1, 4))
    with pytest.raises(ValueError, match="expert red: an embedding is not finite"):
        AutoencoderRouter().fit("red", torch.full((3, 4), torch.nan))


def test_the_release_configuration_fits_and_routes() -> None:
    router = fitted(reconstructor="mlp_sigmoid", standardize=False, vote="batch", max_epochs=20)
    rows, names = mixed_batch()
    assert len(router.route(RouteQuery(rows, names, "test", None, TASKS)).order) == 60


@pytest.mark.parametrize("standardize", [True, False])
def test_rounding_does_not_decide_where_all_samples_of_a_task_are_alike(standardize: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    image, other = torch.randn(2, 1, 64, generator=generator)

    def rounded(vector: torch.Tensor, samples: int) -> torch.Tensor:
        noise = torch.randn(samples, 64, generator=generator)
        return vector * (1 + 1e-6 * noise)

    router = AutoencoderRouter(standardize=standardize)
    fit = router.fit("alike", image.expand(50, 64))  # the same numbers in each row
    assert fit is not None
    assert fit.rounding
    samples = torch.cat([rounded(image, 20), rounded(other, 20)])
    query = RouteQuery(samples, ["?"] * 40, "test", None, ["alike"])
    assert router.route(query).order == [("alike",)] * 20 + [()] * 20


@pytest.mark.parametrize("vote", ["sample", "batch"])
def test_the_routing_at_several_scales_is_that_of_a_router_set_to_each(vote: str) -> None:
    rows, names = mixed_batch()
    query = RouteQuery(rows, names, "test", None, TASKS)
    router, scales = fitted(vote=vote, ranking="likelihood"), (0.3, 1.0, 3.0)
    found = router.route_at(query, scales)
    assert router.threshold_scale == 1.0
    for scale, routing in zip(scales, found, strict=True):
        router.threshold_scale = scale
        assert routing.order == router.route(query).order
    assert found[0].order != found[2].order


def test_the_loss_is_the_mean_squared_error_of_the_reconstruction() -> None:
    rows, _ = mixed_batch()
    router = fitted()
    inputs, outputs = router.reconstruct(rows, "green")
    assert inputs.shape == outputs.shape == rows.shape
    losses = router.losses(rows, ["green"])[:, 0]
    assert torch.allclose((inputs - outputs).square().mean(dim=1), losses, rtol=1e-4)


def test_a_router_without_thresholds_has_no_scales() -> None:
    query = RouteQuery(None, ["red"], "test", None, TASKS)
    with pytest.raises(ValueError, match="a OracleRouter has no thresholds to scale"):
        OracleRouter().route_at(query, (1.0,))
