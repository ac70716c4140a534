"""Which windows of which images share a batch. Nothing here knows a tensor or a device."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple

__all__ = ["ImageWindows", "full_batches"]


class ImageWindows(NamedTuple):
    """The windows of an image.

    Attributes:
        kind: windows of one kind may share a batch, whatever their images.
        count: how many, at least 1.
        nbytes: what the image holds from being taken until it leaves.
    """

    kind: Hashable
    count: int
    nbytes: int


def full_batches(
    images: Iterable[ImageWindows], batch_size: int, budget: int
) -> Iterator[list[tuple[int, int]]]:
    """Put the windows of a stream of images into as few batches as the memory allows.

    A batch goes out as soon as it is full. Where the next image finds no room, and at the end, the
    windows that the oldest image waits for go out as they are. An image leaves in its turn, when
    all windows of it and of those before it have gone out.

    Args:
        images: no more are taken than a full batch needs.
        batch_size: windows of a batch, at most.
        budget: the sum of ``nbytes`` of the images that have not left is never larger, unless a
            single one is; it goes alone.

    Yields:
        (number of the image, number of its window), each window once, of one kind.
    """
    queues: defaultdict[Hashable, deque[tuple[int, int]]] = defaultdict(deque)
    waiting: deque[tuple[int, ImageWindows]] = deque()
    left: dict[int, int] = {}
    held = 0

    def batch_of(kind: Hashable) -> list[tuple[int, int]]:
        nonlocal held
        queue = queues[kind]
        batch = [queue.popleft() for _ in range(min(batch_size, len(queue)))]
        if not queue:
            del queues[kind]
        for number, _ in batch:
            left[number] -= 1
        while waiting and not left[waiting[0][0]]:
            number, image = waiting.popleft()
            del left[number]
            held -= image.nbytes
        return batch

    for number, image in enumerate(images):
        while waiting and held + image.nbytes > budget:
            yield batch_of(waiting[0][1].kind)
        waiting.append((number, image))
        left[number], held = image.count, held + image.nbytes
        queues[image.kind].extend((number, window) for window in range(image.count))
        while len(queues[image.kind]) >= batch_size:
            yield batch_of(image.kind)
    while waiting:
        yield batch_of(waiting[0][1].kind)
