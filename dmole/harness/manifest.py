"""Registers runs as a model of lmms-eval, through the entry point group ``lmms_eval.models``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Return what lmms-eval needs to find the model ``dmole``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="dmole", chat_class_path="dmole.harness._lmms_model.DmoleModel")
