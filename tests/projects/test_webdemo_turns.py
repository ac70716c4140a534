"""Requests to the web page take turns, within their time and memory; images are kept by size."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import load_tool
from PIL import Image

from tagclip import TagCLIPPredictor
from tagclip.errors import ConfigError, DatasetError
from tagclip.projects.webdemo import session
from tagclip.projects.webdemo.kept import KeptImages
from tagclip.projects.webdemo.session import (
    EncodedImage,
    Limits,
    Settings,
    encode_image,
    least_limits,
)
from tagclip.projects.webdemo.turns import RequestError, Turns, current_turn
from tagclip.utils.stepping import pause_point

MIB = 1 << 20


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def wanted() -> bool:
    return False


def test_without_a_page_nothing_waits() -> None:
    current_turn().reserve(1 << 60)
    with current_turn().work():
        pause_point()


@pytest.mark.parametrize(("costs", "expected"), [((1.0, 1.0), 6), ((10.0, 1.0), 2)])
def test_who_has_had_the_least_time_goes_on(costs: tuple[float, float], expected: int) -> None:
    """Two visitors of five steps each; the first one's may be long."""
    clock = Clock()
    turns, order, first_works = Turns(MIB, 1e9, clock=clock), [], threading.Event()
    both_wait = threading.Event()

    def visit(name: str, cost: float) -> None:
        with turns.request(name, wanted), current_turn().work():
            if name == "first":
                first_works.set()
                both_wait.wait(10)
            for _ in range(5):
                order.append(name)
                clock.now += cost
                pause_point()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(visit, "first", costs[0])
        first_works.wait(10)
        second = pool.submit(visit, "second", costs[1])
        while not turns.model.waiting:
            pass
        both_wait.set()
        first.result(10), second.result(10)
    # How many steps of the first come before the last of the second.
    last = len(order) - 1 - order[::-1].index("second")
    assert order[:last].count("first") <= expected and order[0] == "first"
    assert sorted(order) == ["first"] * 5 + ["second"] * 5
    assert turns.held == 0 and not turns.model.waiting and not turns.model.working


def test_a_request_ends_in_time_and_when_nobody_waits() -> None:
    clock = Clock()
    turns = Turns(MIB, 60, clock=clock)
    with turns.request("me", wanted) as turn:
        with pytest.raises(RequestError, match="unfinished after 60 seconds"), turn.work():
            clock.now = 60
            pause_point()
            clock.now = 61
            pause_point()
        assert not turns.model.working
    gone = False
    ends = pytest.raises(RequestError, match="nobody waiting")
    with turns.request("me", lambda: gone) as turn, ends, turn.work():
        pause_point()
        gone = True
        pause_point()
    with turns.request("me", wanted) as turn, turn.work():
        pause_point()


def test_who_waits_is_told_when_the_time_is_over_or_leaves() -> None:
    """For the turn, for memory, for the own request before."""
    clock = Clock()
    turns = Turns(8 * MIB, 60, clock=clock)
    began, release = threading.Event(), threading.Event()

    def hold() -> None:
        with turns.request("other", wanted) as turn:
            turn.reserve(4 * MIB)
            with turn.work():
                began.set()
                release.wait(20)

    def own(name: str, act: Callable[[object], None], is_gone: Callable[[], bool]) -> None:
        with turns.request(name, is_gone) as turn:
            act(turn)

    def work(turn: object) -> None:
        with turn.work():
            pass

    def twice(turn: object) -> None:
        turn.reserve(3 * MIB)
        own("third", lambda turn: turn.reserve(4 * MIB), lambda: True)

    with ThreadPoolExecutor(4) as pool:
        held = pool.submit(hold)
        began.wait(10)
        try:
            for name, act in (("a", work), ("b", twice), ("other", work)):
                with pytest.raises(RequestError, match="nobody waiting"):
                    own(name, act, lambda: True)
            waiting = pool.submit(own, "a", work, wanted)
            while not turns.model.waiting:
                pass
            clock.now = 61
            with pytest.raises(RequestError, match="unfinished after 60 seconds"):
                waiting.result(10)
        finally:
            release.set()
        held.result(10)
    assert turns.held == 0 and not turns.model.waiting


