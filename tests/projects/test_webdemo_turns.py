"""Requests to the web page take turns, within their time and memory; images are kept by size."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from PIL import Image

from tagclip import TagCLIPPredictor
from tagclip.errors import DatasetError
from tagclip.projects.webdemo.kept import Kept, KeptImages
from tagclip.projects.webdemo.session import EncodedImage, Limits, Settings, encode_image
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
        while not turns.waiting:
            pass
        both_wait.set()
        first.result(10), second.result(10)
    # How many steps of the first come before the last of the second.
    last = len(order) - 1 - order[::-1].index("second")
    assert order[:last].count("first") <= expected and order[0] == "first"
    assert sorted(order) == ["first"] * 5 + ["second"] * 5
    assert turns.held == 0 and not turns.waiting and turns.working is None


def test_a_request_ends_in_time_and_when_nobody_waits() -> None:
    clock = Clock()
    turns = Turns(MIB, 60, clock=clock)
    with turns.request("me", wanted) as turn:
        with pytest.raises(RequestError, match="unfinished after 60 seconds"), turn.work():
            clock.now = 60
            pause_point()
            clock.now = 61
            pause_point()
        assert turns.working is None
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
            while not turns.waiting:
                pass
            clock.now = 61
            with pytest.raises(RequestError, match="unfinished after 60 seconds"):
                waiting.result(10)
        finally:
            release.set()
        held.result(10)
    assert turns.held == 0 and not turns.waiting


def test_a_request_may_take_half_of_the_memory() -> None:
    turns = Turns(8 * MIB, 60)
    with turns.request("me", wanted) as turn:
        turn.reserve(3 * MIB)
        with pytest.raises(RequestError, match="found it to need 6 MiB, expected at most 4;"):
            turn.reserve(2 * MIB)
        assert turns.held == 3 * MIB
    assert turns.held == 0


def test_too_many_requests_are_refused_at_once() -> None:
    turns, release = Turns(MIB, 60, per_visitor=2, in_all=3), threading.Event()
    entered = []

    def visit(name: str) -> None:
        with turns.request(name, release.is_set):
            entered.append(name)
            release.wait(20)

    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(visit, name) for name in ("me", "me", "you")]
        while len(turns.others(None)) < 3:
            pass
        try:
            for name, message in (("me", "2 of yours unfinished"), ("third", "3 unfinished")):
                with pytest.raises(RequestError, match=message), turns.request(name, wanted):
                    pass
        finally:
            release.set()
        failed = [task.exception(10) for task in tasks]
    # One after the other: the second of one visitor never began.
    assert sorted(entered) == ["me", "you"] and sum(e is not None for e in failed) == 1


@pytest.fixture
def encoded(tiny_cfg: CfgNode, tmp_path: Path) -> EncodedImage:
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))
    Image.fromarray(picture(70, 95)).save(tmp_path / "a.png")
    return encode_image(predictor, tmp_path / "a.png", "cat, zebra", "", Limits())


def test_what_was_used_longest_ago_is_freed_first(encoded: EncodedImage) -> None:
    images = KeptImages(3 * encoded.nbytes)
    kept = [images.keep(encoded) for _ in range(3)]
    assert images.held == 3 * encoded.nbytes
    images.open(kept[0])
    kept.append(images.keep(encoded))
    assert [each.image is None for each in kept] == [False, True, False, False]
    with pytest.raises(DatasetError, match="found it freed .*press Segment again"):
        images.open(kept[1])
    assert images.find(kept[1]) is None and images.find(kept[3]) is encoded
    # A session that ends frees its image.
    del kept[2:]
    gc.collect()
    assert images.held == encoded.nbytes
    assert isinstance(kept[0], Kept)


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
    for owner, name in ((predictor, "read_image"), (predictor.model, "encode")):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail("decoded"))
    with pytest.raises(DatasetError, match=f"^a.png: {message}") as caught:
        encode_image(predictor, tmp_path / "a.png", "cat", "", limits)
    assert "\n" not in str(caught.value)


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
