from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmole.cli.main import main
from dmole.report import compare

MakeRun = Callable[..., Path]
MATRIX = [[0, 0], [90, 5], [88, 70]]


def digests(
    base: str = "b", train: str = "1", test: str = "2", parts: dict[str, Any] | None = None
) -> dict[str, Any]:
    split = {"train": train * 64, "test": test * 64}
    content = {"base": base * 64, "data": {"color": split, "count": split}}
    if parts is not None:
        image = {"sha256": str(parts), "values": parts}
        rounding = {"sha256": str(parts), "values": {"torch": str(parts)}}
        content["base_parts"] = {"image processor": image, "numerics": rounding}
    return {"fingerprints": content}


def tasks(**settings: Any) -> dict[str, Any]:
    """Return a config whose second task has some settings."""
    first = {"name": "color", "train": "a.json", "metric": "cider", "epochs": 1}
    return {"data": {"tasks": [first, first | {"name": "count"} | settings]}}


def updated_digests(train: str) -> dict[str, Any]:
    content = digests()
    content["fingerprints"]["data"]["count-v2"] = {"train": train * 64}
    return content


def tasks_with_update(**settings: Any) -> dict[str, Any]:
    """Return a config with an update, which has some settings."""
    update = {"name": "count-v2", "train": "c.json", "update": True, "epochs": 1}
    return {"data": {"tasks": [*tasks()["data"]["tasks"], update | settings]}}


def backbone(name: str) -> dict[str, Any]:
    return {"model": {"backbone": {"class_path": "x.B", "init_args": {"name_or_path": name}}}}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "test samples": (
        "data",
        {"metrics": digests()},
        {"metrics": digests(test="3")},
        "differ in the test samples of task 'color': sha256 222222222222 and 333333333333",
    ),
    "files, where a run has no digests": (
        "data",
        {"metrics": digests(), "config": tasks()},
        {"config": tasks(train="b.json")},
        "differ in the train of task 'count': a.json and b.json",
    ),
    "samples of an update without a column": (
        "data",
        {"metrics": updated_digests("4"), "config": tasks_with_update()},
        {"metrics": updated_digests("5"), "config": tasks_with_update()},
        "differ in the train samples of task 'count-v2': sha256 444444444444 and 555555555555",
    ),
    "epochs of an update without a column": (
        "epochs",
        {"config": tasks_with_update()},
        {"config": tasks_with_update(epochs=3)},
        "differ in the epochs of task 'count-v2': 1 and 3",
    ),
    "wording": (
        "data",
        {"metrics": digests(), "config": tasks(prompt_suffix="")},
        {"metrics": digests(), "config": tasks(prompt_suffix="In a word.")},
        "differ in the prompt_suffix of task 'count':  and In a word.",
    ),
    "base model": (
        "base",
        {"metrics": digests()},
        {"metrics": digests(base="c")},
        "differ in the base model: sha256 bbbbbbbbbbbb and cccccccccccc",
    ),
    "part of the base model": (
        "base",
        {"metrics": digests(parts={"size": 336, "resample": 3})},
        {"metrics": digests(parts={"size": 448, "resample": 3})},
        "differ in the base model: another image processor: size 336 -> 448",
    ),
    "base model by its settings": (
        "base",
        {"config": backbone("tiny")},
        {"config": backbone("llava")},
        "differ in model.backbone.init_args.name_or_path: tiny and llava",
    ),
    "profile": (
        "profile",
        {"config": tasks(metric="coin_gqa")},
        {"config": tasks(metric="coin_gqa:corrected")},
        "differ in the metric of task 'count': coin_gqa and coin_gqa:corrected",
    ),
    "tokenizer": (
        "profile",
        {"metrics": {"scoring": {"color": {"tokenizer": "ptb", "CIDEr": 1.0}}}},
        {"metrics": {"scoring": {"color": {"tokenizer": "python", "CIDEr": 2.0}}}},
        "differ in the tokenizer of the metric of task 'color': ptb and python",
    ),
    "epochs": (
        "epochs",
        {"config": tasks()},
        {"config": tasks(epochs=3)},
        "differ in the epochs of task 'count': 1 and 3",
    ),
    "scope": (
        "definitions",
        {"scope": "all"},
        {"scope": "seen"},
        "differ in the definition of AVG: mean_i mean_t R[t,i]; all tasks, all stages and "
        "mean_i mean_t R[t,i]; seen tasks, stages t >= s_i",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_incomparable_runs_are_refused(
    case: str, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, left, right, message = CASES[case]
    folders = [
        make_run(tmp_path / "a", "a", MATRIX, **left),
        make_run(tmp_path / "b", "b", MATRIX, **right),
    ]
    assert main(["compare", *map(str, folders), "--output", str(tmp_path / "out")]) == 1
    said = f"{folders[0]} and {folders[1]} {message}"
    assert capsys.readouterr().err == (
        f"dmole: {' '.join(said.split())}; --allow {name} compares them anyway\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in ("definitions", "base model") else pytest.mark.slow)
        for case in CASES
    ],
)
def test_a_difference_that_is_allowed_is_printed(
    case: str, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, left, right, _ = CASES[case]
    folders = [
        make_run(tmp_path / "a", "a", MATRIX, **left),
        make_run(tmp_path / "b", "b", MATRIX, **right),
    ]
    words = ["compare", *map(str, folders), "--output", str(tmp_path / "out")]
    assert main([*words, "--allow", f"unfinished,{name}"]) == 0
    printed = capsys.readouterr().out
    assert "Allowed difference: " in printed
    if name == "definitions":
        assert "- AVG: mean_i mean_t R[t,i]; all tasks, all stages; divisor 2" in printed
        assert "- AVG (b): mean_i mean_t R[t,i]; seen tasks, stages t >= s_i; divisor 2" in printed


def test_a_setting_that_one_config_lacks_is_no_difference(
    make_run: MakeRun, tmp_path: Path
) -> None:
    with_digests = make_run(tmp_path / "a", "a", MATRIX, metrics=digests(), config=tasks())
    bare = make_run(tmp_path / "b", "b", MATRIX)
    named = make_run(tmp_path / "c", "c", MATRIX, config=tasks(repeat=2, metric="cider:published"))
    assert "Allowed difference" not in compare([with_digests, bare, named], tmp_path / "out")


def test_equal_samples_may_have_other_paths(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, name, MATRIX, metrics=digests(), config=tasks(train=file))
        for name, file in (("a", "/mine/x.json"), ("b", "/yours/x.json"))
    ]
    compare(runs, tmp_path / "out")


def test_a_run_that_trains_nothing_has_no_epochs(make_run: MakeRun, tmp_path: Path) -> None:
    trained = make_run(tmp_path / "a", "a", MATRIX, config=tasks(epochs=3))
    zero_shot = make_run(tmp_path / "b", "b", [[10, 20]], config=tasks(), scope="seen")
    compare([trained, zero_shot], tmp_path / "out")


def test_an_unfinished_run_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    half = make_run(tmp_path / "a", "a", MATRIX[:2])
    with pytest.raises(ValueError, match=r"a has learned 1 of 2 tasks: did it finish\?.*unfini"):
        compare([half], tmp_path / "out")
    stream = {"name": "b", "stream": {"class_path": "dmole.streams.SequentialStream"}}
    begun = make_run(tmp_path / "b", "b", MATRIX[:1], config={"trainer": stream})
    with pytest.raises(ValueError, match="b has learned 0 of 2 tasks"):
        compare([begun], tmp_path / "out")
    assert "a has learned 1 of 2 tasks" in compare([half, begun], tmp_path / "o", ["unfinished"])


def test_seeds_with_other_numbers_of_stages_are_not_averaged(
    make_run: MakeRun, tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / str(n), "a", MATRIX[:n]) for n in (3, 2)]
    with pytest.raises(ValueError, match="both called 'a' but have 1 and 2 stages"):
        compare(runs, tmp_path / "out", ["unfinished"])


