"""What gradio keeps of visitors, and what of it is let go."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tagclip.projects.webdemo.session import Limits


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
