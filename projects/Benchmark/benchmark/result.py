"""Rows and bars of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field

from tagclip.projects.benchmark.measure import Timing

__all__ = ["Bar", "Result", "Row"]


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        part: which measurement it belongs to.
        name: what was measured.
        value: the median, in ``unit``.
        unit: ``s``, ``ms``, ``MiB``, ``images/s``, ``%`` or ``x`` (a ratio).
        low, high: least and greatest of ``runs``.
        runs: how many.
    """

    part: str
    name: str
    value: float
    unit: str
    low: float
    high: float
    runs: int

    @classmethod
    def single(cls, part: str, name: str, value: float, unit: str) -> Row:
        """Of one measurement."""
        return cls(part, name, value, unit, value, value, 1)

    @classmethod
    def timed(cls, part: str, name: str, timing: Timing, unit: str = "ms") -> Row:
        """Of a timing."""
        scale = 1000 if unit == "ms" else 1
        low, high = min(timing.runs), max(timing.runs)
        return cls(
            part, name, scale * timing.median, unit, scale * low, scale * high, len(timing.runs)
        )


@dataclass(frozen=True)
class Bar:
    """What a number should be at most.

    Attributes:
        name: what was measured.
        released: what the released code takes, as text.
        limit: greatest value that is good enough.
        goal: the value to aim at, or None.
        value: what was measured.
        unit: of all three.
    """

    name: str
    released: str
    limit: float
    goal: float | None
    value: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.limit


@dataclass
class Result:
    """What a part found."""

    rows: list[Row] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