def test_when_the_page_ends_every_request_goes_at_its_next_step() -> None:
    turns, works, goes_on = Turns(MIB, 1e9), threading.Event(), threading.Event()

    def visit(name: str) -> None:
        with turns.request(name, wanted), current_turn().work():
            works.set()
            goes_on.wait(10)
            pause_point()

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(visit, name) for name in ("a", "a", "b")]
        works.wait(10)
        assert not turns.end(0), "one is at work"
        goes_on.set()
        assert turns.end(10)
        for each in asked:
            with pytest.raises(RequestError, match="found the page ending"):
                each.result(10)
    with pytest.raises(RequestError, match="found the page ending"):
        visit("c")
    assert turns.end(0)


def test_a_request_may_take_half_of_the_memory() -> None:
    turns = Turns(8 * MIB, 60)
    with turns.request("me", wanted) as turn:
        turn.reserve(3 * MIB)
        with pytest.raises(RequestError, match="found it to need 6 MiB, expected at most 4;"):
            turn.reserve(2 * MIB)
        assert turns.held == 3 * MIB
    assert turns.held == 0


def test_too_many_requests_are_refused_at_once() -> None:
    """Of a visitor, of an address whatever its visitors are called, and in all."""
    turns, release = Turns(MIB, 60, per_visitor=2, in_all=4), threading.Event()
    entered = []

    def visit(name: str, address: str) -> None:
        with turns.request(name, release.is_set, address):
            entered.append(name)
            release.wait(20)

    def refused(name: str, address: str, message: str) -> None:
        refusal = pytest.raises(RequestError, match=message)
        with refusal, turns.request(name, wanted, address):
            pass

    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(visit, name, "here") for name in ("me", "me", "you")]
        while len(turns.others(None)) < 3:
            pass
        try:
            refused("me", "here", "2 of yours unfinished, expected fewer than 2")
            refused("new", "here", "3 of your address unfinished, expected fewer than 3; wait")
            tasks.append(pool.submit(visit, "they", "there"))
            while len(turns.others(None)) < 4:
                pass
            refused("third", "there", "4 unfinished, expected fewer than 4; try again")
        finally:
            release.set()
        failed = [task.exception(10) for task in tasks]
    # One after the other: the second of one visitor never began.
    assert sorted(entered) == ["me", "they", "you"] and sum(e is not None for e in failed) == 1


def test_addresses_share_the_time_alike() -> None:
    """Three visitors of one address have as many steps as the one of another."""
    clock, order = Clock(), []
    turns, both_wait = Turns(MIB, 1e9, clock=clock), threading.Event()

    def visit(name: str, address: str) -> None:
        with turns.request(name, wanted, address), current_turn().work():
            both_wait.wait(20)
            for _ in range(6):
                order.append(address)
                clock.now += 1
                pause_point()

    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(visit, name, "many") for name in "abc"]
        tasks.append(pool.submit(visit, "d", "one"))
        while len(turns.model.waiting) < 3:
            pass
        both_wait.set()
        for task in tasks:
            task.result(20)
    last = len(order) - 1 - order[::-1].index("one")
    assert 5 <= order[:last].count("many") <= 7 and order.count("many") == 18
    assert not turns.times


