"""Adapters for servers that apply one LoRA to a request, such as vLLM.

Facts about vLLM (its file-system resolver, ``PEFTHelper``, ``LoRAConfig``): an adapter is the
folder with the name of the requested model; its ``base_model_name_or_path`` must be the very text
that the server was started with; ``r`` and ``lora_alpha`` hold for all linears; the maximum rank is
one of `RANKS`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole.demo.tiny import TINY_PATH
from dmole.experts.joined import Adapter, join, read_plain, write_uniform
from dmole.publish.parts import made_of, open_source, seal, write_parts
from dmole.publish.serving_text import serving_text
from dmole.routing import gate_set_name
from dmole.run.export_file import ADAPTERS, FORMAT, ROUTERS, Export
from dmole.run.loading import build_router
from dmole.storage.digests import verify_files
from dmole.storage.files import read_text, write_json
from dmole.storage.folders import new_folder

if TYPE_CHECKING:
    from dmole.publish.parts import Source

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Maximum ranks that vLLM can be started with."""
_ROUTING = "routing.csv"


def export_adapters(
    run: Path, output: Path, *, base: str | None = None, trusted: Sequence[str] = ()
) -> Export:
    """Write the adapters of a finished run for a server that applies one to a request.

    Each expert is one adapter, and so is each gate set of several experts that ``routing.csv``
    shows at the last evaluation: the ranks concatenated, which is exact.

    Args:
        run: The run folder.
        output: The folder to make.
        base: Name or folder of the base model as the server is started with; by default as in the
            run.
        trusted: Modules outside dmole whose classes the run may name.

    Raises:
        ValueError: If the run is unfinished or damaged, the output exists, experts are weighed by
            token or by sample, or an adapter has a larger rank than vLLM takes.
    """
    source = open_source(run, None, trusted)
    plain = {name: read_plain(run / "experts" / name, name) for name in source.experts}
    router = build_router(source.settings, trusted)
    if router.soft or router.mixing is not None:
        how = "sample" if router.soft else "token"
        raise ValueError(
            f"the router of {run} ({type(router).__name__}) weighs experts by {how}, which no "
            "adapter of vLLM does: use dmole serve"
        )
    served = base or _place(source)
    sets = [(name,) for name in source.experts] + _occurring(source)
    made = {gate_set_name(names): names for names in sets}
    joined = {name: join([plain[each] for each in names]) for name, names in made.items()}
    most = _maximum(joined)
    export = Export(source.experts, made, served, source.base.weights)
    with new_folder(output) as folder:
        for name, adapter in joined.items():
            write_uniform(adapter, folder / ADAPTERS / name, name, served)
        write_parts(source, folder, experts=False)
        write_json(folder / ROUTERS, _content(source, export, most))
        text = serving_text(output.name, served, made, most)
        (folder / "README.md").write_text(text, encoding="utf-8")
        seal(source, folder, without=("README.md",))
    return export


def _place(source: Source) -> str:
    """Return where the run has its base model."""
    place = str(source.settings.model["backbone"].settings.get("name_or_path", "tiny"))
    return str(TINY_PATH) if place == "tiny" else place


def _content(source: Source, export: Export, most: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        **made_of(source),
        "served_as": export.base,
        "max_lora_rank": most,
        "experts": list(export.experts),
        "adapters": {name: list(names) for name, names in export.adapters.items()},
    }


def _maximum(adapters: Mapping[str, Adapter]) -> int:
    """Return the smallest maximum rank of vLLM that holds all adapters."""
    name = max(adapters, key=lambda each: adapters[each].rank)
    rank = adapters[name].rank
    if rank > RANKS[-1]:
        raise ValueError(
            f"adapter {name} has rank {rank}, vLLM takes at most {RANKS[-1]}: merge it into plain "
            "weights with dmole merge"
        )
    return next(each for each in RANKS if each >= rank)


def _occurring(source: Source) -> list[tuple[str, ...]]:
    """Return the gate sets of several experts at the last evaluation, in the run's order."""
    path = source.run.folder / _ROUTING
    verify_files(source.run.folder, source.digests, _ROUTING.__eq__)
    found = {
        tuple(sorted(names, key=source.experts.index)) for names in _gate_sets(path, source.experts)
    }
    return sorted(found, key=lambda names: [source.experts.index(name) for name in names])


def _gate_sets(path: Path, experts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    rows = list(csv.DictReader(io.StringIO(read_text(path, "routing"))))
    try:
        tested = [row for row in rows if row["phase"] == "test"]
        last = max((int(row["stage"]) for row in tested), default=0)
        shown = [row["gate_set"] for row in tested if int(row["stage"]) == last]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the table of gate sets of a run") from error
    for text in shown:
        names = tuple(text.split("+"))
        if len(names) > 1 and set(names) <= set(experts) and len(set(names)) == len(names):
            yield names
