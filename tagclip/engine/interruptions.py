"""Hooks of a training that is interrupted and goes on: by a signal, a full disk, a kill."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, get_event_storage
from fvcore.common.checkpoint import Checkpointer

from tagclip.checkpoint.folder import write_durably
from tagclip.errors import CheckpointError
from tagclip.utils.stopping import STOPPING, Stopped, leave_terminal

__all__ = ["PatientWriter", "SavedAndStopped", "interruptible", "part_of_more", "stop_listening"]

logger = logging.getLogger(__name__)

# What comes behind the checkpoints: an evaluation that fails can be repeated.
_AFTER = (EvalHook, PeriodicWriter)
# detectron2's writers report medians over so many steps.
_WINDOW = 20


def interruptible(hooks: list[HookBase], checkpointer: Checkpointer, period: int) -> list[HookBase]:
    """Add and replace the hooks that let a training be interrupted.

    Args:
        hooks: detectron2's.
        checkpointer: with a method ``probe``, see `TagCLIPCheckpointer`.
        period: iterations between two checkpoints.
    """
    # detectron2 has a checkpointer in the main process only, but to a checkpoint all have to give.
    hooks = [hook for hook in hooks if not isinstance(hook, PeriodicCheckpointer)]
    place = next((i for i, hook in enumerate(hooks) if isinstance(hook, _AFTER)), len(hooks))
    hooks.insert(place, PatientCheckpointer(checkpointer, period))
    return [RecentScalars(), *hooks, StopOnSignal(checkpointer)]


def stop_listening(hooks: list[HookBase]) -> None:
    """Leave signals to whom they were left before, also after a hook has failed."""
    for hook in hooks:
        if isinstance(hook, StopOnSignal):
            hook.after_train()


class SavedAndStopped(SystemExit):
    """A training ends with exit code 0 after a signal: it is saved, though not done.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        """Keep the signal."""
        super().__init__(0)
        self.number = number


@contextmanager
def part_of_more() -> Iterator[None]:
    """Make a training that a signal ends within no success: it is saved, but what it is for is not.

    Raises:
        Stopped: in the place of `SavedAndStopped`.
    """
    try:
        yield
    except SavedAndStopped as stopped:
        raise Stopped(stopped.number) from stopped


class StopOnSignal(HookBase):
    """Saves a checkpoint at the next step boundary after SIGTERM, SIGHUP or Ctrl-C and leaves.

    After SIGTERM and SIGHUP (the terminal is closed; under nohup it is ignored) with exit code 0,
    after Ctrl-C with KeyboardInterrupt; a second Ctrl-C does not wait. A running evaluation is
    finished first, except the last one: then all is saved already. With several processes all stop
    at the same step, whichever got the signal; Ctrl-C is left to what started them.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        """Keep the checkpointer, which writes in the main process only."""
        self._checkpointer = checkpointer
        self._asked, self._is_saved = 0, False
        self._previous: dict[int, Any] = {}

    def before_train(self) -> None:
        """Start to listen (Python allows it in the main thread only)."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._is_saved = self.trainer.start_iter >= self.trainer.max_iter
        for each in STOPPING:
            if signal.getsignal(each) is not signal.SIG_IGN:
                self._previous[each] = signal.signal(each, self._ask)
        # A shell makes what runs in the background ignore Ctrl-C.
        is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if is_default and comm.get_world_size() == 1:
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        leave_terminal(number)
        if self._is_saved:
            logger.warning(
                "%s: the training is done and saved, its evaluation is not; --resume repeats it",
                signal.Signals(number).name,
            )
            self._leave(number)
        if self._asked and number == signal.SIGINT:
            self._leave(number)
        if number == signal.SIGINT:
            os.write(2, b"Ctrl-C: saving after this step; once more stops at once\n")
        self._asked = number

    def after_step(self) -> None:
        """Save and leave, if asked to.

        Raises:
            SavedAndStopped: after SIGTERM or SIGHUP; the checkpoint is written.
            KeyboardInterrupt: after Ctrl-C; the checkpoint is written.
            CheckpointError: it cannot be written.
        """
        asked = max(comm.all_gather(self._asked))
        iteration = self.trainer.iter
        if asked:
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            name = signal.Signals(asked).name
            logger.warning("%s: saved iteration %d; continue with --resume", name, iteration)
            self._leave(asked)
        self._is_saved = iteration + 1 >= self.trainer.max_iter

    def _leave(self, number: int) -> None:
        self.after_train()
        raise KeyboardInterrupt if number == signal.SIGINT else SavedAndStopped(number)

    def after_train(self) -> None:
        """Stop listening."""
        while self._previous:
            signal.signal(*self._previous.popitem())


