"""What a part of a benchmark found: measured numbers, and bars for some of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tagclip.projects.benchmark.measure import Timing

__all__ = ["Bar", "Findings", "Measurement"]


@dataclass(frozen=True)
class Measurement:
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
class Findings:
    """What a part found.

    Attributes:
        part: its name.
        rows: in the order of the report.
        bars: likewise.
    """

    part: str
    rows: list[Measurement] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    def add(self, name: str, found: Timing | float, unit: str = "ms") -> float:
        """Add a row.

        Args:
            name: what was measured.
            found: several runs, or one number; in seconds if the unit is ``ms``.
            unit: of the row.

        Returns:
            The value of the row.
        """
        scale = 1000 if unit == "ms" else 1
        timing = found if isinstance(found, Timing) else Timing((found,))
        value, low, high = (scale * t for t in (timing.median, min(timing.runs), max(timing.runs)))
        self.rows.append(Measurement(self.part, name, value, unit, low, high, len(timing.runs)))
        return value

    def add_bar(
        self,
        name: str,
        value: float,
        unit: str,
        limit: float,
        goal: float | None = None,
        released: str = "-",
    ) -> None:
        """Compare a number with a bar, see `Bar`."""
        self.bars.append(Bar(name, released, limit, goal, value, unit))
