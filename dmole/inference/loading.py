"""Loads a finished run, or a bundle of one, as a model that answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dmole.data.decoding import AS_STORED, ImageOptions
from dmole.inference.answering import AnsweringModel
from dmole.inference.hub import ADDRESS, fetch_bundle
from dmole.inference.joining import base_digest, keep_stage
from dmole.inference.model import RoutedModel
from dmole.inference.route_only import RouteOnly
from dmole.models.identity import base_parts
from dmole.models.placement import loading_on
from dmole.models.vision_cache import vision_store
from dmole.run.bundle import is_bundle, read_bundle
from dmole.run.export_file import Export
from dmole.run.identity import check_base_of_run, check_weights
from dmole.run.learned import load_experts_and_router
from dmole.run.loading import build_model_parts
from dmole.run.model_file import read_run_settings
from dmole.run.schema import RunSettings
from dmole.storage.reading import refusing
from dmole.storage.versions import updates_among


def load(
    path: str | Path,
    *,
    stage: int | None = None,
    device: str | torch.device = "cpu",
    base: str | Path | None = None,
    trusted: Sequence[str] = (),
    trust_remote_code: bool = False,
    accept_changes: bool = False,
    verify_base: bool | None = None,
    cache_vision: str = "off",
    cache_vision_bytes: int = 2**32,
    cache_vision_folder: str | None = None,
) -> RoutedModel:
    """Return the model of a finished run or of a bundle, ready to answer.

    Nothing that the folder names is executed; see the page "What is trusted".

    Args:
        path: Folder of the run, folder of a bundle, or ``hf://org/name[@revision]``.
        stage: Leaves out the experts of later stages, so that the model answers as after this one;
            0 is before training. None keeps all.
        device: Device of base model and experts.
        base: Folder or hub name of the base model, if it is no longer where the run had it. Its
            parts are compared with those of the run.
        trusted: Modules outside dmole whose classes the run may name.
        trust_remote_code: Whether code in the folder of the base model may run.
        accept_changes: Whether tokenizer, prompts, image processing and generation of the base
            model may differ from those of the run, and its weights if they are compared.
        verify_base: Whether the SHA-256 of the base model's weights is compared, which reads all
            of them once. None compares them for a bundle, whose base model comes from elsewhere.
        cache_vision: Whether outputs of the vision encoder are kept by image for later prompts:
            ``off``, ``ram`` or ``disk``, see :class:`~dmole.ContinualModule`.
        cache_vision_bytes: Number of bytes that are kept.
        cache_vision_folder: The folder for ``disk``; None takes ``vision`` in ``DMOLE_CACHE``.

    Raises:
        ValueError: If the folder lacks a part, a part does not fit or was changed, or the base
            model differs from that of the run; names file and key.
        ValueError: If there is no such stage, or a later one has trained its experts further.

    Example:
        >>> import dmole
        >>> dmole.load("runs/none/version_0")
        Traceback (most recent call last):
        ValueError: runs/none/version_0 is no run folder: it has neither model.json nor config.yaml
    """
    store = vision_store(cache_vision, cache_vision_bytes, cache_vision_folder)
    folder = fetch_bundle(str(path)) if str(path).startswith(ADDRESS) else Path(path)
    bundled = is_bundle(folder)
    weights = read_bundle(folder)[0].weights if bundled else base_digest(folder)
    if verify_base and weights is None:
        raise ValueError(
            f"{folder / 'metrics.json'} has no fingerprint of the base model: verify_base=True has "
            "nothing to compare its weights with"
        )
    settings = _settings(folder, base, trusted, trust_remote_code)
    with loading_on(device):
        parts = build_model_parts(settings, trusted, trust_remote_code=trust_remote_code)
    try:
        model = RoutedModel(
            **_arguments(parts, settings), images=image_options(settings), store=store
        )
    except ValueError as error:
        raise ValueError(f"{settings.path}: {error}") from error
    verified = bundled if verify_base is None else verify_base
    _check_base(model, folder, weights if verified else None, accept_changes)
    load_experts_and_router(model, folder)
    model.base_digest = weights
    model.sources = {name: folder / "experts" / name for name in model.experts}
    if stage is not None:
        keep_stage(model, folder, stage)
    return model.to(device)


def load_router(
    folder: Path,
    export: Export,
    *,
    device: str | torch.device = "cpu",
    base: str | Path | None = None,
    trusted: Sequence[str] = (),
    trust_remote_code: bool = False,
    accept_changes: bool = False,
) -> RouteOnly:
    """Return the base model and the router of an export, which choose experts without having them.

    Args:
        folder: Made by ``dmole export``; its files are verified.
        export: What its ``routers.json`` says.
        device: Device of the base model.
        base: Folder or hub name of the base model. Its weights are compared, as for a bundle.
        trusted: Modules outside dmole whose classes the run may name.
        trust_remote_code: Whether code in the folder of the base model may run.
        accept_changes: Whether the base model may differ.

    Raises:
        ValueError: If a part does not fit, or the base model differs; names file and key.
    """
    settings = _settings(folder, base, trusted, trust_remote_code)
    with loading_on(device):
        parts = build_model_parts(settings, trusted, trust_remote_code=trust_remote_code)
    try:
        model = RouteOnly(
            export.experts, **_arguments(parts, settings), images=image_options(settings)
        )
    except ValueError as error:
        raise ValueError(f"{settings.path}: {error}") from error
    _check_base(model, folder, export.weights, accept_changes)
    with refusing(folder / "router", "router"):
        model.router.load(folder / "router")
    model.router.updates = updates_among(model.experts, model.router.updates)
    return model.to(device)


def _settings(
    folder: Path, base: str | Path | None, trusted: Sequence[str], trust_remote_code: bool
) -> RunSettings:
    settings = read_run_settings(folder, trusted)
    if base is not None:
        settings = _with_base(settings, str(base))
    if settings.remote_code and not trust_remote_code:
        raise ValueError(
            f"{settings.path} sets trust_remote_code, which runs code of its base model: confirm "
            "it with trust_remote_code=True"
        )
    return settings


def _arguments(parts: Mapping[str, Any], settings: RunSettings) -> dict[str, Any]:
    """Return the arguments of a model that answers."""
    return {
        "backbone": parts["backbone"],
        "router": parts["router"],
        "beams": parts.get("beams", 1),
        "generation": parts.get("generation"),
        "max_length": settings.data.get("max_length"),
        "precision": settings.trainer.get("precision") or "32-true",
    }


def _check_base(model: AnsweringModel, folder: Path, weights: str | None, accept: bool) -> None:
    """Refuse another base model than that of a run, bundle or export.

    Args:
        model: Has the base model.
        folder: The run, bundle or export.
        weights: SHA-256 of its weights; None does not compare them.
        accept: Whether changes are accepted, with a warning each.
    """
    accept_by = "accept_changes=True (--accept_changes)"
    if weights is not None:
        check_weights(folder, weights, model.backbone.fingerprint(), accept, accept_by)
    current = {"base_parts": base_parts(model.backbone, model.beams)}
    check_base_of_run(folder, current, accept, accept_by)


def _with_base(settings: RunSettings, base: str) -> RunSettings:
    """Return the settings with another place of the base model."""
    backbone = settings.model["backbone"]
    arguments: dict[str, Any] = {**backbone.settings, "name_or_path": base}
    model = {**settings.model, "backbone": replace(backbone, settings=arguments)}
    return replace(settings, model=model)


def image_options(settings: RunSettings) -> ImageOptions:
    """Return how the images of a run become RGB pictures."""
    values = settings.data.get("images")
    return AS_STORED if values is None else ImageOptions(**values)
