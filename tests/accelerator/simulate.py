"""Runs whole sequences on the fake accelerator and writes what it saw of each as JSON.

python simulate.py FOLDER CASES, where CASES is a JSON list of ``[method, family, ranks]``. Ranks of
zero run on the CPU, for comparison.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from families.saved import save_family
from method_runs import STEPS, Builder, Built
from PIL import Image
from run_digests import run_digests
from two_ranks import become_rank, free_port

from dmole.callbacks import ContinualCallback
from dmole.models.embedder import sample_keys
from dmole.module import ContinualModule
from dmole.predictor import Predictor
from dmole.routing import GenerativeRouter
from dmole.run.context import EvaluationPass
from dmole.run.signals import Interrupted
from experiments.gpu.common import Setting
from experiments.gpu.syncs import tiny_batch

Case = tuple[str, str, int]
"""Method, family, number of ranks."""


@dataclass
class Seen:
    """What a case showed.

    Args:
        error: The error that ended it, with its place.
        digests: Digests of the files of the run.
        steps: Waits of each training step, by line.
        decode: Waits of two decoded tokens, by line.
        copied: Bytes from the host to the device, by phase.
        moves: Copies of the whole base model between host and device, by phase.
        collectives: Operations of several ranks by name, place of their tensors, and line.
    """

    error: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    steps: list[dict[str, int]] = field(default_factory=list)
    decode: dict[str, int] = field(default_factory=dict)
    copied: Counter[str] = field(default_factory=Counter)
    moves: Counter[str] = field(default_factory=Counter)
    collectives: dict[str, int] = field(default_factory=dict)


class OnFake(Builder):
    """Builds runs for the fake accelerator."""

    def place(self, trainer: Any, ranks: int) -> None:
        from lightning_device import strategy

        trainer.accelerator, trainer.strategy = "auto", strategy(ranks)
        trainer.devices = ranks
        trainer.inference_mode = False  # torch has none for tensors of Python


class Stop(ContinualCallback):
    """Ends the run after a step as a job scheduler does."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self._step and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)


class StepWaits(ContinualCallback):
    """Keeps the waits of each training step."""

    def __init__(self, waited: Counter[str], steps: list[dict[str, int]]) -> None:
        self._waited, self._steps = waited, steps

    def on_train_batch_start(self, *_: Any) -> None:
        self._waited.clear()

    def on_train_batch_end(self, *_: Any) -> None:
        self._steps.append(dict(self._waited))


