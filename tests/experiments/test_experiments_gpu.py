"""The script for a GPU, run on the CPU with tiny models, so that it starts where it is needed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import dmole
from experiments.gpu import (
    attention,
    coverage,
    determinism,
    large,
    precision,
    quickstart,
    serve,
    syncs,
)
from experiments.gpu.common import GIB, NotRunError, Row, Setting
from experiments.gpu.llava import coin_allocator, coin_setup, planned, reckon
from experiments.gpu.report import Report
from experiments.gpu.runs import compare, unequal
from experiments.gpu_first_half_hour import SECTIONS, main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    yield Setting("cpu", tmp_path, repeats=1, base="tiny")
    torch.use_deterministic_algorithms(mode=False)  # Lightning switches it on for the process


def values(rows: Iterator[Row]) -> dict[str, object]:
    return {what: value for what, value, _ in rows}


def test_the_page_names_every_section() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Measured")[0]
    assert [s.name for s in SECTIONS if f"`{s.name}`" not in table] == []


def test_the_memory_of_the_7b_model_is_reckoned_as_for_coin(tmp_path: Path) -> None:
    setting = Setting("cpu", tmp_path)
    size = coin_setup().batch_size
    assert (size, coin_allocator(setting).proxy_passes) == (7, 4)
    found = reckon(setting, size)
    # 7 x 640 tokens in 32 blocks of width 4096, and a quarter of 25.3 GiB of gradients
    assert found["proxy pass"].total / GIB == pytest.approx(21.9, abs=0.1)
    note = planned(found["training step"], "base model", "expert in training")
    kept = reckon(setting, size, recompute=False)
    assert note != planned(kept["training step"], "base model", "expert in training")


@pytest.mark.slow
def test_a_large_model_is_scored_trained_and_asked(setting: Setting) -> None:
    scored = {what: note for what, _, note in large.proxy(setting)}
    assert scored["proxy pass, batch 7, s"].startswith("recomputed activations, 4 passes")
    assert scored["proxy pass, batch 7, GiB in all"] == "dmole plan: 0.0"
    trained = values(large.training(setting, size=2))
    # 4 of every linear of half of the blocks against 3 of every linear of all: 8320 parameters
    assert trained["parameters of an expert"] == 8320
    assert trained["rank of PEFT's LoRA on all blocks"] == 3
    assert {f"dmole / PEFT, {kind} activations" for kind in ("recomputed", "kept")} <= set(trained)
    asked = values(large.generation(setting, size=4, experts=2))
    assert {"one expert / bare", "2 experts in the batch / bare"} <= set(asked)
    assert float(str(asked["embedding of a sample, ms"])) > 0
    assert {"eager: training step, ms", "sdpa: training step, ms"} <= set(
        values(attention.attention(setting))
    )


def test_syncs_are_counted_by_the_line_of_the_project_that_causes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("synchronize", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    source = f"import warnings\n\ndef wait():\n    warnings.warn({syncs.MESSAGE!r})\n"
    scope: dict[str, Callable[[], None]] = {}
    exec(compile(source, str(Path(dmole.__file__).parent / "module.py"), "exec"), scope)

    def work() -> None:
        scope["wait"]()
        scope["wait"]()
        warnings.warn(syncs.MESSAGE, stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert syncs.caused_by(work) == {"dmole/module.py:4": 2, "elsewhere": 1}


@pytest.mark.slow
def test_a_failing_family_is_named_and_the_others_run(setting: Setting) -> None:
    rows = list(coverage.families(setting, ("unheard_of", "llava")))
    assert [(what, value) for what, value, _ in rows] == [
        ("unheard_of: error", "KeyError: 'unheard_of'"),
        ("families without an error", 1),
    ]


@pytest.mark.slow
def test_a_section_without_its_needs_is_a_row_of_both_files(tmp_path: Path) -> None:
    output = tmp_path / "gpu.md"
    main(["--output", str(output), "--only", "four_bit", "--accelerator", "cpu"])
    first, second = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    assert first == {
        "section": "four_bit",
        "what": "not run",
        "value": "4-bit weights need a GPU",
        "note": "",
    }
    assert second["what"] == "seconds"
    assert "| four_bit | not run | 4-bit weights need a GPU |  |" in output.read_text("utf-8")


def test_a_bar_in_a_value_does_not_end_its_cell(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.md")
    report.add("a", "b", "x | y\nz")
    assert report.markdown().splitlines()[-1] == r"| a | b | x \| y z |  |"


def test_host_syncs_are_not_counted_on_a_cpu(setting: Setting) -> None:
    with pytest.raises(NotRunError, match="counted by CUDA alone"):
        next(syncs.syncs(setting))


@pytest.mark.slow
def test_runs_of_one_seed_are_equal_on_one_device(setting: Setting) -> None:
    rows = values(quickstart.quickstart(setting, train=16, test=8))
    assert rows["two runs on the device: unequal results"] == "none"
    assert rows["cpu and cpu: largest relative difference of an expert"] == "0.00e+00"
    runs = [setting.folder / name / "version_0" for name in ("first", "host")]
    file = next((runs[0] / "predictions").glob("*.jsonl"))
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    lines[0]["prediction"] += "?"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert dict(compare(*runs))["share of equal answers"] < 1
    assert unequal(*runs) == f"predictions/{file.stem}/{lines[0]['task']}"


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_results(setting: Setting) -> None:
    rows = values(quickstart.resume(setting, train=32, test=4))
    assert rows == {"killed at step": 7, "resumed run: unequal results": "none"}


@pytest.mark.slow
def test_every_method_and_family_runs(setting: Setting) -> None:
    assert values(coverage.methods(setting)) == {"methods without an error": 28}
    assert values(coverage.families(setting)) == {"families without an error": 12}


@pytest.mark.slow
def test_precisions_repetitions_and_servers_are_compared(setting: Setting) -> None:
    rows = values(precision.precision(setting, train=16, test=8))
    assert rows["fp32: share of equal answers, batch of 1 and of 8"] == 1.0
    assert float(str(rows["fp32: largest difference of a logit, batch of 8 and alone"])) < 1e-3
    repeated = values(determinism.determinism(setting, ("dmole", "dynmole")))
    assert set(repeated.values()) == {"none"}
    served = values(serve.serve(setting, train=16, count=8))
    assert served["share of equal answers, cpu and cpu"] == 1.0