def test_pictures_are_read_beside_the_model_one_of_an_address_at_a_time() -> None:
    turns, release, inside = Turns(MIB, 60), threading.Event(), []

    def read(name: str, address: str) -> None:
        with turns.request(name, release.is_set, address), current_turn().work_aside():
            inside.append(name)
            if name == "a":
                release.wait(20)

    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(read, "a", "many")]
        while not inside:
            pass
        tasks += [pool.submit(read, name, "many") for name in "bc"]
        while len(turns.aside.waiting) < 2:
            pass
        # Nobody waits for that here.
        with turns.request("d", wanted, "one") as turn:
            with turn.work():
                pause_point()
            with turn.work_aside():
                pass
        assert inside == ["a"] and turns.times["many"] == 0
        release.set()
        assert [task.exception(20) for task in tasks][0] is None
    assert not (turns.aside.working or turns.model.working or turns.aside.waiting)


def test_an_address_leaves_others_a_quarter_of_the_memory() -> None:
    turns, release = Turns(8 * MIB, 60), threading.Event()
    held = []

    def take(name: str, address: str, nbytes: int) -> None:
        with turns.request(name, release.is_set, address) as turn:
            turn.reserve(nbytes)
            held.append(name)
            release.wait(20)

    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(take, name, "many", 3 * MIB) for name in "ab"]
        while len(held) < 2:
            pass
        tasks.append(pool.submit(take, "c", "many", MIB))
        tasks.append(pool.submit(take, "d", "one", 2 * MIB))
        while len(held) < 3:
            pass
        release.set()
        failed = [task.exception(20) is not None for task in tasks]
    assert held[2:] == ["d"] and failed == [False, False, True, False] and not turns.held


@pytest.fixture
def encoded(tiny_cfg: CfgNode, tmp_path: Path) -> EncodedImage:
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))
    Image.fromarray(picture(70, 95)).save(tmp_path / "a.png")
    return encode_image(predictor, tmp_path / "a.png", "cat, zebra", "", Limits())


FREED = pytest.raises(DatasetError, match="found it freed .*press Segment again")
# Of a small image.
ROOM = 1 << 16


def test_what_was_used_longest_ago_is_freed_first(encoded: EncodedImage) -> None:
    images = KeptImages(3 * ROOM, 60)
    assert encoded.nbytes < ROOM and images.open("a") is None
    for name in "abc":
        images.keep(name, encoded)
    assert images.held == 3 * ROOM
    images.open("a")
    images.keep("d", encoded)
    with FREED:
        images.open("b")
    assert images.find("b") is None
    assert all(images.open(name) is encoded for name in "acd")
    # Another image of the same session takes the place of its last.
    images.keep("c", encoded)
    assert images.open("a") is encoded and images.held == 3 * ROOM
    images.keep("b", encoded)
    assert images.open("b") is encoded


def test_one_address_frees_its_own_images(encoded: EncodedImage) -> None:
    """However many sessions it opens, and however long ago the others asked."""
    images = KeptImages(4 * ROOM, 60)
    images.keep("first", encoded, "a")
    images.keep("second", encoded, "b")
    for number in range(50):
        images.keep(f"{number}", encoded, "c")
        assert images.held <= 4 * ROOM
    assert images.open("first") is images.open("second") is encoded
    assert [images.find(f"{number}") for number in range(47, 50)] == [None, encoded, encoded]
    # Among those that hold as much, who asked longest ago gives room.
    for name, address in (("third", "d"), ("fourth", "e")):
        images.keep(name, encoded, address)
    assert images.find("48") is None and images.find("third") is images.find("fourth") is encoded


def test_of_a_hundred_images_who_has_most_gives_one(encoded: EncodedImage) -> None:
    """Not who has the largest."""
    images = KeptImages(1 << 30, 60)
    large = replace(encoded, picture=np.zeros((3000, 3000, 3), np.uint8))
    images.keep("large", large, "a")
    for number in range(200):
        images.keep(f"{number}", encoded, "b")
    assert images.open("large") is large
    assert images.held == large.nbytes + 99 * ROOM
    assert images.find("100") is None and images.find("101") is encoded


