"""A module and its data are built from the settings of a run, without any config."""

from __future__ import annotations

from pathlib import Path

import pytest
from strangers import edit_model, old_config

from dmole.data.decoding import ImageOptions
from dmole.routing import BranchMixing, CommonExpertRouter, KeyRouter
from dmole.run.loading import build_data, build_module
from dmole.run.model_file import read_run_settings, write_model_file
from dmole.run.parts import Part, replace_parts
from dmole.streams import ReplayStream


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the settings of a finished run."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_model_file(folder, old_config())
    return folder


def test_module_and_data_are_built_from_the_file_alone(run: Path) -> None:
    edit_model(run, "model.backbone.settings.patterns", {"linears": "self_attn"})
    gate = {"kind": "BranchMixing", "settings": {"top_k": 1}}
    router = {"router": {"kind": "KeyRouter", "settings": {}}, "mixing": gate, "common": "c"}
    edit_model(run, "model.router", {"kind": "CommonExpertRouter", "settings": router})
    edit_model(run, "data.tasks.0.metric", {"kind": "IoU", "settings": {"threshold": 0.25}})
    edit_model(run, "data.tasks.0.images", {"background": None, "apply_exif": True})
    settings = read_run_settings(run)
    module = build_module(settings)
    assert isinstance(module.router, CommonExpertRouter)
    assert isinstance(module.router.router, KeyRouter)
    assert isinstance(module.router.mixing, BranchMixing)
    assert all("self_attn" in path for path in module.backbone.linear_shapes())
    data = build_data(settings)
    assert data.task_names == ["count", "read", "find"]
    assert data.tasks[0].metric.threshold == 0.25  # type: ignore[union-attr]
    assert data.tasks[0].images == ImageOptions(apply_exif=True)
    assert settings.model["backbone"].settings["patterns"] == {"linears": "self_attn"}


def test_a_value_out_of_range_is_named_with_its_file(run: Path) -> None:
    edit_model(run, "model.router.settings.quantile", 7)
    with pytest.raises(ValueError, match=r"model\.json: quantile must be in"):
        build_module(read_run_settings(run))
    edit_model(run, "data.tasks.0.name", "../x")
    with pytest.raises(ValueError, match=r"model\.json: task name '\.\./x'"):
        build_data(read_run_settings(run))


def test_a_trusted_class_must_be_defined_where_it_is_trusted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "from fractions import Fraction\nfrom dmole.routing import SharedRouter\n"
        "class Own(SharedRouter):\n    pass\n"
    )
    (tmp_path / "own_parts_of_a_user.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    trusted = ("own_parts_of_a_user",)
    edit_model(
        run, "model.router", {"kind": "own_parts_of_a_user.Own", "settings": {"expert": "a"}}
    )
    module = build_module(read_run_settings(run, trusted), trusted)
    assert type(module.router).__name__ == "Own"
    edit_model(run, "model.router", {"kind": "own_parts_of_a_user.Fraction", "settings": {}})
    with pytest.raises(ValueError, match="is defined in fractions, which is not trusted"):
        build_module(read_run_settings(run, trusted), trusted)


def test_parts_within_parts_are_replaced_first() -> None:
    value = {"a": [Part("Outer", {"b": Part("Inner", {"c": 1})})]}
    made = replace_parts(value, lambda kind, settings: (kind, settings))
    assert made == {"a": [("Outer", {"b": ("Inner", {"c": 1})})]}
    replay = Part("ReplayStream", {"buffer_size": 4})
    assert isinstance(replace_parts(replay, lambda _, each: ReplayStream(**each)), ReplayStream)