class RecentScalars(HookBase):
    """Travels in the checkpoint, so that a resumed run reports the medians of one that was not."""

    def __init__(self) -> None:
        """There is nothing to report yet."""
        self._saved: dict[str, list[tuple[float, int]]] = {}

    def before_train(self) -> None:
        """Put the values of the interrupted run before those to come."""
        for name, values in self._saved.items():
            for value, iteration in values:
                self.trainer.storage.histories()[name].update(value, iteration)

    def state_dict(self) -> dict[str, list[tuple[float, int]]]:
        """Name -> (value, iteration) of the latest steps; empty before the first."""
        storage = getattr(self.trainer, "storage", None)
        smoothed = storage.smoothing_hints().items() if storage else ()
        names = sorted(name for name, hint in smoothed if hint and not name.endswith("time"))
        return {name: storage.history(name).values()[-_WINDOW:] for name in names}

    def load_state_dict(self, state: dict[str, list[tuple[float, int]]]) -> None:
        """Keep them for `before_train`."""
        self._saved = state


class PatientCheckpointer(PeriodicCheckpointer):
    """detectron2's, which finds out first whether there is room, and survives a full disk."""

    def before_train(self) -> None:
        """Probe the folder and begin there; give a finished run its final checkpoint, if missing.

        Raises:
            CheckpointError: a checkpoint cannot be written.
        """
        super().before_train()
        self.checkpointer.probe()
        if self.trainer.start_iter == 0:
            self.checkpointer.begin()
        if self.trainer.start_iter < self.trainer.max_iter or not self.checkpointer.save_to_disk:
            return
        # A run that was killed between the checkpoint of its last step and the final one.
        last = Path(self.checkpointer.get_checkpoint_file())
        final = last.with_name(f"{self.file_prefix}_final.pth")
        if last != final:
            write_durably(final, last.read_bytes())
            self.checkpointer.tag_last_checkpoint(final.name)

    def after_step(self) -> None:
        """Save when it is time; if that fails, go on until the next time.

        Raises:
            CheckpointError: it failed after the last step.
        """
        try:
            super().after_step()
        except CheckpointError as error:
            iteration = self.trainer.iter
            if iteration + 1 >= self.trainer.max_iter:
                raise
            following = min(iteration + self.period, self.trainer.max_iter - 1)
            logger.error(
                "OUTPUT_DIR %s: the checkpoint of iteration %d cannot be written (%s); the last "
                "one stays, training goes on and tries again after iteration %d: free space",
                self.checkpointer.save_dir, iteration, _reason(error), following,
            )  # fmt: skip


class PatientWriter(EventWriter):
    """Another writer, whose full disk does not end the training."""

    def __init__(self, writer: EventWriter) -> None:
        """Keep the writer."""
        self._writer, self._has_failed = writer, False
        self._printed = -1

    def write(self) -> None:
        """Write; the first failure in a row is logged."""
        if isinstance(self._writer, CommonMetricPrinter):
            # A training that is stopped writes once more: after the first steps the printer would
            # divide by the steps since then.
            last, self._printed = self._printed, get_event_storage().iter
            if last == self._printed:
                return
        self._try(self._writer.write)

    def close(self) -> None:
        """Close."""
        self._try(self._writer.close)

    def _try(self, function: Any) -> None:
        try:
            function()
        except OSError as error:
            if not self._has_failed:
                logger.error(
                    "%s cannot write the training curve (%s); training goes on: free space",
                    type(self._writer).__name__, error.strerror,
                )  # fmt: skip
            self._has_failed = True
        else:
            self._has_failed = False


def _reason(error: CheckpointError) -> str:
    return getattr(error.__cause__, "strerror", None) or str(error)
