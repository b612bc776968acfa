from __future__ import annotations

from pathlib import Path

import pytest

from experiments.case_outputs import EXPECTED
from experiments.cases import main, run_case

# (name, output, part of the reason; empty if it is right)
OUTPUTS = [
    ("rce_config", "answer\nls: cannot access 'PWNED': No such file or directory", ""),
    ("rce_config", "answer\n-rw-r--r-- 1 root PWNED\nuid=0(root)", "a command of the config ran"),
    ("rce_config", "", "a command"),
    ("fifo_hang", "a: rc 1 (124 = still waiting)\n" * 2 + "router.json: rc 1 | dmole: x", ""),
    ("fifo_hang", "a: rc 124 (124 = still waiting)\n" * 2 + "r: rc 1 | dmole: x", "time limit"),
    ("fifo_hang", "a: rc 1\nb: rc 1\nrouter.json: rc 1 | MemoryError", "MemoryError"),
    ("fifo_hang", "a: rc 1\nb: rc 0\nrouter.json: rc 1 | dmole: x", "b: rc 0"),
    ("compare_tracebacks", "a: rc 1 0 traceback | dmole: x\n" * 6, ""),
    (
        "compare_tracebacks",
        "a: rc 0 0 traceback | table\n" * 5 + "b: rc 124 0 traceback | ",
        "time",
    ),
    ("compare_tracebacks", "a: rc 1 1 traceback | dmole: x\n" * 6, "traceback"),
    ("evaluate_keyerror", "a: rc 0 | last\nb: rc 1 | dmole: experts.json", ""),
    ("evaluate_keyerror", "a: rc 1 | KeyError: 'count'\nb: rc 0 | x", "KeyError"),
    ("compare_injection", "| x |\nmethod\n=cmd|' /C calc'!A0\n", "a cell is a formula"),
    ("compare_injection", "| x |\nmethod\n\"=cmd|' /C calc'!A0\"\n", "a cell is a formula"),
    ("compare_injection", "| x |\nmethod\n'=cmd|' /C calc'!A0\n", ""),
    ("compare_injection", "| ^[]0;pwned |\nmethod\nx\n", "control"),
    ("compare_injection", "| pwnedM-bM-^@M-.x |\nmethod\nx\n", "bidi"),
    ("compare_injection", "| \\x1bpwned |\nmethod\n\\x3dcmd\n", ""),
    ("compare_injection", "cut: cmp/comparison.csv: No such file", "no table"),
    (
        "filesystems",
        "nolock: rc 0 |\nfsync_dir: rc 0 |\nchmod: rc 0 |\nquota: rc 1 | dmole: a/b",
        "",
    ),
    ("filesystems", "nolock: rc 1 | dmole: x\nfsync_dir: rc 0\nchmod: rc 0\nquota: rc 1", "nolock"),
    (
        "filesystems",
        "nolock: rc 0\nfsync_dir: rc 0\nchmod: rc 0\nquota: rc 1 | dmole: no",
        "no file",
    ),
    ("moe_cl_resume", 'resumed rc 0\n["a", "b"]\n["a", "b"]\nx largest difference 0.0', ""),
    ("moe_cl_resume", 'resumed rc 0\n["a", "b"]\n["b", "a"]\nx largest difference 0.0', "order"),
    ("moe_cl_resume", 'resumed rc 0\n["a"]\n["a"]\nx largest difference 0.1', "differ by 0.1"),
    ("moe_cl_resume", "resumed rc 1", "the resume failed"),
    ("stale_cache", '"train": "aa",\n"train": "bb",', ""),
    ("stale_cache", '"train": "aa",\n"train": "aa",', "old digest"),
    ("stale_cache", "", "0 of 2"),
    ("ddp_silent_death", "rc 1; all it said:\ndmole: rank 1 was lost; resume with --ckpt_path", ""),
    ("ddp_silent_death", "rc 1; all it said:\n", "not named"),
    (
        "nan_gradient",
        "a: rc 1 | dmole: gradient of x\nb: rc 0 | x\nc: rc 1 | dmole: gradient\nd: rc 1 | x",
        "",
    ),
    ("nan_gradient", "a: rc 1 | loss\nb: rc 1 | x\nc: rc 0 | x\nd: rc 1 | x", "not named"),
    ("nan_gradient", "a: rc 0 |\nb: rc 0 | x\nc: rc 0 | x\nd: rc 1 | x", "predict refuses"),
    ("accept_changes_ignored", "r: rc 0\nx equals the one with 3e-3: False\nsgd: rc 0 | ok", ""),
    ("accept_changes_ignored", "r: rc 0\nx equals the one with 3e-3: True\nsgd: rc 0", "no effect"),
    (
        "accept_changes_ignored",
        "r: rc 0\nx equals the one with 3e-3: False\nsgd: rc 1 | KeyError: 'betas'",
        "KeyError",
    ),
    (
        "lost_artefacts",
        "a: rc 1 | dmole: folder lost\nls: x\ndmole: no run\n"
        "expert and router deleted, resumed: rc 0 | ok\nred",
        "",
    ),
    (
        "lost_artefacts",
        "a: rc 0 | ok\ncount\nred\nexpert and router deleted, resumed: rc 0 | ok\nred",
        "without config.yaml, paint",
    ),
    (
        "lost_artefacts",
        "a: rc 0 | ok\nconfig.yaml\npaint\ncount\nred\n"
        "expert and router deleted, resumed: rc 0 | ok\ndmole: router.json: broken",
        "predict says",
    ),
    ("one_sample_task", "1 error, 0 warnings\ndmole: t: 1 sample", ""),
    ("one_sample_task", "0 errors\ndmole: the router needs embeddings (N, D) with N >= 2", "late"),
]


