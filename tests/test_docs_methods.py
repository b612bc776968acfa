"""Every method has a row in the index and a page that names all of its settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import dmole.allocation
from dmole.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "methods"
INDEX = (PAGES / "README.md").read_text(encoding="utf-8")
METHODS = sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml"))


def config_of(method: str) -> str:
    return (ROOT / "configs" / "methods" / f"{method}.yaml").read_text(encoding="utf-8")


def linked_page(method: str) -> str:
    """Return the file that the method's row of the index links to."""
    found = re.findall(rf"^\| \[`{method}`\]\(([\w.]+)\) \|", INDEX, flags=re.MULTILINE)
    assert len(found) == 1, f"{method} has {len(found)} rows in docs/methods/README.md"
    return str(found[0])


def settings(node: Any) -> Iterator[str]:
    """Yield every key below an ``init_args``, at any depth, but those that choose a class."""
    if isinstance(node, list):
        for entry in node:
            yield from settings(entry)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "init_args":
                yield from value
            yield from settings(value)


@pytest.mark.parametrize("method", METHODS)
def test_a_page_has_the_name_of_the_method_and_all_its_settings(method: str) -> None:
    page = (PAGES / linked_page(method)).read_text(encoding="utf-8")
    assert f"methods/{method}.yaml" in page
    missing = [key for key in settings(yaml.safe_load(config_of(method))) if f"`{key}`" not in page]
    assert not missing


@pytest.mark.parametrize("method", METHODS)
def test_a_config_says_where_its_page_is(method: str) -> None:
    head = config_of(method).partition("\ntrainer:")[0]
    assert f"docs/methods/{linked_page(method)}" in head


def test_every_page_belongs_to_a_method_and_every_row_to_a_config() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]", INDEX, flags=re.MULTILINE)
    assert sorted(rows) == METHODS
    pages = {path.name for path in PAGES.glob("*.md")} - {"README.md"}
    assert pages == {linked_page(method) for method in METHODS}


@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("*.md")))
def test_pages_link_to_each_other_where_they_are(page: str) -> None:
    text = (PAGES / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (PAGES / target).is_file(), target


SIZES = {"rank", "alpha", "lr", "batch_size", "epochs", "max_steps"}
"""Keys that belong to a benchmark."""


def keys(node: Any) -> Iterator[str]:
    for value in node if isinstance(node, list) else ():
        yield from keys(value)
    for key, value in node.items() if isinstance(node, dict) else ():
        yield key
        yield from keys(value)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_leaves_the_sizes_of_the_benchmark_alone(method: str) -> None:
    assert not SIZES & set(keys(yaml.safe_load(config_of(method))))


@pytest.mark.parametrize(
    ("method", "rank"), [("dmole", 128), ("seq_ft", 80), ("mola", 16), ("dmole_release", 128)]
)
def test_after_a_benchmark_a_method_scales_its_rank(
    method: str, rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", "coin.yaml", "--config", f"methods/{method}.yaml", *PRINT])
    printed = capsys.readouterr().out
    model = yaml.safe_load(printed[printed.index("seed_everything") :])["model"]
    assert model["alpha"] == 256
    choice = model["allocator"]
    name, arguments = choice["class_path"].rpartition(".")[2], choice["init_args"]
    assert arguments["rank"] == 128
    allocator = getattr(dmole.allocation, name)(**arguments)
    assert allocator.expert_rank == rank
    assert allocator.expert_alpha(256.0) / allocator.expert_rank == 2.0


PRINT = ["--data.data_root", "data", "--print_config"]
