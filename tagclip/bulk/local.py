"""Processes on this machine that share the shards of a bulk run."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait

import cv2
import torch
from detectron2.utils.logger import setup_logger

from tagclip.bulk.shards import Shard, ShardResult
from tagclip.bulk.worker import BulkOptions, BulkWorker
from tagclip.errors import DatasetError, ProcessError, TagCLIPError
from tagclip.utils.lost_logs import lost_logs
from tagclip.utils.parent import end_with_parent, leave_signals_to_parent, unsignalled

__all__ = ["run_local"]

logger = logging.getLogger(__name__)

# So many processes may die of one shard, or of the model before they have it.
_ATTEMPTS = 2


def run_local(
    shards: Sequence[Shard],
    options: BulkOptions,
    devices: Sequence[str],
    report: Callable[[int], None],
) -> Iterator[ShardResult]:
    """Do shards in processes, each with a model of its own; yields results as they come.

    A process that dies, for whatever reason, is replaced and its shard done again. A shard that
    kills two is given up.

    Args:
        shards: none of them finished.
        options: of the run.
        devices: one for each process, as MODEL.DEVICE.
        report: is told how many images came since the last call; of a shard that fails or is done
            again they are taken back, with a negative number.

    Raises:
        TagCLIPError: a process cannot build the model, or the results cannot be written.
        ProcessError: processes die before they have a model.
    """
    team = _Team(shards, options, report)
    try:
        for device in devices[: len(shards)]:
            team.start(device)
        yield from team.results()
    finally:
        team.end()


class _Process:
    """A process, and the shard that it is at."""

    def __init__(self, options: BulkOptions, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.device = device
        self.shard: Shard | None = None
        self.is_ready = False
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, options, device), daemon=True)
        with unsignalled():
            self._process.start()
        # Else the end of the process would not be the end of the pipe.
        theirs.close()

    def receive(self) -> object:
        """What it says next; None if it has ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def give(self, shard: Shard | None) -> None:
        """Send the next shard; None: there is none, the process ends."""
        self.shard, self.is_ready = shard, True
        # One that has just died is seen when it is asked.
        with suppress(OSError):
            self.connection.send(shard)

    def end(self, seconds: float = 0) -> str:
        """End it, if it has not ended by itself some seconds later; returns how it ended."""
        self._process.join(seconds)
        self._process.kill()
        self._process.join()
        self.connection.close()
        code = self._process.exitcode
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _Team:
    """The processes of a run."""

    def __init__(
        self, shards: Sequence[Shard], options: BulkOptions, report: Callable[[int], None]
    ) -> None:
        self._left, self._options, self._report = deque(shards), options, report
        self._processes: dict[Connection, _Process] = {}
        self._deaths: Counter[str] = Counter()
        self._counted: Counter[str] = Counter()

    def start(self, device: str) -> None:
        process = _Process(self._options, device)
        self._processes[process.connection] = process

    def end(self) -> None:
        for process in self._processes.values():
            process.end()

    def results(self) -> Iterator[ShardResult]:
        while self._processes:
            for connection in wait(list(self._processes)):
                process = self._processes[connection]
                message = process.receive()
                result = self._bury(process) if message is None else self._hear(process, message)
                if result is not None:
                    yield result

    def _hear(self, process: _Process, message: object) -> ShardResult | None:
        if isinstance(message, TagCLIPError):
            raise message
        if isinstance(message, int):
            self._counted[process.shard.name] += message
            self._report(message)
            return None
        result = message if isinstance(message, ShardResult) else None
        if result is not None:
            self._forget(result.name, bool(result.error))
        process.give(self._left.popleft() if self._left else None)
        return result

    def _bury(self, process: _Process) -> ShardResult | None:
        """Go on without a process that has ended."""
        del self._processes[process.connection]
        # It has closed its pipe, which it does last.
        how, shard = process.end(10), process.shard
        if process.is_ready and shard is None:
            return None
        name = shard.name if shard else ""
        self._forget(name, True)
        self._deaths[name] += 1
        logger.warning("A process ended (%s) %s", how, f"at {name}" if shard else "at its start")
        result = None
        if self._deaths[name] < _ATTEMPTS:
            self._left.extendleft([shard] if shard else [])
        elif shard is None:
            raise ProcessError(
                f"--processes: they end ({how}) before they have a model; the log above may say "
                "why, or memory is short: start again with fewer, finished shards stay"
            )
        else:
            text = f"{name}: {_ATTEMPTS} processes ended ({how}); the log above may say why"
            result = ShardResult(name, error=text)
        if self._left:
            self.start(process.device)
        return result

    def _forget(self, name: str, take_back: bool) -> None:
        count = self._counted.pop(name, 0)
        if take_back and count:
            self._report(-count)


def _work(connection: Connection, options: BulkOptions, device: str) -> None:
    """Be one of the processes."""
    end_with_parent()
    leave_signals_to_parent()
    # One each: how many there are changes no bits.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    # As the lines of the main process.
    setup_logger(name="tagclip")
    # What there is to say of model and words, it has said.
    logging.getLogger("tagclip.modeling").setLevel(logging.ERROR)
    # The main process may be gone at any time.
    with suppress(EOFError, BrokenPipeError), lost_logs(of_worker=True):
        try:
            worker = BulkWorker(options, device)
            connection.send("ready")
            while (shard := connection.recv()) is not None:
                try:
                    connection.send(worker.do(shard, connection.send))
                except DatasetError as error:
                    connection.send(ShardResult(shard.name, error=f"{shard.name}: {error}"))
        except TagCLIPError as error:
            connection.send(error)
