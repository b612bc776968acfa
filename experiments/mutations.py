"""Damages files of a run in place: bytes, values, kinds of files, and attempts to execute."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import random
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from dmole.run.checkpoint_file import save_checkpoint
from dmole.storage.tensors import write_tensor_file
from experiments.odd_values import TENSORS, VALUES, altered

Mutation = Callable[[random.Random, Path], None]


def execution(marker: Path) -> dict[str, Any]:
    """Return settings that create a file where they are instantiated."""
    arguments = {"args": ["touch", str(marker)]}
    return {"class_path": "subprocess.Popen", "init_args": arguments}


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._marker}",)


# -- kinds of files ----------------------------------------------------------------------------


def flip_bytes(rng: random.Random, path: Path) -> None:
    """Change a few bytes."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 3, 30]) if content else 0):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)


def resize(rng: random.Random, path: Path) -> None:
    """Cut a file, or append to it, up to a terabyte that takes no space."""
    size = path.stat().st_size
    os.truncate(path, rng.choice([0, 1, size // 2, max(size - 1, 0), size + 1, 1 << 40]))


def other_kind(rng: random.Random, path: Path) -> None:
    """Put something else in place of a file: a pipe, a device, a folder, a loop, nothing."""
    path.unlink()
    kind = rng.randrange(6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(path.name)
    elif kind == 3:
        path.symlink_to(rng.choice(["/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem"]))
    elif kind == 4:
        path.symlink_to("nowhere")
    elif kind == 5:
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(path.parent)  # the path of a socket is short
            server.bind(path.name)
            os.chdir(here)


def exchange(rng: random.Random, path: Path) -> None:
    """Copy another file of the run over this one."""
    files = [file for file in sorted(path.parent.parent.rglob("*")) if file.is_file()]
    same = [file for file in files if file.suffix == path.suffix]
    other = rng.choice(same if same and rng.random() < 0.8 else files)
    if other != path:
        shutil.copyfile(other, path)


def bomb(rng: random.Random, path: Path) -> None:
    """Write a short text that takes much time or memory to read."""
    doubling = "l0: &l0 [x]\n" + "".join(
        f"l{i}: &l{i} [*l{i - 1}, *l{i - 1}]\n" for i in range(1, 40)
    )
    texts = [
        "[" * 200_000,
        '{"a":' * 200_000,
        "a: " + "[" * 5000,
        "9" * 10_000_000,
        doubling,
    ]
    path.write_text(
        rng.choice([*texts, "a: &a [*a]", "a" * 20_000_000, "," * 1_000_000, "\0" * 1000])
    )


# -- contents ----------------------------------------------------------------------------------


def change_json(rng: random.Random, path: Path) -> None:
    """Change values of a JSON file."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(altered(rng, content)))


def change_lines(rng: random.Random, path: Path) -> None:
    """Change values of one line of JSON lines, or repeat, remove or reorder lines."""
    lines = path.read_text().splitlines()
    index = rng.randrange(len(lines))
    if rng.random() < 0.3:
        lines[index : index + 1] = [lines[index]] * rng.choice([0, 2])
    else:
        lines[index] = json.dumps(altered(rng, json.loads(lines[index])))
    path.write_text("".join(f"{line}\n" for line in lines))


def change_yaml(rng: random.Random, path: Path) -> None:
    """Change values of a YAML file, also to a class whose instance runs a command."""
    content = yaml.safe_load(path.read_text())
    attack = execution(path.parent / "executed")
    changed = altered(rng, content, [attack, [attack]])
    path.write_text(json.dumps(changed), encoding="utf-8")  # JSON is YAML


def change_csv(rng: random.Random, path: Path) -> None:
    """Change a cell of a table, or repeat or remove a row."""
    rows = list(csv.reader(io.StringIO(path.read_text())))
    row = rng.randrange(len(rows))
    if rng.random() < 0.3:
        rows[row : row + 1] = [rows[row]] * rng.choice([0, 2])
    else:
        rows[row][rng.randrange(len(rows[row]))] = str(rng.choice(VALUES))
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8", errors="replace")


def change_tensors(rng: random.Random, path: Path) -> None:
    """Change a safetensors file: its tensors, or names, types, shapes, offsets of its header."""
    if rng.random() < 0.4:
        tensors = altered(rng, load_file(path), TENSORS)
        # a tensor may stand under two names now, which the format does not take
        write_tensor_file(path, {name: tensor.clone() for name, tensor in tensors.items()})
        return
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = altered(rng, json.loads(content[8 : 8 + length]))
    kinds = ["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64"]
    if rng.random() < 0.3 and isinstance(header, dict):
        for entry in header.values():
            if isinstance(entry, dict) and "dtype" in entry:
                entry["dtype"] = rng.choice(kinds)
    text = json.dumps(header).encode()
    stated = rng.choice([len(text)] * 6 + [0, 1, 2**63, 2**40])
    path.write_bytes(struct.pack("<Q", stated) + text + content[8 + length :])


def change_checkpoint(rng: random.Random, path: Path) -> None:
    """Change values of a checkpoint and renew its digest, or put an object in it that acts."""
    attack = Touch(path.parent / "executed")
    content = torch.load(path, map_location="cpu", weights_only=True)
    content.pop("sha256", None)
    kind = rng.random()
    if kind < 0.1:
        path.write_bytes(pickle.dumps(attack))
    elif kind < 0.2:
        torch.save(altered(rng, content, [attack]), path)
    else:
        save_checkpoint(altered(rng, content, TENSORS), path)


_OF_ANY: tuple[Mutation, ...] = (flip_bytes, resize, other_kind, exchange, bomb)
_BY_SUFFIX: dict[str, Mutation] = {
    ".json": change_json,
    ".jsonl": change_lines,
    ".yaml": change_yaml,
    ".csv": change_csv,
    ".safetensors": change_tensors,
    ".ckpt": change_checkpoint,
}


def mutate(rng: random.Random, path: Path) -> str:
    """Damage a file and return the name of the mutation."""
    by_suffix = _BY_SUFFIX.get(path.suffix)
    mutation = by_suffix if by_suffix and rng.random() < 0.7 else rng.choice(_OF_ANY)
    mutation(rng, path)
    return mutation.__name__