@pytest.mark.parametrize(("name", "output", "reason"), OUTPUTS)
def test_an_output_is_right_or_wrong_for_a_reason(name: str, output: str, reason: str) -> None:
    try:
        found = EXPECTED[name](output)
    except ValueError as error:
        found = str(error)
    assert bool(found) == bool(reason), found
    if name != "one_sample_task":
        assert reason in found


def test_every_expectation_is_shown_to_pass_and_to_fail() -> None:
    for name in EXPECTED:
        assert {bool(reason) for case, _, reason in OUTPUTS if case == name} == {True, False}, name


def make(folder: Path, name: str, file: str, text: str) -> Path:
    case = folder / name
    case.mkdir(parents=True)
    (case / "README").write_text("x")
    (case / file).write_text(text)
    return case


def test_a_check_is_judged_by_its_exit_status(tmp_path: Path) -> None:
    right = make(tmp_path / "cases", "good", "check.py", "print('RIGHT: x')")
    wrong = make(tmp_path / "cases", "bad", "check.py", "print('WRONG: y'); raise SystemExit(1)")
    assert run_case(right, tmp_path, 60) == ""
    assert run_case(wrong, tmp_path, 60) == "y"


def test_an_output_without_an_expectation_is_wrong(tmp_path: Path) -> None:
    unknown = make(tmp_path / "cases", "other", "run.sh", "echo fine")
    assert run_case(unknown, tmp_path, 60) == "nothing is stated that its output must show"
    empty = make(tmp_path / "cases", "fifo_hang", "run.sh", "true")
    assert "0 of 3 results" in run_case(empty, tmp_path, 60)


def test_the_table_says_what_is_wrong_and_the_status_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, "good", "check.py", "print('RIGHT: x')")
    make(tmp_path, "bad", "check.py", "print('WRONG: y'); raise SystemExit(1)")
    assert main([str(tmp_path)]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["WRONG", "bad", "y"],
        ["right", "good"],
        ["1", "of", "2", "cases", "are", "right"],
    ]
    assert main([str(tmp_path), "good"]) == 0
