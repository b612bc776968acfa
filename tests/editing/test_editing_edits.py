"""Experts are taken out of runs, renamed, disabled and brought in; the others stay as they are."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edited_runs import Loaded, content, edit, embeddings, forge, make_run, same_tensors
from strangers import refused

from dmole.cli.main import main
from dmole.run.model_file import read_run_settings
from dmole.run.run_folder import RunLock
from dmole.storage.digests import read_digests

NAMES = ("paint", "count", "read")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "likelihood": {"ranking": "likelihood"},
    "keys": {"router": "KeyRouter"},
    "oracle": {"router": "OracleRouter"},
    "sum": {"router": "AllExpertsRouter"},
    "other": {"names": ("read", "caption")},
    "same": {"names": ("paint", "caption")},
    "other keys": {"names": ("read", "caption"), "router": "KeyRouter"},
}
ROWS = torch.cat([embeddings(name)[:8] for name in NAMES])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a run folder of a kind; no test may change it."""
    root, made = tmp_path_factory.mktemp("runs"), dict[str, Path]()

    def of(kind: str = "plain") -> Path:
        if kind not in made:
            made[kind] = make_run(root / kind.replace(" ", "_") / "version_0", **KINDS[kind])
        return made[kind]

    return of


@pytest.mark.parametrize("taken", ["paint", "read"])
@pytest.mark.parametrize("kind", ["plain", "likelihood", "keys"])
def test_a_run_without_an_expert_has_the_others_bit_for_bit(
    kind: str, taken: str, runs: Callable[..., Path], tmp_path: Path
) -> None:
    left = [name for name in NAMES if name != taken]
    edited = edit(runs(kind), "remove", taken, output=tmp_path / "edited")
    before, now = Loaded(runs(kind)), Loaded(edited)
    assert list(now.tensors) == left
    for name in left:
        assert same_tensors(now.tensors[name], before.tensors[name])
    expected, found = (each.route(ROWS, left) for each in (before, now))
    assert found.order == expected.order
    assert found.losses is None or torch.equal(found.losses, expected.losses)
    thresholds = [
        {e["name"]: e.get("threshold") for e in json.loads(p.read_text())["experts"]}
        for p in (runs(kind) / "router/router.json", edited / "router/router.json")
    ]
    assert thresholds[1] == {name: thresholds[0][name] for name in left}


def test_the_task_of_an_expert_taken_out_is_only_scored_and_the_record_says_so(
    runs: Callable[..., Path], tmp_path: Path
) -> None:
    edited = edit(runs(), "remove", "paint", output=tmp_path / "one")
    tasks = read_run_settings(edited).data["tasks"]
    assert [(t["name"], bool(t.get("eval_only"))) for t in tasks] == [
        ("count", False),
        ("read", False),
        ("paint", True),
    ]
    digests = read_digests(edited)
    assert digests is not None
    assert [(s["index"], s["expert"]) for s in digests.stages] == [(1, "count"), (2, "read")]
    twice = edit(edited, "remove", "read", output=tmp_path / "two")
    metrics = json.loads((twice / "metrics.json").read_text())
    assert [record["experts"] for record in metrics["edits"]] == [["paint"], ["read"]]
    assert metrics["parent"]["run"] == f"{tmp_path.name}/one"
    assert metrics["parent"]["stage"] == 2
    assert "train" not in metrics["fingerprints"]["data"]["read"]


