"""Reading ahead: order, the budget as counted from outside, errors in place, no thread left."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagclip.data.read_ahead import read_ahead

# Of waits for other threads, which end at once unless something is wrong.
PATIENCE = 30


class Watch:
    """Counts what is under way: begun, and not yet left behind by who uses it."""

    def __init__(self) -> None:
        self.sums: list[tuple[int, int]] = []
        self._sizes: dict[int, int] = {}
        self._lock = threading.Lock()

    def prepare(self, item: tuple[int, int]) -> int:
        number, size = item
        with self._lock:
            self._sizes[number] = size
            self.sums.append((sum(self._sizes.values()), len(self._sizes)))
        return number

    def leave(self, number: int) -> None:
        with self._lock:
            del self._sizes[number]


def size_of(item: tuple[int, int]) -> int:
    return item[1]


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "read_ahead" in thread.name]


@given(
    sizes=st.lists(st.integers(0, 12), max_size=80),
    budget=st.integers(1, 30),
    threads=st.integers(1, 4),
)
def test_everything_comes_in_order_within_the_budget(
    sizes: list[int], budget: int, threads: int
) -> None:
    watch, found = Watch(), []
    for number in read_ahead(enumerate(sizes), watch.prepare, size_of, budget, threads):
        found.append(number)
        watch.leave(number)
    assert found == list(range(len(sizes))) and len(watch.sums) == len(sizes)
    assert all(total <= budget or count == 1 for total, count in watch.sums)
    assert not own_threads()


def test_later_items_are_prepared_while_one_is_used_as_far_as_there_is_room() -> None:
    begun = [threading.Event() for _ in range(5)]
    counted = [threading.Event() for _ in range(5)]

    def prepare(number: int) -> int:
        begun[number].set()
        return number

    def size(number: int) -> int:
        counted[number].set()
        return 5

    numbers = read_ahead(range(5), prepare, size, budget=15)
    with closing(numbers):
        assert next(numbers) == 0
        assert begun[1].wait(PATIENCE) and begun[2].wait(PATIENCE)
        # The next one is known, and waits.
        assert counted[3].wait(PATIENCE)
        assert not begun[3].is_set()
        assert next(numbers) == 1 and begun[3].wait(PATIENCE)
        assert counted[4].wait(PATIENCE) and not begun[4].is_set()


def test_an_item_larger_than_the_budget_goes_alone() -> None:
    watch = Watch()
    sizes = [3, 3, 50, 3, 60, 70, 3]
    for number in read_ahead(enumerate(sizes), watch.prepare, size_of, budget=10, threads=3):
        watch.leave(number)
    assert [pair for pair in watch.sums if pair[0] > 10] == [(50, 1), (60, 1), (70, 1)]


def test_several_threads_prepare_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=PATIENCE)

    def prepare(number: int) -> int:
        together.wait()
        return number

    assert list(read_ahead(range(6), prepare, lambda _: 1, budget=100, threads=3)) == [*range(6)]


def test_items_without_a_size_are_not_all_taken_at_once() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(10000):
            taken.append(number)
            yield number

    numbers = read_ahead(items(), lambda number: number, lambda _: 0, threads=2)
    with closing(numbers):
        for _ in range(100):
            next(numbers)
    assert len(taken) <= 100 + 64


@pytest.mark.parametrize("place", ["items", "prepare", "size_of"])
def test_an_error_comes_after_the_items_before_it(place: str) -> None:
    def fail(where: str, number: int) -> int:
        if where == place and number == 7:
            raise ValueError(f"{place} {number}")
        return number

    items = (fail("items", number) for number in range(20))
    found = []
    with pytest.raises(ValueError, match=f"^{place} 7$"):
        for number in read_ahead(
            items,
            lambda number: fail("prepare", number),
            lambda number: fail("size_of", number),
            threads=2,
        ):
            found.append(number)
    assert found == list(range(7))
    assert not own_threads()


@pytest.mark.parametrize("budget", [1, 5, 1000])
def test_closing_ends_the_threads(budget: int) -> None:
    for count in (0, 1, 5):
        numbers = read_ahead(range(1000), lambda number: number, lambda _: 1, budget, threads=3)
        assert [next(numbers) for _ in range(count)] == list(range(count))
        assert bool(own_threads()) == (count > 0)
        numbers.close()
        assert not own_threads()


def test_a_process_ends_although_an_iterator_is_open() -> None:
    script = (
        "from tagclip.data.read_ahead import read_ahead\n"
        "numbers = read_ahead(range(99), lambda n: n, lambda n: 1, 1)\n"
        "assert next(numbers) == 0\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=4 * PATIENCE)
