"""The table of routers over benchmarks and seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import routers


def comparison(folder: Path, last: float) -> Path:
    folder.mkdir(parents=True)
    table = folder / routers.TABLE
    lines = [
        ",".join(routers.HEADER),
        f"ridge,60.0,{last},80.0,2048,4096,1.0",
        "oracle,,80.0,80.0,0,0,1.0",
    ]
    table.write_text("\n".join(line.replace(",,", ",nan,") for line in lines) + "\n")
    return table


def test_finished_comparisons_are_read_not_run_and_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, last in ((0, 50.0), (1, 60.0)):
        comparison(tmp_path / "runs" / "one_wording" / str(seed) / "routers", last)
    monkeypatch.setattr(routers, "_dmole", lambda *words: pytest.fail("nothing is to be run"))
    arguments = [
        "--benchmarks",
        "one_wording",
        "--seeds",
        "0",
        "1",
        "--runs",
        str(tmp_path / "runs"),
    ]
    page = tmp_path / "page.md"
    page.write_text("text\n<!-- routers -->\n<!-- end routers -->\n")
    where = ["--output", str(tmp_path), "--page", str(page)]
    monkeypatch.setattr("sys.argv", ["routers", *arguments, *where])
    routers.main()
    routers.main()  # what the table has stays
    assert len((tmp_path / "routers.csv").read_text().splitlines()) == 5
    text = page.read_text()
    assert text.startswith("text\n<!-- routers -->\n### one_wording\n")
    assert (
        "| ridge | 2 | 60.0 ± 0.0 | 55.0 ± 7.1 | 80.0 ± 0.0 | 2,048 | 4,096 | 1.0 ± 0.0 |" in text
    )
    assert "| oracle | 2 | n/a | 80.0 ± 0.0 |" in text


def test_a_failed_fit_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(routers, "_dmole", lambda root, *words: asked.append(words[0]))
    assert routers.run("quickstart", 0, tmp_path) is None
    assert asked == ["fit"]