def test_the_next_version_is_made_unless_an_output_is_named(
    runs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "named" / "version_3"
    shutil.copytree(runs(), run)
    assert main(["experts", str(run), "remove", "paint", "--no_evaluation"]) == 0
    assert sorted(path.name for path in run.parent.iterdir()) == ["version_3", "version_4"]
    other = tmp_path / "theirs"
    shutil.copytree(runs(), other)
    line = refused(["experts", str(other), "remove", "paint"], capsys)
    assert line.endswith("theirs is not called version_N: --output names the folder of the new run")


def test_a_renamed_expert_answers_as_before_under_its_new_name(
    runs: Callable[..., Path], tmp_path: Path
) -> None:
    edited = edit(runs(), "rename", "paint", "color", output=tmp_path / "edited")
    before, now = Loaded(runs()), Loaded(edited)
    assert list(now.tensors) == ["color", "count", "read"]
    assert same_tensors(now.tensors["color"], before.tensors["paint"])
    expected, found = before.route(ROWS, NAMES), now.route(ROWS, ("color", "count", "read"))
    assert torch.equal(found.gates, expected.gates)
    assert torch.equal(found.losses, expected.losses)
    with (edited / "routing.csv").open(newline="") as file:
        gate_sets = [row["gate_set"] for row in csv.DictReader(file)]
    assert gate_sets == ["color", "base", "count", "count+color", "read", "read+color"]
    starts = json.loads((edited / "metrics.json").read_text())["experts"]
    assert starts == {
        "color": {"starts_from": None},
        "count": {"starts_from": "color"},
        "read": {"starts_from": "color"},
    }
    old = {name.replace("paint", "color") for name in content(runs())}
    assert set(content(edited)) == old


def test_a_disabled_expert_is_left_out_until_it_is_enabled(
    runs: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs(), run)
    before, whole = content(run), Loaded(run)
    assert main(["experts", str(run), "disable", "paint"]) == 0
    without = Loaded(run)
    assert list(without.tensors) == ["count", "read"]
    left = ("count", "read")
    assert torch.equal(without.route(ROWS, left).losses, whole.route(ROWS, left).losses)
    assert main(["experts", str(run), "enable", "paint"]) == 0
    assert {k: v for k, v in content(run).items() if not k.startswith("checkpoints")} == before


@pytest.mark.parametrize("kind", ["plain", "keys"])
def test_an_expert_comes_back_from_the_run_it_was_taken_out_of(
    kind: str, runs: Callable[..., Path], tmp_path: Path
) -> None:
    run = runs(kind)
    without = edit(run, "remove", "paint", output=tmp_path / "without")
    back = edit(without, "import", run, "paint", output=tmp_path / "back")
    before, now = Loaded(run), Loaded(back)
    assert list(now.tensors) == ["count", "read", "paint"]
    assert same_tensors(now.tensors["paint"], before.tensors["paint"])
    expected, found = before.route(ROWS, NAMES), now.route(ROWS, NAMES)
    assert found.order == expected.order
    assert found.losses is None or torch.equal(found.losses, expected.losses)
    tasks = read_run_settings(back).data["tasks"]
    assert [(t["name"], bool(t.get("eval_only"))) for t in tasks] == [
        (name, False) for name in ("count", "read", "paint")
    ]


@pytest.mark.parametrize(("kind", "other"), [("plain", "same"), ("keys", "other keys")])
def test_an_expert_of_a_run_with_comparable_losses_is_found_by_its_samples(
    kind: str, other: str, runs: Callable[..., Path], tmp_path: Path
) -> None:
    edited = edit(
        runs(kind), "import", runs(other), "caption", "--as", "new", output=tmp_path / "e"
    )
    now = Loaded(edited)
    rows = torch.cat([embeddings("caption"), embeddings("paint")])
    order = now.route(rows, [*NAMES, "new"]).order
    assert sum(names[:1] == ("new",) for names in order[:40]) > 30
    assert all("new" not in names for names in order[40:])
    assert [task["name"] for task in read_run_settings(edited).data["tasks"]] == [*NAMES, "new"]


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("plain", ["remove", "gone"], "has no expert 'gone'; it has paint, count, read"),
        ("plain", ["remove", *NAMES], "has no expert of its own left"),
        ("plain", ["rename", "paint", "count"], "has an expert 'count' already"),
        ("plain", ["rename", "paint", "Count"], "has an expert 'count' already"),
        ("plain", ["rename", "paint", "../x"], "expert name '../x' must be letters"),
        ("plain", ["rename", "paint", "base"], "'base' stands for the base model alone"),
        ("plain", ["import", "OTHER", "caption", "--as", "base"], "'base' stands for the base"),
        ("oracle", ["rename", "paint", "x"], "'paint' must keep its name"),
        ("sum", ["remove", "paint"], "were trained on top of one another"),
        ("sum", ["import", "OTHER", "caption"], "were trained on top of one another"),
        ("sum", ["disable", "paint"], "answer only together (AllExpertsRouter)"),
        ("plain", ["disable", *NAMES], "needs an expert: it would have none"),
        ("plain", ["enable", "paint"], "is enabled already"),
        ("plain", ["import", "OTHER", "caption"], "needs --samples FILE, to which its router"),
        ("plain", ["import", "OTHER", "gone"], "has no expert 'gone'; it has read, caption"),
        ("plain", ["import", "OTHER", "read"], "has an expert 'read' already"),
        ("plain", ["import", "KEYS", "paint", "--as", "x"], "its router is KeyRouter, not Auto"),
        ("plain", ["import", "OTHER"], "import needs FROM_RUN NAME, or --from_adapter"),
        ("plain", ["import", "--from_adapter", "x", "--as", "y"], "needs --samples FILE"),
    ],
)
def test_an_edit_that_cannot_be_made_is_one_line_and_leaves_no_folder(
    kind: str,
    words: list[str],
    message: str,
    runs: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "version_0"
    shutil.copytree(runs(kind), run)
    named = {"OTHER": str(runs("other")), "KEYS": str(runs("keys"))}
    line = refused(["experts", str(run), *(named.get(word, word) for word in words)], capsys)
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]
    assert {k: v for k, v in content(run).items() if "run.lock" not in k} == content(runs(kind))


