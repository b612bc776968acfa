"""The speed script measures what it says, and docs/performance.md holds what it printed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments import performance
from experiments.speed.answers import answers
from experiments.speed.cost_model import Amount, amount_of, fitted
from experiments.speed.page import BEGIN, END, Row, read_rows, renewed, tables, with_tables
from experiments.speed.profiles import own_seconds
from experiments.speed.steps import steps
from experiments.speed.subjects import Subject, build
from experiments.speed.timing import Ratio, Times


@pytest.fixture(scope="module")
def subject() -> Subject:
    return build("small")


def test_the_page_holds_the_tables_of_the_last_measurement() -> None:
    page = performance.PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page, tables(read_rows(performance.ROWS)))


@pytest.mark.slow
def test_every_figure_of_a_model_is_measured(subject: Subject) -> None:
    rows = [*steps(subject, 1, sizes=(3,)), *answers(subject, 1, sizes=(1, 2))]
    found = {(row.section, row.what) for row in rows}
    assert found >= {
        ("training step / PEFT", "half of the blocks, T = 1"),
        ("training step / PEFT", "T = 3, embeddings new"),
        ("training steps compared", "T = 3: a partner on half / T = 3, embeddings known"),
        ("generate / bare", "T = 2, new"),
        ("generate by tasks", "T = 2 / T = 1, seen"),
        ("share of generate", "T = 2, embedding and routing"),
    }
    assert all(row.value.median > 0 for row in rows if not row.section.startswith("cost model"))


def test_variants_share_the_weights_of_the_base_model(subject: Subject) -> None:
    module, (adapted, _) = subject.module(2), subject.peft(2000)
    own = {parameter.data_ptr() for parameter in subject.base.parameters()}
    assert own <= {parameter.data_ptr() for parameter in module.backbone.parameters()}
    assert own <= {parameter.data_ptr() for parameter in adapted.parameters()}


def test_a_ratio_is_paired_within_rounds() -> None:
    times = Times({"a": [2.0, 40.0, 6.0], "b": [1.0, 10.0, 2.0]})
    assert times.ratio("a", "b") == Ratio(3.0, 2.5, 3.5)


def test_the_cost_model_finds_the_prices_that_made_the_times() -> None:
    amounts = {"a": Amount(10, 500, 7), "b": Amount(100, 20, 9), "c": Amount(3, 60, 80)}
    seconds = {
        name: [2.0 * amount.calls + 0.5 * amount.flops + 0.1 * amount.bytes]
        for name, amount in amounts.items()
    }
    cost = fitted(amounts, Times(seconds))
    assert cost.seconds(Amount(1, 1, 1)) == pytest.approx(2.6)


def test_operators_are_counted_without_views() -> None:
    x = torch.ones(2, 3)
    amount = amount_of(lambda: x.t() @ x)
    assert amount == Amount(calls=1, flops=2 * 3 * 2 * 3, bytes=4 * (6 + 6 + 9))


def test_time_in_c_counts_for_its_callers() -> None:
    stats = {
        ("/p/a.py", 1, "f"): (1, 1, 0.5, 2.0, {}),
        ("~", 0, "<built-in linear>"): (2, 2, 1.5, 1.5, {("/p/a.py", 1, "f"): (2, 2, 1.5, 1.5)}),
    }
    assert own_seconds(stats) == {"p/a.py: f": 2.0}


def test_a_new_measurement_replaces_the_rows_of_its_table_and_model() -> None:
    old = [row("steps", "a", "tiny", 1.0), row("steps", "gone", "tiny", 1.0)]
    old.append(row("steps", "a", "wide", 3.0))
    new = [row("steps", "a", "tiny", 2.0)]
    assert renewed(old, new) == [new[0], old[2]]
    assert tables(renewed(old, new)) == (
        "| steps | tiny | wide |\n| --- | ---: | ---: |\n| a | 2.00 | 3.00 |\n"
    )


def row(section: str, what: str, model: str, value: float) -> Row:
    return Row(section, what, model, Ratio(value, value, value))


def test_a_page_without_marks_is_refused() -> None:
    assert with_tables(f"x {BEGIN} old {END} y", "new") == f"x {BEGIN}\n\nnew\n{END} y"
    with pytest.raises(ValueError, match="the page has no"):
        with_tables(f"x {BEGIN}", "new")


def test_without_a_gpu_its_section_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}{END}")
    words = ["--only", "gpu", "--rows", str(tmp_path / "rows.json"), "--page", str(page)]
    performance.main(words)
    assert "gpu | not run: there is no CUDA device" in capsys.readouterr().out
