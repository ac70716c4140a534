"""The walk over the files of a dataset: order, errors, dead processes."""

from __future__ import annotations

import os
import threading
import time

import pytest

from tagclip.data.datasets.walk import map_files
from tagclip.errors import DatasetError


def _late(number: int) -> int:
    """Later items are done first."""
    time.sleep(0.02 * (5 - number))
    return number * number


def _refuse(number: int) -> int:
    if number == 3:
        raise DatasetError(f"file {number}: damaged")
    return number


def _die(number: int) -> int:
    os._exit(7)


@pytest.mark.parametrize("processes", [None, 0, 1, 2])
def test_results_keep_the_order_of_the_items(processes: int | None) -> None:
    assert list(map_files(_late, range(5), "toy", processes)) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("processes", [None, 0, 2])
def test_an_error_of_one_file_arrives_as_it_is(processes: int | None) -> None:
    with pytest.raises(DatasetError, match="^file 3: damaged$"):
        list(map_files(_refuse, range(5), "toy", processes))


def test_what_has_not_begun_is_dropped_after_an_error() -> None:
    begun = []
    gate = threading.Event()

    def read(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise DatasetError("damaged")
        gate.wait(0.2)

    with pytest.raises(DatasetError):
        list(map_files(read, range(1000), "toy"))
    assert len(begun) < 100


def test_a_dead_process_is_one_line() -> None:
    with pytest.raises(DatasetError, match="^toy: a worker process died.*fewer --workers") as error:
        list(map_files(_die, range(4), "toy", processes=2))
    assert "\n" not in str(error.value)


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    list(map_files(_late, range(5), "toy"))
    assert capsys.readouterr().err == ""