def test_an_expert_of_another_base_model_is_refused_whatever_is_accepted(
    runs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs("same"), other)
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["fingerprints"]["base"] = "f" * 64
    forge(other, "metrics.json", metrics)
    for flags in ([], ["--trainer.accept_changes", "true"]):
        words = ["experts", str(runs()), "import", str(other), "caption", *flags]
        assert "with a base model of other weights" in refused(words, capsys)
    metrics["fingerprints"]["base"] = json.loads((runs() / "metrics.json").read_text())[
        "fingerprints"
    ]["base"]
    metrics["fingerprints"]["base_parts"]["tokenizer"]["sha256"] = "f" * 64
    forge(other, "metrics.json", metrics)
    words = ["experts", str(runs()), "import", str(other), "caption"]
    assert "another tokenizer" in refused(words, capsys)


def test_a_changed_file_of_the_run_is_named(
    runs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "version_0"
    shutil.copytree(runs(), run)
    with (run / "router/router.json").open("a") as file:
        file.write(" ")
    line = refused(["experts", str(run), "remove", "paint"], capsys)
    assert "router.json is not the file that this run has written" in line


def test_an_evaluation_that_fails_leaves_the_run_alone_and_no_folder(
    runs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "version_0"
    shutil.copytree(runs(), run)
    model = json.loads((run / "model.json").read_text())
    model["data"]["tasks"][0]["test"] = "gone.json"
    forge(run, "model.json", model)
    before = content(run)
    assert "gone.json" in refused(["experts", str(run), "remove", "paint"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]
    assert content(run) == before


def test_an_oracle_finds_an_imported_expert_by_the_name_of_its_task(
    runs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = edit(runs(), "rename", "read", "digits", output=tmp_path / "renamed")
    without = edit(runs("oracle"), "remove", "read", output=tmp_path / "without")
    output = ["--output", str(tmp_path / "edited")]
    line = refused(["experts", str(without), "import", str(renamed), "digits", *output], capsys)
    assert line.endswith("--as read, since the oracle finds experts by the names of their tasks")
    words = ("import", renamed, "digits", "--as", "read")
    edited = edit(without, *words, output=tmp_path / "edited")
    assert list(Loaded(edited).tensors) == ["paint", "count", "read"]


def test_two_edits_into_one_folder_end_with_one_line(
    runs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["experts", str(runs()), "remove", "paint", "--no_evaluation", "--output"]
    lock = RunLock(tmp_path / ".out.unfinished")
    lock.acquire()
    try:
        assert "is being written by process" in refused([*words, str(tmp_path / "out")], capsys)
    finally:
        lock.release()
    assert main([*words, str(tmp_path / "out")]) == 0
    assert "exists; name another output" in refused([*words, str(tmp_path / "out")], capsys)


def test_an_edited_run_is_not_resumed(
    runs: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dmole.run.opening import decide_opening

    edited = edit(runs(), "remove", "paint", output=tmp_path / "edited")
    with pytest.raises(ValueError, match="was made by dmole experts and has no checkpoint"):
        decide_opening(tmp_path, "x", None, str(edited))
