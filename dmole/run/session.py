"""One process's part in a run: who else takes part, which folder is ours, how it all ends."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from dmole.run.opening import Opening, agree_on_opening, decide_opening
from dmole.run.peers import PeerWatch
from dmole.run.run_folder import RunLock
from dmole.run.signals import Interrupted, Interruption, requeue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dmole.module import ContinualModule
    from dmole.trainer import ContinualTrainer


class Session:
    """Connects the processes of a run, opens its folder, and ends all of them together.

    Args:
        trainer: The trainer of this process.
        name: Name of the run.
        version: Number of the run folder, None for the next free one.
    """

    def __init__(self, trainer: ContinualTrainer, name: str, version: int | None) -> None:
        self.interruption = Interruption()
        self.peers = PeerWatch()
        self._trainer = trainer
        self._name = name
        self._version = version
        self._lock: RunLock | None = None
        self._is_open = False

    @contextmanager
    def opened(
        self, model: ContinualModule, ckpt_path: str | None, prepare: Callable[[], None]
    ) -> Iterator[Path | None]:
        """Yield the checkpoint to go on from, in a folder that no other run writes to.

        Args:
            model: What the processes work on.
            ckpt_path: See :func:`dmole.run.opening.decide_opening`.
            prepare: Refuses what cannot work; called before anything is written.

        Raises:
            Interrupted: If a signal asked the run to end; says where it stands.
            PeerError: If another process failed.
        """
        strategy = self._trainer.strategy
        with self.interruption.handled(self._environment, self._signal_children):
            try:
                prepare()
                self.interruption.check(strategy)
                opening = self._connect_and_open(model, ckpt_path)
                if self._trainer.is_global_zero:
                    self._lock = RunLock(opening.run)
                    self._lock.acquire()
                yield opening.checkpoint
                strategy.barrier()  # nobody leaves while another may need us
                self.peers.stop()
            except Interrupted as stop:
                ended = self._ended(stop)
                strategy.barrier()  # the launcher may end all of us once one has left
                self.peers.stop()
                raise ended from None
            except Exception as error:
                cause = self.peers.announce(error)
                self._signal_children(signal.SIGKILL)  # they may hang, waiting for us
                raise cause from (None if cause is error else error)
            finally:
                if self._lock is not None:
                    self._lock.release()

    def _connect_and_open(self, model: ContinualModule, ckpt_path: str | None) -> Opening:
        """Agree on run folder and checkpoint with all processes, starting them if need be."""
        trainer, environment = self._trainer, self._environment
        if not hasattr(trainer.strategy, "cluster_environment"):
            return self._open(ckpt_path)  # a single process
        if isinstance(environment, LightningEnvironment):
            if trainer.num_nodes > 1:
                raise ValueError("several nodes need torchrun or SLURM to start the processes")
            opening = self._open(ckpt_path)  # handed over to the processes we start
            launcher = trainer.strategy.launcher
            if launcher is not None:
                launcher.launch(lambda: None, trainer=trainer)
            self._connect(model)
            return opening
        self._connect(model)
        return self._open(ckpt_path)

    def _connect(self, model: ContinualModule) -> None:
        self._trainer.strategy.connect(model)
        self._trainer.strategy.setup_environment()
        self.peers.start()

    def _open(self, ckpt_path: str | None) -> Opening:
        """Agree on run folder and checkpoint, and write there from now on."""
        root = Path(self._trainer.default_root_dir)

        def decide() -> Opening:
            return decide_opening(root, self._name, self._version, ckpt_path)

        opening = agree_on_opening(self._environment, decide, self._trainer.global_rank)
        self._trainer.write_to(opening.run)
        self._is_open = True
        return opening

    @property
    def _environment(self) -> Any:
        """Lightning's cluster environment: SLURM's, torchrun's, or its own."""
        return self._trainer._accelerator_connector.cluster_environment

    def _signal_children(self, signum: int) -> None:
        """Send a signal to the processes that we have started."""
        launcher = self._trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.Signals(signum))

    def _ended(self, stop: Interrupted) -> Interrupted:
        """Return an interruption that says where the run stands."""
        trainer = self._trainer
        if not trainer.is_global_zero:
            # Lightning takes another status of a process it started for a fault
            started_by_us = isinstance(self._environment, LightningEnvironment)
            return Interrupted(stop.signum, "", 0 if started_by_us else None)
        stage, name = trainer.current_stage, signal.Signals(stop.signum).name
        if not self._is_open:
            return Interrupted(stop.signum, f"ended by {name} before anything was trained")
        where = f"stage {stage.index}/{len(trainer.plan)} {stage.name}, {trainer.phase}"
        done = requeue(self._environment, stop.signum)
        then = done or f"go on with --ckpt_path {trainer.run_dir}"
        return Interrupted(stop.signum, f"ended by {name} in {where}; {then}")
