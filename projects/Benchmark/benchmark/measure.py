"""Clocks and memory meters for one process, on a CPU or a GPU."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

__all__ = [
    "Stopwatch",
    "Timing",
    "alternate",
    "machine",
    "memory_growth",
    "processor",
    "resident",
    "seconds",
]

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 2**20


@dataclass(frozen=True)
class Timing:
    """Seconds of some runs of the same thing."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of all runs."""
        return statistics.median(self.runs)

    def over(self, other: Timing) -> float:
        """Median of the ratios of runs that were made next to each other."""
        return statistics.median(a / b for a, b in zip(self.runs, other.runs, strict=True))


def seconds(function: Callable[[], Any], device: str = "cpu") -> float:
    """Run once; wall time, or time between two CUDA events."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    function()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1000


def alternate(
    functions: Mapping[str, Callable[[], Any]], runs: int, device: str = "cpu"
) -> dict[str, Timing]:
    """Time functions in turn: what slows the machine down for a while slows all of them.

    Each is run once before, without being timed.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return {name: Timing(tuple(found)) for name, found in times.items()}


class Stopwatch:
    """Splits the time of a call among methods that it passes through.

    Attributes:
        stages: seconds of each stage, one number per run of `run`.
    """

    def __init__(self, device: str = "cpu") -> None:
        """Begin with no stages."""
        self._device = device
        self._current: dict[str, float] = {}
        self.stages: dict[str, list[float]] = {}

    @contextmanager
    def watch(self, owner: Any, method: str, stage: str) -> Iterator[None]:
        """Inside, the time in ``owner.method`` counts as ``stage``."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = original(*args, **kwargs)
            self._current[stage] = self._current.get(stage, 0.0) + self.now() - start
            return result

        with patch.object(owner, method, timed):
            yield

    def now(self) -> float:
        """Seconds, after all that was asked of the device is done."""
        if self._device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def total(self) -> float:
        """Seconds of the whole."""
        return self.now()

    def run(self, function: Callable[[], Any], rest: str) -> None:
        """Run; what no stage took counts as the stage ``rest``."""
        self._current = {}
        start = self.total()
        function()
        total = self.total() - start
        self._current[rest] = total - sum(self._current.values())
        for stage, spent in self._current.items():
            self.stages.setdefault(stage, []).append(spent)

    def timings(self) -> dict[str, Timing]:
        """Of every stage, without the first run, which warms up."""
        return {stage: Timing(tuple(runs[1:] or runs)) for stage, runs in self.stages.items()}


def memory_growth(function: Callable[[], Any], device: str = "cpu") -> float:
    """Run once; MiB by which the peak exceeds the memory held before.

    On a CPU the process's resident memory (where there is no /proc, its growth beyond the
    highest value so far), on a GPU what torch has allocated.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    before = _resident()
    function()
    return _peak() - before


def _resident() -> float:
    """MiB held now, after free memory was given back; the peak starts anew."""
    if not _STATUS.exists():
        return _peak()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    if os.access(_RESET, os.W_OK):
        _RESET.write_text("5")
    return resident("self")


def resident(process: int | str) -> float:
    """MiB that a process holds now; 0 if it has ended. Needs /proc."""
    try:
        return _status("VmRSS", process)
    except (OSError, StopIteration):
        return 0.0


def _peak() -> float:
    if _STATUS.exists():
        return _status("VmHWM")
    import resource

    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def _status(field: str, process: int | str = "self") -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) / 1024


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on: processor, threads, versions, precision, load."""
    found = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "device": device,
    }
    if device != "cpu":
        found["gpu"] = torch.cuda.get_device_name()
        found["TF32 matrix products"] = torch.backends.cuda.matmul.allow_tf32
        found["TF32 convolutions"] = torch.backends.cudnn.allow_tf32
    return found


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)", info.read_text(), re.M) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
