"""What a part of a benchmark found: measured numbers, and bars for some of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tagclip.projects.benchmark.measure import Timing

__all__ = ["Findings"]


@dataclass
class Findings:
    """What a part found, ready for json.

    Attributes:
        part: its name.
        rows: measured numbers: ``part``; ``name``, what was measured; ``value``, the median, in
            ``unit``: ``s``, ``ms``, ``MiB``, ``images/s``, ``%`` or ``x`` (a ratio); ``low`` and
            ``high``, least and greatest of ``runs``.
        bars: what a number should be at most: ``name``; ``released``, what the released code
            takes, as text; ``limit``, the greatest ``value`` that is good enough; ``goal``, the
            value to aim at, or None; ``unit`` of all three; ``met``, whether it is.
    """

    part: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    bars: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, found: Timing | float | None, unit: str = "ms") -> float | None:
        """Add a row.

        Args:
            name: what was measured.
            found: several runs, or one number, in seconds if the unit is ``ms``; None: none.
            unit: of the row.

        Returns:
            The value of the row.
        """
        if found is None:
            row = {"part": self.part, "name": name, "value": None, "unit": unit}
            self.rows.append(row | {"low": None, "high": None, "runs": 0})
            return None
        scale = 1000 if unit == "ms" else 1
        timing = found if isinstance(found, Timing) else Timing((found,))
        value, low, high = (scale * t for t in (timing.median, min(timing.runs), max(timing.runs)))
        row = {"part": self.part, "name": name, "value": value, "unit": unit}
        self.rows.append(row | {"low": low, "high": high, "runs": len(timing.runs)})
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
        """Compare a number with a bar; the arguments are keys of `bars`."""
        bar = {"name": name, "released": released, "limit": limit, "goal": goal, "value": value}
        self.bars.append(bar | {"unit": unit, "met": value <= limit})