class Simulation:
    """One case on the fake accelerator, in the process that has it."""

    def __init__(self, builder: Builder, root: Path, base: Path, case: Case) -> None:
        import fake_accelerator

        self._fake, self._builder, self._root, self._base = fake_accelerator, builder, root, base
        self._method, _, self._ranks = case
        self._phase: Callable[[], str] = lambda: "load"
        self._base_shape: tuple[int, ...] = ()
        self.seen = Seen()

    def run(self) -> Seen:
        """Learn with an interruption, evaluate again, answer prompts."""
        fake = self._fake
        fake.COLLECTIVES.clear()
        fake.COPIED[:] = [self._note]
        with fake.OnDevice():
            built = self._learned()
            self.seen.digests = run_digests(built.trainer.run_dir)
            self._phase = lambda: "decode"
            if self._ranks == 1:
                self.seen.decode = self._waits_of_tokens(built.module)
            self._evaluate(built.trainer.run_dir)
            if self._ranks == 1:
                self._answer(built.trainer.run_dir)
        self.seen.collectives = dict(fake.COLLECTIVES)
        return self.seen

    def _build(self, name: str = "run", **options: Any) -> Built:
        built = self._builder.build(
            self._root / name, self._base, self._method, ranks=self._ranks, **options
        )
        self._phase = lambda: built.trainer.sequence.phase
        self._base_shape = tuple(_embedding(built.module).shape)
        return built

    def _learned(self) -> Built:
        """Return a run that was cut in its second stage and resumed."""
        waits = StepWaits(self._fake.WAITED, self.seen.steps)
        cut = self._build()
        cut.trainer.callbacks[:0] = [waits, Stop(STEPS + 1)]  # before a checkpoint is written
        try:
            cut.fit()
        except Interrupted:
            resumed = self._build()
            resumed.trainer.callbacks.insert(0, waits)
            resumed.fit("auto")
            return resumed
        return cut

    def _waits_of_tokens(self, module: ContinualModule) -> dict[str, int]:
        module.eval().to(self._fake.DEVICE)
        prompts = tiny_batch(Setting("cpu", Path()), module, 2, train=False).to(self._fake.DEVICE)

        # a router that asks the model is asked before, as in an evaluation
        asks = isinstance(module.router, GenerativeRouter)
        plan = dict.fromkeys(sample_keys(prompts), module.experts[:1]) if asks else {}

        def waits(tokens: int) -> Counter[str]:
            module.evaluation = EvaluationPass(gate_sets=plan, answer_lengths={"count": tokens})
            self._fake.WAITED.clear()
            with torch.no_grad():
                module.answer(prompts)
            return Counter(self._fake.WAITED)

        waits(1)  # embeds the prompts
        few, more = waits(1), waits(3)
        return dict(more - few)

    def _evaluate(self, run: Path) -> None:
        built = self._build("again")
        output = self._root / "evaluated"
        built.trainer.evaluate(built.module, built.data, run=run, output=output)

    def _answer(self, run: Path) -> None:
        built = self._build("asked")
        predictor = Predictor(built.module, built.data, run)
        built.module.to(self._fake.DEVICE)
        image = self._root / "image.png"
        Image.new("RGB", (24, 16), "red").save(image)
        prompt = {"prompt": "what color is it?", "image": image}
        (answer,) = predictor([prompt], max_new_tokens=2)
        assert answer["gate_set"]

    def _note(self, copy: Any) -> None:
        phase = self._phase()
        if copy.upload:
            self.seen.copied[phase] += copy.nbytes
        if copy.shape == self._base_shape:
            self.seen.moves[f"{phase} {'up' if copy.upload else 'down'}"] += 1


def _embedding(module: ContinualModule) -> torch.Tensor:
    return module.backbone.model.get_input_embeddings().weight


def on_cpu(builder: Builder, root: Path, base: Path, case: Case) -> Seen:
    """Return the digests of a run without interruption on the CPU."""
    built = builder.build(root / "run", base, case[0], ranks=case[2] or 1)
    return Seen(digests=run_digests(built.fit()))


def work(builder: Builder, folder: Path, cases: Iterable[Case], rank: int, port: str) -> None:
    """Run cases one after another and write what each showed."""
    warnings.filterwarnings("ignore")
    if port:
        become_rank(rank, port)
    for case in cases:
        name = "_".join(map(str, case))
        torch.manual_seed(0)
        try:
            base = folder / "models" / case[1]
            if case[2]:
                seen = Simulation(builder, folder / name, base, case).run()
            else:
                seen = on_cpu(builder, folder / name, base, case)
        except Exception as error:
            traceback.print_exc()
            seen = Seen(error=f"{type(error).__name__}: {error} {_places(error)}")
        (folder / f"{name}_rank{rank}.json").write_text(json.dumps(vars(seen)))


def _places(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    names = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
    return " < ".join(reversed(names[-6:]))


def main(folder: Path, cases: list[Case]) -> None:
    """Start a process for the CPU, one for the device alone, and two for two ranks."""
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # nobody pulls the plug
    for family in {family for _, family, _ in cases}:
        save_family(family, folder / "models" / family)
    plain, fake = Builder(), OnFake()
    context = multiprocessing.get_context("fork")  # nothing is imported again
    processes = []
    for ranks in (0, 1, 2):
        chosen = [case for case in cases if case[2] == ranks]
        port = free_port() if ranks == 2 else ""
        for rank in range(max(ranks, 1)) if chosen else ():
            arguments = (fake if ranks else plain, folder, chosen, rank, port)
            processes.append(context.Process(target=work, args=arguments))
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [(m, f, r) for m, f, r in json.loads(sys.argv[2])])
