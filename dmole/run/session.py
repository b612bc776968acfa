"""The session of a process in a run: connects processes, opens the run folder, ends the run."""

from __future__ import annotations

import functools
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from dmole.data.workers import explain_lost_worker
from dmole.run.agreement import DisagreementError, check_start
from dmole.run.arguments import check_launched
from dmole.run.checkpoint_file import peek_checkpoint
from dmole.run.child import find_extension
from dmole.run.extending import Inheritance, RunPlan, inheritance
from dmole.run.lightning_private import cluster_environment, signal_processes, start_processes
from dmole.run.opening import Opening, agree_on_opening, decide_opening, find_checkpoint
from dmole.run.peers import PeerWatch, watch_children
from dmole.run.run_folder import LAST, RunLock
from dmole.run.signals import Interrupted, requeue
from dmole.storage.reading import refusing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState


class Session:
    """Connects the processes of a run, opens its folder, and ends all of them together.

    Args:
        state: State of the sequence in this process.
        name: Name of the run.
        version: Number of the run folder; None for the next free one.
    """

    def __init__(self, state: SequenceState, name: str, version: int | None) -> None:
        self._state = state
        self._peers = PeerWatch(self._advice)
        state.interruption.advice = self._advice
        self._name = name
        self._version = version
        self._lock: RunLock | None = None
        self._is_open = False

    @contextmanager
    def opened(
        self, module: ContinualModule, ckpt_path: str | None, prepare: Callable[[], None]
    ) -> Iterator[Path | None]:
        """Lock the run folder and yield the checkpoint to resume from, None for a new run.

        Args:
            module: The module, which the strategy needs to connect the processes.
            ckpt_path: See :func:`dmole.run.opening.decide_opening`.
            prepare: Refuses invalid input; called before any file is written.

        Raises:
            Interrupted: If a signal requested the end of the run; states stage and phase.
            PeerError: If another process failed.
        """
        trainer, interruption = self._state.trainer, self._state.interruption
        strategy, environment = trainer.strategy, cluster_environment(trainer)
        with interruption.handled(environment, functools.partial(signal_processes, trainer)):
            try:
                prepare()
                interruption.check(strategy)
                opening = self._connect_and_open(module, ckpt_path)
                if self._state.is_global_zero:
                    self._lock = RunLock(opening.run)
                    self._lock.acquire()
                yield opening.checkpoint
                strategy.barrier()  # another process may still need this one
                self._peers.stop()
            except Interrupted as stop:
                ended = self._ended(stop)
                strategy.barrier()  # the launcher may end all processes once one has ended
                self._peers.stop()
                raise ended from None
            except DisagreementError:
                self._peers.stop()  # it is raised on all ranks
                raise
            except Exception as error:
                cause = self._peers.announce(explain_lost_worker(error))
                signal_processes(trainer, signal.SIGKILL)  # they may hang, waiting for this one
                raise cause from (None if cause is error else error)
            finally:
                if self._lock is not None:
                    self._lock.release()

    def keep_lock(self) -> None:
        """Lock the run folder again if it was deleted; see :meth:`RunLock.keep`."""
        if self._lock is not None:
            self._lock.keep()

    def _connect_and_open(self, module: ContinualModule, ckpt_path: str | None) -> Opening:
        """Agree on run folder and checkpoint with all processes; start them if necessary."""
        trainer = self._state.trainer
        check_launched(trainer.num_devices, trainer.num_nodes)
        if not hasattr(trainer.strategy, "cluster_environment"):
            return self._open(module, ckpt_path)  # a single process
        if isinstance(cluster_environment(trainer), LightningEnvironment):
            if trainer.num_nodes > 1:
                raise ValueError("several nodes need torchrun or SLURM to start the processes")
            opening = self._open(module, ckpt_path)  # the processes that start next receive it
            self._connect(module, start_processes(trainer))
            return opening
        self._connect(module)
        return self._open(module, ckpt_path)

    def _connect(
        self, module: ContinualModule, children: Sequence[subprocess.Popen[Any]] = ()
    ) -> None:
        """Connect all ranks; a signal or the loss of a child ends this process meanwhile."""
        connected = watch_children(children)
        with self._state.interruption.immediate():
            self._state.strategy.connect(module)
            self._state.strategy.setup_environment()
            self._peers.start(children)
        connected()
        check_start(self._state, module)

    def inheritance(self, ckpt_path: str | None) -> Inheritance:
        """Return what this run takes over from a finished run, before its folder is open.

        Raises:
            ValueError: If there is no such checkpoint, or its tasks are not the first ones of this
                run; names one.
        """
        root = Path(self._state.trainer.default_root_dir)
        file = find_checkpoint(root, self._name, self._version, ckpt_path)
        if file is None:
            return Inheritance()
        with refusing(file, "checkpoint"):
            return inheritance(peek_checkpoint(file), RunPlan.of(self._state), file)

    def _open(self, module: ContinualModule, ckpt_path: str | None) -> Opening:
        """Agree on run folder and checkpoint, and make the folder the run folder."""
        trainer = self._state.trainer
        root = Path(trainer.default_root_dir)

        def decide() -> Opening:
            find = functools.partial(find_extension, self._state, module)
            return decide_opening(root, self._name, self._version, ckpt_path, find)

        opening = agree_on_opening(cluster_environment(trainer), decide, trainer.global_rank)
        self._state.write_to(opening.run)
        self._is_open = True
        return opening

    def _ended(self, stop: Interrupted) -> Interrupted:
        """Return an interruption that states stage and phase of the run."""
        state, environment = self._state, cluster_environment(self._state.trainer)
        if not state.is_global_zero:
            # Lightning treats another exit status of a process that it started as a failure
            started = isinstance(environment, LightningEnvironment)
            return Interrupted(stop.signum, "", 0 if started else None)
        stage, name = state.stage, signal.Signals(stop.signum).name
        if not self._is_open:
            return Interrupted(stop.signum, f"ended by {name} before anything was trained")
        position = f"stage {stage.index}/{len(state.plan)} {stage.name}, {state.phase}"
        requeued = requeue(environment, stop.signum)
        advice = requeued or self._advice()
        return Interrupted(stop.signum, f"ended by {name} in {position}; {advice}")

    def _advice(self) -> str:
        """Return how to resume the run; empty if nothing has been saved."""
        run = self._state.run_dir
        return f"resume with --ckpt_path {run}" if self._is_open and (run / LAST).is_file() else ""