def test_small_images_take_room_and_none_stays_for_good(encoded: EncodedImage) -> None:
    now, small = 0.0, replace(encoded, picture=encoded.picture[:1, :1])
    images = KeptImages(1 << 20, 60, clock=lambda: now)
    small = replace(small, fusion=replace(small.fusion, views=()))
    assert small.nbytes < 10
    for number in range(40):
        images.keep(f"{number}", small)
    assert images.held == 1 << 20 and images.find("23") is None and images.find("24") is small
    now = 59.0
    assert images.open("39") is small
    now = 60.0
    with FREED:
        images.open("38")
    assert images.open("39") is small and images.held == ROOM


def test_the_bytes_of_an_image_are_those_of_its_tensors(encoded: EncodedImage) -> None:
    (view,) = encoded.fusion.views
    tensors = view.class_logits.nbytes + view.trusty_logits.nbytes
    assert encoded.nbytes == tensors + 70 * 95 * 3
    assert encoded.working_nbytes((700, 950)) > 30 * 700 * 950


@pytest.mark.parametrize(
    ("size", "limits", "message"),
    [
        ((1, 95), Limits(), "image of 95x1 pixels: found 127 windows .*, expected at most 32; cut"),
        ((95, 1), Limits(), "image of 1x95 pixels: found 127 windows"),
        ((1, 50000), Limits(), "image of 50000x1 pixels: found .* windows"),
        ((70, 95), Limits(windows=1), "image of 95x70 pixels: found 2 windows"),
        ((70, 95), Limits(kept=100), "image of 95x70 pixels: found 1 MiB to be kept"),
    ],
)
def test_what_is_too_much_is_refused_by_its_header(
    tiny_cfg: CfgNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    limits: Limits,
    message: str,
) -> None:
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))
    Image.new("1", size[::-1]).save(tmp_path / "a.png")
    for owner, name in ((session, "read_pixels"), (predictor.model, "encode")):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail("decoded"))
    with pytest.raises(DatasetError, match=f"^a.png: {message}") as caught:
        encode_image(predictor, tmp_path / "a.png", "cat", "", limits)
    assert "\n" not in str(caught.value)


def test_limits_that_no_image_keeps_to_are_refused(
    repository: Path, tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    """One byte or window less than the least, and a small image has no result."""
    tool = load_tool(repository / "projects" / "WebDemo" / "serve.py")
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))
    least = least_limits(predictor)
    tool.check_limits(predictor, least)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for name, option in (
        ("windows", "--max-windows"),
        ("memory", "--max-memory-mb"),
        ("kept", "--max-kept-mb"),
    ):
        # Of memory and of what is kept, an image may take half.
        low = replace(least, **{name: getattr(least, name) - (1 if name == "windows" else 2)})
        for limits in (least, low):
            refused = pytest.raises((DatasetError, RequestError))
            with (
                nullcontext() if limits is least else refused,
                Turns(limits.memory, 60).request("", wanted),
            ):
                found = encode_image(predictor, tmp_path / "a.png", "thing", "", limits)
                found.predict(Settings.from_config(predictor.cfg), found.size)
        with pytest.raises(ConfigError, match=f"^{option}: found .*, expected at least .*; give"):
            tool.check_limits(predictor, low)


def test_a_large_image_is_refused_before_it_is_decoded(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))
    Image.new("1", (2000, 2000)).save(tmp_path / "a.png")
    turns = Turns(40 * MIB, 60)
    message = "found it to need 23 MiB, expected at most 20;"
    with turns.request("me", wanted), pytest.raises(RequestError, match=message):
        encode_image(predictor, tmp_path / "a.png", "cat", "", Limits())
    turns = Turns(400 * MIB, 60)
    with turns.request("me", wanted):
        encoded = encode_image(predictor, tmp_path / "a.png", "cat", "", Limits())
        encoded.predict(Settings("both", 0.1, 0.0), (64, 64))
        assert turns.held > 23 * MIB
    assert turns.held == 0
