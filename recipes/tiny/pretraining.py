"""A pretraining run: its two stages, its checkpoint and its output."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmole.demo.world.scenes import dense_labels
from dmole.demo.world.world import Scene
from recipes.tiny.architecture import (
    build_model,
    initialize,
    project_patches,
    to_pixel_values,
)
from recipes.tiny.bases import Base
from recipes.tiny.optimizers import make_optimizers, update
from recipes.tiny.packing import Packer, answer_loss, choose_questions
from recipes.tiny.processing import build_processor
from recipes.tiny.supervision import DenseHeads, GazeSupervision, dense_loss
from recipes.tiny.tokenizer import build_tokenizer

CHECKPOINT = "checkpoint.pt"
EXACT = "exact/"
"""Begins the names of the shares of exact answers by kind of question."""
EYE_SCALE = 0.3
DENSE_WEIGHT, GAZE_WEIGHT, COPY_SHARE = 0.3, 0.5, 0.6


class Pretraining:
    """Model, optimizers and progress of a run.

    Args:
        base: The base model to make.
        output: Folder of the checkpoint and of the finished model.
    """

    def __init__(self, base: Base, output: Path) -> None:
        self.base, self.world, self.settings, self.output = base, base.world, base.settings, output
        torch.manual_seed(self.settings.seed)
        self.tokenizer = build_tokenizer(self.world)
        self.model = build_model(len(self.tokenizer), base.shape)
        initialize(self.model, self.settings.seed, self.world.scene)
        self.heads = DenseHeads(self.tokenizer, self.world, base.shape.language_width)
        self.packer = Packer(self.tokenizer, self.world.extra_words)
        self.gaze = GazeSupervision(self.model)
        self.stage, self.step, self.cpu_seconds = "eye", 0, 0.0
        self.optimizers = self._optimizers()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the optimizers of the current stage; stage "eye" trains only eye and words."""
        named = [*self.model.named_parameters()]
        for name, parameter in named:
            is_eye = any(part in name for part in ("vision", "projector", "embed_tokens"))
            parameter.requires_grad_(is_eye or self.stage == "all")
        named += [(f"heads.{name}", p) for name, p in self.heads.named_parameters()]
        if self.stage == "eye":
            return make_optimizers(named, self.settings.eye_lr)
        return make_optimizers(named, self.settings.all_lr, vision_scale=EYE_SCALE)

    def _update(self, loss: Tensor, steps: int) -> None:
        """Make one optimizer step; the learning rate has a warm-up and a linear decay."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        update(self.optimizers, min(1.0, (self.step + 1) / 50) * (1 - self.step / steps))

    def _scenes(self, count: int) -> tuple[random.Random, list[Scene]]:
        """Return the scenes of this step; they depend only on seed, stage and step."""
        rng = random.Random(f"pretrain-{self.settings.seed}-{self.stage}-{self.step}")
        return rng, [self.world.scene(rng) for _ in range(count)]

    def train_eye(self) -> dict[str, float]:
        """Train one step on dense labels; return its figures."""
        _, scenes = self._scenes(self.settings.eye_batch)
        patches = project_patches(self.model, to_pixel_values([s.pixels for s in scenes]))
        words = self.model.get_input_embeddings().weight
        dense = dense_loss(self.heads, patches, words, _labels(scenes))
        self._update(dense.loss, self.settings.eye_steps)
        return {"color": dense.color, "class": dense.label, "edge": dense.edge}

    def train_all(self) -> dict[str, float]:
        """Train one step on packed questions, dense labels and gazes; return its figures."""
        rng, scenes = self._scenes(self.settings.all_batch)
        blocks = []
        for scene in scenes:
            chosen = choose_questions(rng, self.world.ask(rng, scene), self.settings.questions)
            row = [self.packer.block(question) for question in chosen]
            if rng.random() < COPY_SHARE:
                row.append(self.packer.copy_block(rng))
            blocks.append(row)
        packed = self.packer.pack(blocks)
        patches = project_patches(self.model, to_pixel_values([s.pixels for s in scenes]))
        words = self.model.get_input_embeddings().weight
        dense = dense_loss(self.heads, patches, words, _labels(scenes))
        answers = answer_loss(self.model, patches, packed)
        gaze = self.gaze.loss(packed.gazes)
        loss = answers.loss + DENSE_WEIGHT * dense.loss + GAZE_WEIGHT * gaze
        self._update(loss, self.settings.all_steps)
        return {
            "answer": answers.loss.item(),
            "gaze": gaze.item(),
            "color": dense.color,
            "class": dense.label,
            "edge": dense.edge,
            "exact": float(np.mean(list(answers.exact.values()))),
            **{f"{EXACT}{kind}": share for kind, share in answers.exact.items()},
        }

    def run(self) -> Iterator[dict[str, float]]:
        """Train both stages from the current step; yield the figures of each step."""
        stages = ("eye", self.settings.eye_steps), ("all", self.settings.all_steps)
        for stage, steps in stages[1:] if self.stage == "all" else stages:
            if stage != self.stage:
                self.stage, self.step = stage, 0
                self.optimizers = self._optimizers()
            while self.step < steps:
                started = time.process_time()
                figures = self.train_eye() if stage == "eye" else self.train_all()
                self.step += 1
                self.cpu_seconds += time.process_time() - started
                yield figures

    def _identity(self) -> dict[str, Any]:
        """Return what a checkpoint must share with the run that loads it."""
        return {"base": self.base.name, **asdict(self.base.shape), **asdict(self.settings)}

    def save_checkpoint(self) -> None:
        """Write the state that a later call needs to resume."""
        state = {
            "settings": self._identity(),
            "place": (self.stage, self.step, self.cpu_seconds),
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        partial = self.output / f"{CHECKPOINT}.part"
        torch.save(state, partial)
        partial.replace(self.output / CHECKPOINT)

    def load_checkpoint(self) -> None:
        """Resume from the checkpoint in the output folder.

        Raises:
            ValueError: If the checkpoint has different settings.
        """
        path = self.output / CHECKPOINT
        state = torch.load(path, weights_only=True)
        if state["settings"] != self._identity():
            raise ValueError(f"{path} was made with other settings: {state['settings']}")
        self.stage, self.step, self.cpu_seconds = state["place"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizers = self._optimizers()
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def save_model(self) -> Path:
        """Write the model in fp16 with its processor and a record of the run."""
        folder = self.output / "model"
        self.model.half().save_pretrained(folder)
        build_processor(self.tokenizer).save_pretrained(folder)
        record = self._identity() | {"cpu_seconds": round(self.cpu_seconds, 1)}
        (self.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        return folder


def _labels(scenes: Sequence[Scene]) -> Tensor:
    return torch.from_numpy(np.stack([dense_labels(scene) for scene in scenes]))
