"""`dmole experts RUN list` says what each expert is, quickly and without trust in the folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from edited_runs import make_run
from safetensors.torch import save_file
from strangers import refused

from dmole.cli.main import main
from dmole.editing.table import blocks_of, expert_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("table") / "version_0", threshold_scale=0.5)


def test_each_expert_has_its_stage_size_threshold_and_samples(run: Path) -> None:
    first, second, _ = expert_rows(run)
    thresholds = json.loads((run / "router/router.json").read_text())["experts"]
    assert (first.name, first.stage, first.tasks) == ("paint", 1, ["paint"])
    assert first.parameters == 2 * (128 + 512) + 2 * (160 + 448)
    assert (first.ranks, first.blocks) == ([2], {"vision": 1, "language": 1})
    assert first.threshold == thresholds[0]["threshold"] * 0.5
    assert (first.samples, first.routed, first.foreign) == (8, 50.0, 8)  # as the second one too
    assert (second.samples, second.routed, second.foreign) == (8, 100.0, 0)
    assert (first.starts_from, second.starts_from) == (None, "paint")
    assert not first.disabled


def test_the_table_and_the_json_say_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experts", str(run), "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["expert", "stage", "tasks", "parameters"]
    assert [line.split()[0] for line in lines[1:]] == ["paint", "count", "read"]
    assert main(["experts", str(run), "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [f"{row['parameters']:,}" for row in rows] == [line.split()[3] for line in lines[1:]]


def test_a_soft_prompt_is_listed_by_its_tokens_and_is_in_no_block(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "version_0"
    shutil.copytree(run, other)
    for file in (other / "experts/paint").iterdir():
        file.unlink()
    path = "model.language_model.embed_tokens.tokens"
    save_file({path: torch.zeros(3, 4)}, other / "experts/paint/mixture.safetensors")
    first = expert_rows(other)[0]
    assert (first.parameters, first.ranks, first.tokens, first.blocks) == (12, [], 3, {})
    assert main(["experts", str(other), "list"]) == 0
    assert "3 tokens" in capsys.readouterr().out.splitlines()[1]


def test_listing_loads_no_torch(run: Path) -> None:
    code = (
        "import sys; from dmole.cli.main import main; "
        f"main(['experts', {str(run)!r}, 'list']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_blocks_are_counted_by_modality_whatever_the_family_calls_them() -> None:
    paths = [
        "model.visual.blocks.0.attn.qkv",
        "model.visual.blocks.0.mlp.fc1",
        "model.visual.blocks.1.mlp.fc1",
        "model.visual.merger.mlp.0",
        "model.text_model.layers.11.self_attn.q_proj",
        "model.connector.modality_projection.proj",
    ]
    assert blocks_of(paths) == {"vision": 2, "projector": 2, "language": 1}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("experts/experts.json", "{}", "experts.json: expected a list of at most"),
        ("experts/experts.json", '["../x"]', "expert name '../x' must be letters"),
        ("experts/experts.json", '["gone"]', "gone/adapter_model.safetensors: No such file"),
        ("experts/paint/adapter_model.safetensors", "x", "cannot use expert"),
        ("router/router.json", "[]", "'experts' must be a list of objects"),
        ("routing.csv", "stage\n1", "routing.csv, line 1: expected the header"),
        ("disabled.json", "{}", "disabled.json: expected a list of names, got dict"),
        ("digests.json", "[]", "expected the digests of a run"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named_in_one_line(
    file: str,
    text: str,
    message: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / file).write_text(text, encoding="utf-8")
    assert message in refused(["experts", str(copy), "list"], capsys)
