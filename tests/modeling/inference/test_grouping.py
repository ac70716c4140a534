"""Batches of windows: each window once, within batch and budget, as full as memory allows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagclip.modeling.inference.grouping import ImageWindows, full_batches

IMAGES = st.lists(
    st.builds(ImageWindows, st.sampled_from("abcd"), st.integers(1, 7), st.integers(0, 9)),
    max_size=40,
)


class Run(NamedTuple):
    """What `full_batches` did.

    Attributes:
        batches: lists of (image, window).
        held: (bytes, images) that had not left, whenever it asked for an image.
        queued: the most windows of one kind that had not gone out, at these times.
    """

    batches: list[list[tuple[int, int]]]
    held: list[tuple[int, int]]
    queued: list[int]


def run(images: Sequence[ImageWindows], batch_size: int, budget: int) -> Run:
    """Watch it from outside: an image leaves after its last window and all images before it."""
    left = [image.count for image in images]
    found, taken = Run([], [], []), 0

    def there() -> list[int]:
        gone = next((number for number in range(taken) if left[number]), taken)
        return list(range(gone, taken))

    def stream() -> Iterator[ImageWindows]:
        nonlocal taken
        for image in [*images, None]:
            found.held.append((sum(images[number].nbytes for number in there()), len(there())))
            queues = Counter()
            for number in there():
                queues[images[number].kind] += left[number]
            found.queued.append(max(queues.values(), default=0))
            if image is not None:
                taken += 1
                yield image

    for batch in full_batches(stream(), batch_size, budget):
        found.batches.append(batch)
        for number, _ in batch:
            left[number] -= 1
    return found


def adjacent_batches(images: Sequence[ImageWindows], batch_size: int) -> tuple[int, int]:
    """Batches that neighbours make, as many images as fill one, kinds apart; bytes they hold."""
    count, most, held, group = 0, 0, 0, Counter()
    for image in [*images, None]:
        if image is None or sum(group.values()) + image.count > batch_size:
            count += sum(-(-windows // batch_size) for windows in group.values())
            group.clear()
            held = 0
        if image is not None:
            group[image.kind] += image.count
            held += image.nbytes
            most = max(most, held)
    return count, most


@given(images=IMAGES, batch_size=st.integers(1, 9), budget=st.integers(0, 60))
def test_every_window_goes_out_once_within_batch_and_budget(
    images: list[ImageWindows], batch_size: int, budget: int
) -> None:
    found = run(images, batch_size, budget)
    windows = [window for batch in found.batches for window in batch]
    assert sorted(windows) == [(n, i) for n, image in enumerate(images) for i in range(image.count)]
    for batch in found.batches:
        assert 1 <= len(batch) <= batch_size
        assert len({images[number].kind for number, _ in batch}) == 1
    # Of one kind the order is that of the images.
    for kind in "abcd":
        of_kind = [window for window in windows if images[window[0]].kind == kind]
        assert of_kind == sorted(of_kind)
    assert all(nbytes <= budget or count == 1 for nbytes, count in found.held)
    assert all(queued < batch_size for queued in found.queued)


@given(images=IMAGES, batch_size=st.integers(1, 9))
def test_with_room_for_all_there_are_as_few_batches_as_can_be(
    images: list[ImageWindows], batch_size: int
) -> None:
    windows = Counter()
    for image in images:
        windows[image.kind] += image.count
    found = len(run(images, batch_size, 10**9).batches)
    assert found == sum(-(-count // batch_size) for count in windows.values())
    assert found <= adjacent_batches(images, batch_size)[0]


def test_with_the_memory_of_neighbours_there_are_no_more_batches() -> None:
    for seed in range(500):
        draw = random.Random(seed)
        size, count = draw.randint(2, 9), draw.randint(1, 40)
        images = [
            ImageWindows(draw.choice("abcd"), draw.randint(1, 7), draw.randint(1, 9))
            for _ in range(count)
        ]
        batches, held = adjacent_batches(images, size)
        assert len(run(images, size, held).batches) <= batches


@given(images=IMAGES)
def test_one_window_at_a_time_holds_no_image_back(images: list[ImageWindows]) -> None:
    """What a CPU does, with no budget at all."""
    found = run(images, 1, 0)
    expected = [[(n, i)] for n, image in enumerate(images) for i in range(image.count)]
    assert found.batches == expected
    assert set(found.held) <= {(0, 0)}


def test_mixed_sizes_fill_batches_within_a_budget() -> None:
    """1000 images of five shapes in any order: 13 of 16 windows with room for 40 images, 15 for
    100; neighbours make 5."""
    draw = random.Random(0)
    counts = {"a": 1, "b": 2, "c": 2, "d": 3, "e": 6}
    shapes = [ImageWindows(kind, count, 10) for kind, count in counts.items()]
    images = draw.choices(shapes, (5, 30, 10, 4, 1), k=1000)
    windows = sum(image.count for image in images)
    found = [windows / len(run(images, 16, budget).batches) for budget in (400, 1000)]
    assert found[0] > 13 and found[1] > 15 and windows / adjacent_batches(images, 16)[0] < 6


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(100, ["aaaa", "bbb", "aa"]), (30, ["aa", "bb", "aa", "b", "aa"]), (9, [*"ababaabaa"])],
)
def test_where_there_is_no_room_the_oldest_image_goes_on(budget: int, expected: list[str]) -> None:
    images = [ImageWindows(kind, 1, 10) for kind in "ababaabaa"]
    found = run(images, 4, budget)
    assert ["".join(images[n].kind for n, _ in batch) for batch in found.batches] == expected
