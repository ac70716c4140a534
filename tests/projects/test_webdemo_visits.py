"""What gradio keeps of visitors, and what of it is let go."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.tiny_checkpoint import save_tiny
from PIL import Image

from tagclip import TagCLIPPredictor
from tagclip.data.prepared_image import ImagePreparer
from tagclip.errors import DatasetError
from tagclip.projects.webdemo.session import Limits, encode_image
from tagclip.projects.webdemo.turns import RequestError, Turns


class Queue:
    """What gradio keeps of sessions."""

    def __init__(self, sessions: list[str], active: list[str]) -> None:
        self.pending_messages_per_session = dict.fromkeys(sessions)
        self.pending_event_ids_session = dict.fromkeys(sessions)
        self.event_ids_to_events = {n: SimpleNamespace(session_hash=n) for n in active}


def test_unread_answers_of_one_address_push_no_other_out() -> None:
    """The oldest of the address with the most go; those of a request at work stay."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    from tagclip.projects.webdemo.visits import Visits

    visits, sessions = Visits(Limits()), []
    for name, address in [("you", "b"), *((f"{n}", "a") for n in range(90)), ("last", "b")]:
        sessions.append(name)
        visits._forget_unread(Queue(sessions, ["3"]), name, address)
    queue = Queue(sessions, ["3"])
    visits._forget_unread(queue, "last", "b")
    left = list(queue.pending_messages_per_session)
    assert left == ["you", "3", *(f"{n}" for n in range(42, 90)), "last"]
    assert list(queue.pending_event_ids_session) == left


def test_the_oldest_unread_messages_of_an_address_go() -> None:
    """Of all its sessions, one at work among them; those of others stay."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    from tagclip.projects.webdemo.visits import Visits

    names = ["a1", "a2", "b1"]
    visits, queue = Visits(Limits()), Queue(names, ["a2"])
    held = {name: asyncio.Queue() for name in names}
    for name in names:
        visits._forget_unread(Queue(names, ["a2"]), name, name[0])
        queue.pending_messages_per_session[name] = held[name]
        for number in range(70):
            held[name].put_nowait(number)
    visits._forget_unread(queue, "a2", "a")
    assert [held[name].qsize() for name in names] == [30, 70, 70]
    assert held["a1"].get_nowait() == 40
    for _ in range(100):
        held["a2"].put_nowait("new")
    visits._forget_unread(queue, "a2", "a")
    assert [held[name].qsize() for name in names] == [0, 100, 70]


@contextmanager
def without_a_search_for_cycles() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ended_in(answer: Callable[..., Any], kind: type[Exception]) -> None:
    """As gradio asks: it keeps the error in a frame of its own traceback."""
    found = None
    try:
        answer(SimpleNamespace(session_hash="s", client=None))
    except kind as error:
        found = error
    assert found is not None


@pytest.mark.parametrize("error", [DatasetError, RequestError, ValueError, MemoryError])
def test_an_error_keeps_nothing_of_the_work_it_ended(error: type[Exception]) -> None:
    """Raised deep below, behind others that it replaces; what is printed of it stays whole."""
    gr = pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    from tagclip.projects.webdemo.visits import Visits, shown_errors

    held = []

    def work() -> None:
        pixels = np.zeros(100)
        held.append(weakref.ref(pixels))
        raise KeyError(len(pixels))

    def replace() -> None:
        logits = np.zeros(100)
        held.append(weakref.ref(logits))
        try:
            work()
        except KeyError as cause:
            try:
                raise OSError(len(logits))
            except OSError:
                raise error("no") from cause

    def handler(encoded: Any) -> None:
        with shown_errors():
            replace()

    is_shown = error in (DatasetError, RequestError)
    answer = Visits(Limits()).attended(handler, needs_image=False)
    with without_a_search_for_cycles():
        ended_in(answer, gr.Error if is_shown else error)
        assert [ref() for ref in held] == [None, None]


def test_a_request_that_nobody_waits_for_keeps_no_pixels(
    tiny_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at a step of the model, which has what the picture became."""
    gr = pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    from tagclip.projects.webdemo.visits import Visits

    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))
    Image.new("RGB", (150, 150)).save(path := tmp_path / "a.png")
    held = []
    turns = Turns(1 << 30, seconds=60)
    prepare_as_ever, request = ImagePreparer.__call__, turns.request

    def prepare(*args: Any) -> Any:
        prepared = prepare_as_ever(*args)
        held.append(weakref.ref(prepared.input["image"]))
        return prepared

    def leave(session: str, is_abandoned: Any, address: str) -> Any:
        return request(session, lambda: bool(held), address)

    monkeypatch.setattr(ImagePreparer, "__call__", prepare)
    monkeypatch.setattr(turns, "request", leave)

    def segment(encoded: Any) -> Any:
        return encode_image(predictor, path, "cat, dog", "", Limits())

    answer = Visits(Limits(), turns).attended(segment, needs_image=False)
    with without_a_search_for_cycles():
        ended_in(answer, gr.Error)
        assert [ref() for ref in held] == [None]
