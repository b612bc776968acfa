"""The sweeps of docs/compare.md name settings that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from dmole.cli.main import main
from dmole.report.identity import CHECKS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")


def sweeps() -> list[list[str]]:
    """Return the words of each fit on the page, with 4 as rank, 0.5 as budget and 1 as seed."""
    text = PAGE.replace("\\\n", " ")
    for name, value in (("factor", "0.5"), ("budget", "0.5"), ("seed", "1")):
        text = text.replace(f"${name}", value)
    return [shlex.split(line)[1:] for line in re.findall(r"^ +dmole fit.*", text, re.MULTILINE)]


def test_the_sweeps_parse(capsys: pytest.CaptureFixture[str]) -> None:
    configs = []
    for words in sweeps():
        with pytest.raises(SystemExit) as ended:
            main([*words, "--print_config"])
        assert ended.value.code in (0, None)
        printed = capsys.readouterr().out
        configs.append(yaml.safe_load(printed[printed.index("seed_everything") :]))
    rank, budget = configs
    assert rank["trainer"]["name"] == "dmole_r0.5"
    assert rank["model"]["alpha"] == 2 * rank["model"]["allocator"]["init_args"]["rank"] == 16
    assert rank["model"]["allocator"]["init_args"]["rank_factor"] == 0.5
    assert rank["seed_everything"] == 1
    assert budget["trainer"]["name"] == "dmole_b0.5"
    assert budget["model"]["allocator"]["init_args"]["budget_fraction"] == 0.5


def test_every_check_that_can_be_allowed_is_on_the_page() -> None:
    table = PAGE.partition("| `--allow` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(CHECKS)
