"""What visitors have asked last, within bytes and a number: who holds most gives room first."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from tagclip.errors import DatasetError
from tagclip.projects.webdemo.session import EncodedImage

__all__ = ["KeptImages"]

# Bytes that an image counts for if it has fewer: words, classes and names take room, too.
_LEAST = 1 << 16
# Images that are kept; what else a session takes has no bytes of its own here.
_MOST = 100
# Sessions of which it is known that their image was freed.
_FREED = 1000


class _Place(NamedTuple):
    image: EncodedImage
    address: str
    nbytes: int
    used: float


class KeptImages:
    """Images after their forward pass, one per session."""

    def __init__(
        self, nbytes: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with none.

        Args:
            nbytes: at most so many are kept.
            seconds: after which an image goes that nobody asks for.
            clock: seconds.
        """
        self.nbytes, self.seconds, self._clock = nbytes, seconds, clock
        self._lock = threading.RLock()
        # By session, those that were asked for longest ago first.
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._held: Counter[str] = Counter()
        self._freed: OrderedDict[str, None] = OrderedDict()

    @property
    def held(self) -> int:
        """Bytes of all that is kept, each image with 64 KiB at least."""
        with self._lock:
            return self._held.total()

    def keep(self, session: str, image: EncodedImage, address: str = "") -> None:
        """Keep an image in the place of the session's last one, and free others for it.

        Where room lacks, the address with the most bytes gives it, and beyond 100 images the one
        with the most of these, the image first that was asked for longest ago: whoever opens many
        sessions pushes nobody else out.

        Args:
            session: a name that its visitor alone knows.
            image: of at most half of the bytes.
            address: where the visitor is.
        """
        nbytes = max(image.nbytes, _LEAST)
        with self._lock:
            self._drop(session)
            self._free_old()
            self._held[address] += nbytes
            while self._places and self.held > self.nbytes:
                self._free_of_most(self._held)
            if len(self._places) >= _MOST:
                self._free_of_most(Counter(place.address for place in self._places.values()))
            self._places[session] = _Place(image, address, nbytes, self._clock())
            self._freed.pop(session, None)

    def find(self, session: str) -> EncodedImage | None:
        """Return the image of a session, the last to go from now on; None: none is kept."""
        with self._lock:
            self._free_old()
            place = self._places.get(session)
            if place is None:
                return None
            self._places[session] = place._replace(used=self._clock())
            self._places.move_to_end(session)
            return place.image

    def open(self, session: str) -> EncodedImage | None:
        """Return the image of a session; None: it has asked for none yet.

        Raises:
            DatasetError: it was freed.
        """
        with self._lock:
            image = self.find(session)
            if session in self._freed:
                raise DatasetError(
                    "result: found it freed to make room for others, expected it kept; press "
                    "Segment again"
                )
            return image

    def _free_of_most(self, counts: Counter[str]) -> None:
        """Free the image that was asked for longest ago, of the address with the most of it all."""
        most = max(counts[place.address] for place in self._places.values())
        self._free(next(n for n, p in self._places.items() if counts[p.address] == most))

    def _free_old(self) -> None:
        while self._places:
            session, place = next(iter(self._places.items()))
            if place.used + self.seconds > self._clock():
                break
            self._free(session)

    def _free(self, session: str) -> None:
        self._drop(session)
        self._freed[session] = None
        if len(self._freed) > _FREED:
            self._freed.popitem(last=False)

    def _drop(self, session: str) -> None:
        place = self._places.pop(session, None)
        if place is not None:
            self._held[place.address] -= place.nbytes
            if not self._held[place.address]:
                del self._held[place.address]