def test_a_seed_of_an_earlier_version_is_a_repeat(make_run: MakeRun, tmp_path: Path) -> None:
    def run(seed: int, stream: str, **settings: Any) -> Path:
        trainer = {"name": "a", "stream": {"class_path": stream}}
        config = tasks(prompt="x", **settings) | {"trainer": trainer, "seed_everything": seed}
        return make_run(tmp_path / str(seed), "a", MATRIX, seed, config=config)

    old = run(0, "dmole.data.stream.SequentialStream")
    new = run(1, "dmole.streams.SequentialStream", columns={}, limit=None)
    assert "| a | 2 |" in compare([old, new], tmp_path / "out")
    limited = run(2, "dmole.streams.SequentialStream", columns={}, limit=9)
    with pytest.raises(ValueError, match=r"both called 'a' but differ in data\.tasks\.limit"):
        compare([old, limited], tmp_path / "out")
    joint = run(3, "dmole.streams.JointStream")
    with pytest.raises(ValueError, match=r"both called 'a' but differ in trainer\.stream\.class_p"):
        compare([old, joint], tmp_path / "out")


def test_an_unknown_difference_is_named(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(runs[0]), "--output", str(tmp_path), "--allow", "colour"]) == 1
    assert capsys.readouterr().err == (
        "dmole: unknown difference 'colour' to allow; choose from unfinished, data, eval_limit, "
        "evaluate, base, profile, epochs, definitions\n"
    )
