"""``dmole configs``: the configs that ship with the package."""

from __future__ import annotations

from pathlib import Path

from dmole.cli.arguments import ArgumentParser
from dmole.cli.config_files import shipped_configs
from dmole.storage.files import read_text
from dmole.storage.shipped import shipped_config


def run_configs(words: list[str]) -> None:
    """List the shipped configs, or print one, to copy and change.

    Raises:
        ValueError: If there is no config of that name.
    """
    parser = ArgumentParser("dmole configs", description=run_configs.__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("name", nargs="?", help="name of a config to print")
    name = parser.parse_args(words).name
    if name is None:
        print("\n".join(list_configs()))
        return
    path = shipped_config(name.removeprefix("configs/"))
    if path is None:
        raise ValueError(f"no shipped config {name}; `dmole configs` lists them")
    print(read_text(path), end="")


def list_configs() -> list[str]:
    """Return one line for each shipped config: its name and the first sentence of its comment."""
    names = shipped_configs()
    width = max(map(len, names), default=0)
    return [f"{name:<{width}}  {_summary(name)}".rstrip() for name in names]


def _summary(name: str) -> str:
    """Return the first sentence of the comment at the top of a config."""
    path = shipped_config(name)
    lines = read_text(path).splitlines() if isinstance(path, Path) else []
    words = []
    for line in lines:
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        words.append(text)
    sentence, dot, _ = f"{' '.join(words)} ".partition(". ")
    return sentence.strip().rstrip(":") + dot.strip()
