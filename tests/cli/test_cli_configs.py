from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from dmole.cli import main
from dmole.cli.completion import completion_script
from dmole.cli.config_files import shipped_configs
from dmole.cli.lightning import setting_names


def test_every_shipped_config_is_listed_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == shipped_configs()
    assert all(len(line.split()) > 2 for line in lines)


def test_a_config_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "methods/seq_ft.yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["name"] == "seq_ft"


def test_an_unknown_config_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "../pyproject.toml"]) == 1
    assert capsys.readouterr().err.startswith("dmole: no shipped config ../pyproject.toml;")


def test_the_settings_of_fit_have_their_names() -> None:
    names = setting_names()
    assert {"trainer.devices", "data.batch_size", "model.alpha", "ckpt_path"} <= set(names)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dmole", "al"], ["allocate"]),
        (["dmole", "fit", "--config", "methods/seq"],
         ["methods/seq_ft.yaml", "methods/seq_ft_merge.yaml"]),
        (["dmole", "fit", "--model.al"], ["--model.alpha"]),
        (["dmole", "configs", "coin"], ["coin.yaml", "coin_asd.yaml"]),
    ],
)  # fmt: skip
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_completes_verbs_configs_and_settings(
    words: list[str], expected: list[str]
) -> None:
    script = completion_script(
        "bash", ["fit", "allocate", "configs"], ["model.alpha", "model.seed"]
    )
    quoted = " ".join(f"'{word}'" for word in words)
    ended = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\nCOMP_WORDS=({quoted}); "
         f"COMP_CWORD={len(words) - 1}; _dmole; printf '%s\\n' \"${{COMPREPLY[@]}}\""],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout.split() == expected
