"""How far a bulk run is: a bar on a terminal, elsewhere a line of the log now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from tagclip.bulk.shards import Shard, ShardResult

__all__ = ["Progress"]

logger = logging.getLogger(__name__)

# Seconds between two lines.
_PERIOD = 30.0


class Progress:
    """Counts images and shards."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Begin.

        Args:
            shards: that are to be done.
        """
        self._images = {shard.name: shard.images for shard in shards}
        self._count = self._shards = 0
        # The time of the first image, before which models are loaded.
        self._start = self._told = time.monotonic()
        # disable=None: no bar unless stderr is a terminal.
        self._bar = tqdm(total=self._total(), unit="image", disable=None)

    def images(self, count: int) -> None:
        """Count images; a negative number takes some back."""
        if not self._count:
            self._start = self._told = time.monotonic()
        self._count += count
        self._bar.update(count)
        if sys.stderr.isatty() or time.monotonic() - self._told < _PERIOD:
            return
        self._told = time.monotonic()
        rate = self._count / max(self._told - self._start, 1e-9)
        total = self._total()
        left = f", {tqdm.format_interval((total - self._count) / rate)} left" if total else ""
        logger.info(
            "%d%s images, %d of %d shards, %.1f images/s%s",
            self._count, f" of {total}" if total else "", self._shards, len(self._images), rate,
            left,
        )  # fmt: skip

    def shard(self, result: ShardResult) -> None:
        """Count a shard that has ended."""
        self._shards += 1
        self._images[result.name] = result.images
        self._bar.total = self._total()
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _total(self) -> int | None:
        """Images of all shards; those of tar and parquet files as the mean of the others."""
        known = [count for count in self._images.values() if count is not None]
        return round(sum(known) / len(known) * len(self._images)) if known else None
