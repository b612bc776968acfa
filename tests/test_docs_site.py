"""The site builds without a warning, needs no network, and holds every public name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BUILD = ("-m", "sphinx", "--fail-on-warning", "--nitpicky", "--keep-going", "--quiet", "-b", "html")


def test_the_make_target_is_the_strict_build() -> None:
    plan = subprocess.run(["make", "-n", "docs"], cwd=ROOT, check=True, capture_output=True)
    assert f"{' '.join(BUILD)} docs docs/_build/html" in plan.stdout.decode()


def test_the_index_names_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.glob("*.md")}
    pages |= {f"guides/{path.stem}" for path in (DOCS / "guides").glob("*.md")}
    pages |= {f"notebooks/{path.stem}" for path in (DOCS / "notebooks").glob("*.ipynb")}
    listed = set(re.findall(r"^([\w/]+)$", index, flags=re.MULTILINE))
    assert listed == pages - {"index"} | {"methods/README"}


@pytest.mark.parametrize("page", sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")))
def test_no_page_links_to_a_file_outside_the_site(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        found = (DOCS / page).parent / target
        assert found.is_file(), target
        assert found.resolve().is_relative_to(DOCS), target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site strictly."""
    output = tmp_path_factory.mktemp("site")
    command = [sys.executable, *BUILD, "-d", str(output / "trees"), "docs", str(output / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output / "html"


@pytest.mark.slow
def test_the_site_builds_and_every_public_name_is_in_its_inventory(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, uri: uri)
    entries = {name for kind in inventory if kind.startswith("py:") for name in inventory[kind]}
    sys.path.append(str(DOCS / "_ext"))
    api_pages = import_module("api_pages")
    assert {name for room in api_pages.rooms() for name in api_pages.public_names(room)} <= entries


@pytest.mark.slow
def test_no_page_loads_a_script_style_font_or_image_from_another_host(site: Path) -> None:
    loads = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?:https?:)?//[^\"]*\"")
    links = re.compile(r"<link\b(?=[^>]*rel=\"(?:stylesheet|preload|preconnect)\")[^>]*//[^>]*>")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not loads.search(text), page
        assert not links.search(text), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_the_search_index_is_a_script_that_knows_methods_classes_and_pages(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert index.startswith("Search.setIndex(")  # a script, which a browser loads from a folder
    for word in ("SensitivityAllocator", "replay", "merge_and_unload", "architecture"):
        assert word.lower() in index.lower(), word


def test_the_citation_names_the_version_the_license_and_the_paper() -> None:
    from dmole import __version__

    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= content.keys()  # what the format asks
    assert content["cff-version"] == "1.2.0"
    assert content["version"] == __version__
    assert content["license"] == "Apache-2.0"
    (paper,) = content["references"]
    assert {"type", "title", "authors", "year", "conference"} <= paper.keys()
    assert paper["url"] == "https://arxiv.org/abs/2506.11672"
    for person in paper["authors"]:
        assert person.keys() == {"family-names", "given-names"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


VALUES = re.compile(r"\.\.\.|'[^']*'|\d+|<image>|\bid\b|\buser\b|[][(),:;]|max_epochs|nan")
"""What stands for a value in a message of the page."""


def literals() -> str:
    """Return the texts of the package, one a line; values within them are shown as `...`."""
    found = []
    for path in (ROOT / "dmole").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(" ".join(text.split()) for text in found)


def test_the_messages_on_the_page_of_errors_are_those_of_the_code() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    texts = literals()
    foreign = (  # of jsonargparse
        *("Problem with given class_path", "Does not validate", "Subcommand ", "Option "),
        *("module ", "No module named", "the following arguments", "unrecognized arguments"),
    )
    for line in re.findall(r"^(`.*)\n: ", page, flags=re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", line):
            if message.startswith(foreign):
                continue
            parts = [part.strip(" .") for part in VALUES.split(message)]
            missing = [part for part in parts if len(part) > 5 and part not in texts]
            assert not missing, message
