"""What visitors have asked last, within a number of bytes: who came back longest ago goes first."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict

from tagclip.errors import DatasetError
from tagclip.projects.webdemo.session import EncodedImage

__all__ = ["Kept", "KeptImages"]


class Kept:
    """A place in `KeptImages`. It lies in the visitor's session, and its image goes with it.

    Attributes:
        image: None once it was freed.
    """

    def __init__(self, image: EncodedImage) -> None:
        self.image: EncodedImage | None = image


class KeptImages:
    """Images after their forward pass."""

    def __init__(self, nbytes: int) -> None:
        """Keep at most so many bytes."""
        self.nbytes = nbytes
        self._lock = threading.RLock()
        # By identity: what is no longer in any session has left.
        self._order: OrderedDict[int, tuple[weakref.ref[Kept], int]] = OrderedDict()

    @property
    def held(self) -> int:
        """Bytes of all that is kept."""
        with self._lock:
            return sum(nbytes for _, nbytes in self._order.values())

    def keep(self, image: EncodedImage) -> Kept:
        """Keep an image, and free others where there is no room."""
        kept, nbytes = Kept(image), image.nbytes
        key = id(kept)
        with self._lock:
            while self._order and self.held + nbytes > self.nbytes:
                found = self._order.popitem(last=False)[1][0]()
                if found is not None:
                    found.image = None
            self._order[key] = weakref.ref(kept, lambda _: self._forget(key)), nbytes
        return kept

    def find(self, kept: Kept) -> EncodedImage | None:
        """Return the image, the last to go from now on; None if it was freed."""
        with self._lock:
            if kept.image is not None:
                self._order.move_to_end(id(kept))
            return kept.image

    def open(self, kept: Kept) -> EncodedImage:
        """Return the image.

        Raises:
            DatasetError: it was freed.
        """
        image = self.find(kept)
        if image is None:
            raise DatasetError(
                "result: found it freed to make room for others, expected it kept; press Segment "
                "again"
            )
        return image

    def _forget(self, key: int) -> None:
        with self._lock:
            self._order.pop(key, None)
