"""A base model of a stranger: its files are read as data, whatever they name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dmole.demo.tiny import TINY_PATH
from dmole.models import PretrainedBackbone


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = str(mark)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self._mark,)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Copy of the tiny model with a module that leaves a mark when it is imported."""
    folder = tmp_path / "base"
    folder.mkdir()
    for file in TINY_PATH.iterdir():
        shutil.copyfile(file, folder / file.name)
    mark = str(tmp_path / "PWNED")
    code = f"import os\nos.mkdir({mark!r})\n\n\nclass X:\n    pass\n"
    (folder / "evil.py").write_text(code, encoding="utf-8")
    return folder


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_are_refused_in_one_line(base: Path, zipped: bool) -> None:
    mark = base.parent / "PWNED"
    (base / "model.safetensors").unlink()
    if zipped:
        torch.save({"a": Code(mark)}, base / "pytorch_model.bin")
    else:
        (base / "pytorch_model.bin").write_bytes(pickle.dumps(Code(mark), protocol=2))
    with pytest.raises(ValueError, match="its weights are pickled with other objects") as error:
        PretrainedBackbone(str(base))
    assert "\n" not in str(error.value)
    assert not mark.exists()


def test_weights_that_are_pickled_tensors_alone_are_read(base: Path) -> None:
    expected = PretrainedBackbone(str(base)).fingerprint()
    from safetensors.torch import load_file

    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    assert PretrainedBackbone(str(base)).fingerprint() == expected


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("config.json", "AutoConfig"),
        ("config.json", "AutoModelForImageTextToText"),
        ("config.json", "AutoProcessor"),
        ("processor_config.json", "AutoProcessor"),
        ("preprocessor_config.json", "AutoImageProcessor"),
        ("tokenizer_config.json", "AutoTokenizer"),
    ],
)
def test_code_that_a_known_family_names_does_not_run(base: Path, file: str, name: str) -> None:
    code = ["evil.X", "evil.X"] if name == "AutoTokenizer" else "evil.X"
    edit(base / file, auto_map={name: code})
    PretrainedBackbone(str(base))
    assert not (base.parent / "PWNED").exists()


def test_a_family_of_custom_code_is_refused_with_the_flag(base: Path) -> None:
    edit(base / "config.json", auto_map={"AutoConfig": "evil.X"}, model_type="evil")
    with pytest.raises(ValueError, match=r"it contains custom code; --model\.backbone"):
        PretrainedBackbone(str(base))
    assert not (base.parent / "PWNED").exists()


def test_attention_code_on_the_hub_is_refused(base: Path) -> None:
    edit(base / "config.json", attn_implementation="evil/kernel")
    with pytest.raises(ValueError, match="attention code on the hub: evil/kernel"):
        PretrainedBackbone(str(base))


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('MARK') }}",
        "{{ messages.__class__ }}",
    ],
)
def test_a_chat_template_runs_in_a_sandbox(base: Path, text: str) -> None:
    mark = base.parent / "PWNED"
    (base / "chat_template.jinja").write_text(text.replace("MARK", str(mark)), encoding="utf-8")
    with pytest.raises(ValueError, match="base"):
        PretrainedBackbone(str(base))
    assert not mark.exists()
