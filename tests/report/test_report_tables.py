from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from dmole.report import compare
from dmole.report.grids import best_of, mean_and_spread, shown
from dmole.report.tables import escape_latex, escape_markdown


def test_the_deviation_is_that_of_a_sample() -> None:
    assert mean_and_spread([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7.0)))
    assert mean_and_spread([1.0])[0] == 1.0
    assert math.isnan(mean_and_spread([1.0])[1])
    assert math.isnan(mean_and_spread([1.0, math.nan])[0])


def test_zero_has_no_sign() -> None:
    assert shown(-0.004) == "0.00"
    assert shown(-0.4, whole=True) == "0"


@pytest.mark.parametrize(
    ("cells", "better", "apart", "expected"),
    [
        ({"a": 1.0, "b": 2.0}, "high", [], {"b"}),
        ({"a": 1.0, "b": 2.0}, "low", [], {"a"}),
        ({"a": 1.004, "b": 1.0, "c": 0.9}, "high", [], {"a", "b"}),
        ({"a": -0.001, "b": 0.001}, "high", [], {"a", "b"}),
        ({"a": math.nan, "b": 2.0, "c": 1.0}, "low", [], {"c"}),
        ({"a": math.nan, "b": 2.0}, "high", [], set()),
        ({"a": 3.0, "b": 2.0, "c": 1.0}, "high", ["a"], {"b"}),
        ({"a": 3.0, "b": 2.0}, "high", ["a"], set()),
    ],
)
def test_the_best_is_the_best_as_printed(
    cells: dict[str, float], better: str, apart: list[str], expected: set[str]
) -> None:
    assert best_of(cells, better, apart) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("D-MoLE, rank 8 (ours)", "D-MoLE, rank 8 (ours)"),
        ("R[S,i] - R[s_i,i], s_i < S", "R[S,i] - R[s_i,i], s_i < S"),
        ("a|b", "a\\|b"),
        ("a\n| x | y |", "a \\| x \\| y \\|"),
        ("<script>alert(1)</script>", "\\<script>alert(1)\\</script>"),
        ("<!-- x", "\\<!-- x"),
        ("[x](javascript:alert(1))", "[x\\](javascript:alert(1))"),
        ("&lt;script&gt;", "\\&lt;script\\&gt;"),
        ("`x`", "\\`x\\`"),
        ("_a_ *b* ~c~", "\\_a\\_ \\*b\\* \\~c\\~"),
        ("\\|", "\\\\\\|"),
        ("\x1b[31m\u202ex\x07", "\\\\x1b[31m\\\\u202ex\\\\x07"),
        ("https://a.b www.c.d me@e.f", "https\\://a.b www\\.c.d me\\@e.f"),
    ],
)
def test_a_name_is_shown_as_it_is_and_cannot_leave_its_cell(text: str, shown: str) -> None:
    assert escape_markdown(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("seq_ft 50% & #1 $x$ {y}", r"seq\_ft 50\% \& \#1 \$x\$ \{y\}"),
        ("a\\b^c~d", r"a\textbackslash{}b\textasciicircum{}c\textasciitilde{}d"),
        ("[x]*", "{[}x{]}{*}"),
        ("a--b", "a-{}-{}b"),
        ("1 ± 2†", r"1 $\pm$ 2$^\dagger$"),
        ("s_i <= t | `q`", r"s\_i \textless{}= t \textbar{} \textasciigrave{}q\textasciigrave{}"),
        ("a\n\n\\end{table}\x07", r"a \textbackslash{}end\{table\}\textbackslash{}x07"),
    ],
)
def test_latex_prints_a_text_as_it_is(text: str, shown: str) -> None:
    assert escape_latex(text) == shown


def test_latex_tables_hold_the_numbers_and_close_what_they_open(
    runs: list[Path], tmp_path: Path
) -> None:
    compare(runs, tmp_path)
    text = (tmp_path / "comparison.tex").read_text()
    assert r"\begin{tabular}{lrrrrrrrrrrr}" in text
    assert r"dmole & 2 & \textbf{80.50 $\pm$ 2.12} & \textbf{64.25 $\pm$ 1.41}" in text
    assert r"& \textbf{$-$1.00 $\pm$ 1.41} &" in text
    assert r"seq-{}ft & 1 & 57.50 & 52.50 & $-$50.00 & 73.75" in text
    assert r"BWT: mean\_i (R{[}S,i{]} -{} R{[}s\_i,i{]})" in text
    tasks = (tmp_path / "per_task.tex").read_text()
    assert re.findall(r"\\label\{(.*?)\}", tasks) == [
        f"tab:{name}_by_task" for name in ("last", "avg", "bwt", "forgetting")
    ]
    assert r"dmole & 2 & \textbf{1.00 $\pm$ 1.41} & n/a \\" in tasks
    assert r"seq-{}ft & 1 & 40.00 & \textbf{75.00} \\" in tasks
    assert re.findall(r"\\label\{(.*?)\}", text) == ["tab:comparison", "tab:learning"]
    for page in (text, tasks):
        begun = re.findall(r"\\begin\{(.*?)\}", page)
        assert sorted(begun) == sorted(re.findall(r"\\end\{(.*?)\}", page))
        plain = re.sub(r"\\[{}]", "", page)
        assert plain.count("{") == plain.count("}")
        assert plain.count("$") % 2 == 0
        rows = [line for line in page.splitlines() if line.endswith(r" \\")]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} in ({11, 10}, {3})
