"""How often an address may do something: so many times at once, and then at a pace."""

from __future__ import annotations

__all__ = ["Paces"]


class Paces:
    """Of all addresses."""

    def __init__(self, per_second: float, at_once: int) -> None:
        """Begin with nobody.

        Args:
            per_second: times in the long run.
            at_once: times that may come at once.
        """
        self._step, self._burst = 1 / per_second, at_once / per_second
        # When what an address did so far would have come, had it come at the pace.
        self._due: dict[str, float] = {}

    def wait(self, address: str, now: float, longest: float) -> float | None:
        """Seconds that an address has to wait for the next time, 0 for less than a millisecond.

        None: more than ``longest``, and this time does not count.

        Args:
            address: whose.
            now: seconds.
            longest: seconds.
        """
        if address not in self._due:
            for name in [name for name, due in self._due.items() if due <= now]:
                del self._due[name]
        due = max(self._due.get(address, now), now) + self._step
        wait = due - now - self._burst
        if wait > longest:
            return None
        self._due[address] = due
        return wait if wait >= 1e-3 else 0.0
