"""What a server of weeks needs among temporary files, where cleaners remove what is old."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from tagclip.errors import ConfigError

__all__ = ["TemporaryFiles"]

# Seconds after which files are made new again; cleaners go by days.
_FRESH = 3600.0


class TemporaryFiles:
    """Keeps files and folders new, and says if one has gone nevertheless."""

    def __init__(
        self,
        needed: Iterable[Path],
        others: Iterable[Path] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the paths; they have just been made.

        Args:
            needed: the page cannot do without.
            others: are kept new, too, as long as they are there.
            clock: seconds.
        """
        self._needed = tuple(needed)
        self._all = (*self._needed, *others)
        self._clock, self._made = clock, clock()

    def check(self) -> None:
        """Look whether all are there, and make them new once an hour.

        Raises:
            ConfigError: one has gone.
        """
        for path in self._needed:
            if not os.path.lexists(path):
                raise ConfigError(
                    f"{path}: found it removed while the page was served, expected it to stay; "
                    "keep what cleans temporary files from it, or set TMPDIR to a folder that "
                    "nothing cleans, and start the page again"
                )
        now = self._clock()
        if now >= self._made + _FRESH:
            self._made = now
            for path in self._all:
                with suppress(OSError):
                    os.utime(path)
