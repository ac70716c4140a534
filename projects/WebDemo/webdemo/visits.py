"""Between gradio and the handlers: who asks, whether anybody still waits, what is kept for whom."""

from __future__ import annotations

import asyncio
import html
import inspect
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gradio as gr
from detectron2.utils import logger as detectron2_logger
from gradio.context import LocalContext
from gradio.utils import LRUCache

from tagclip.errors import TagCLIPError
from tagclip.projects.webdemo.kept import KeptImages
from tagclip.projects.webdemo.session import EncodedImage, Limits
from tagclip.projects.webdemo.turns import Turns
from tagclip.utils.text import one_line

__all__ = ["Messages", "Visits", "address_of", "shown_errors", "shown_message"]

# Answers that nobody has fetched, of as many sessions, and lines that are logged once.
_UNREAD, _LOGGED = 50, 2000
# Of an address, each up to a megabyte: 18 requests at work have three each.
_MESSAGES = 100


class Messages(LRUCache):
    """Session -> what it has not fetched yet; to remove one twice is no error.

    Gradio removes a session when a stream of it is closed. At the second one of the session it
    would fail, before it ends the task that keeps the stream alive: that would stay for good.
    """

    def __delitem__(self, session: str) -> None:
        with suppress(KeyError):
            super().__delitem__(session)


class Visits:
    """All requests of the page and what is kept between them."""

    def __init__(self, limits: Limits, turns: Turns | None = None) -> None:
        """Begin with nothing.

        Args:
            limits: of requests, and of what is kept.
            turns: that the requests take; None makes some.
        """
        self.turns = turns or Turns(limits.memory, limits.seconds)
        self.kept = KeptImages(limits.kept, limits.kept_seconds)
        # Of the sessions with unread answers.
        self._addresses: dict[str, str] = {}
        self._lock = threading.Lock()

    def attended(self, handler: Callable[..., Any], needs_image: bool = True) -> Callable[..., Any]:
        """Return a handler for gradio that takes turns, and whose encoded images lie in `kept`.

        Not in gradio's own state: of that, the sessions of one visitor push out everybody else's.

        Args:
            handler: takes the ``encoded`` image of the session, None before the first, behind the
                ``request`` if it takes that, and may return another one, first of a tuple.
            needs_image: whether it cannot do without an image that was kept.
        """
        find = self.kept.open if needs_image else self.kept.find
        parameters = inspect.signature(handler).parameters

        def answer(request: gr.Request, *args: Any) -> Any:
            session, address = request.session_hash, address_of(request)
            first = [request] if "request" in parameters else []
            with _nothing_kept_of_errors(), shown_errors(), self._request(session, address):
                result = handler(*first, find(session) if session else None, *args)
                if isinstance(result, tuple) and isinstance(result[0], EncodedImage):
                    # Without a name nobody can come back to it.
                    if session:
                        self.kept.keep(session, result[0], address)
                    result = result[1:]
                return result

        # gradio gives what these say, and its API shows these names.
        own = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        values = [p for name, p in parameters.items() if name not in ("request", "encoded")]
        answer.__signature__ = inspect.Signature([own, *values])
        answer.__annotations__ = {"request": gr.Request}
        answer.__name__, answer.__doc__ = handler.__name__, handler.__doc__
        return answer

    @contextmanager
    def _request(self, session: str | None, address: str) -> Iterator[None]:
        event = LocalContext.event_id.get(None)
        blocks = LocalContext.blocks.get(None)
        queue = None if blocks is None else blocks._queue
        if queue is not None:
            self._forget_unread(queue, session or event or "", address)

        def is_abandoned() -> bool:
            """Gradio marks the event of a tab that is closed, and forgets one that is cancelled."""
            if queue is None or event is None:
                return False
            found = queue.event_ids_to_events.get(event)
            return found is None or not found.alive

        with self.turns.request(session or event or "", is_abandoned, address):
            yield

    def _forget_unread(self, queue: Any, session: str, address: str) -> None:
        """Let go of what gradio and detectron2 keep of visitors for as long as the server runs.

        Gradio keeps messages of 2000 sessions until they are fetched. Those of a session with a
        request that still runs stay, and the address with the most others loses its oldest.
        """
        with self._lock:
            known = {
                name: self._addresses.get(name, "")
                for name in list(queue.pending_messages_per_session)
            }
            self._addresses = known | {session: address}
            active = {event.session_hash for event in list(queue.event_ids_to_events.values())}
            _drop_oldest(queue, [n for n, place in self._addresses.items() if place == address])
            idle = {name: place for name, place in known.items() if name not in active}
            counts = Counter(idle.values())
            while len(idle) > _UNREAD:
                most = max(counts.values())
                name = next(name for name, place in idle.items() if counts[place] == most)
                counts[idle.pop(name)] -= 1
                queue.pending_messages_per_session.pop(name, None)
                queue.pending_event_ids_session.pop(name, None)
        if len(detectron2_logger._LOG_COUNTER) > _LOGGED:
            detectron2_logger._LOG_COUNTER.clear()


def _drop_oldest(queue: Any, sessions: list[str]) -> None:
    """Drop the oldest messages of an address beyond those that its pages may have to fetch."""
    held = [queue.pending_messages_per_session.get(name) for name in sessions]
    waiting = [messages for messages in held if messages is not None]
    surplus = sum(messages.qsize() for messages in waiting) - _MESSAGES
    for messages in waiting:
        while surplus > 0 and not messages.empty():
            # The page may fetch one at the same time.
            with suppress(asyncio.QueueEmpty):
                messages.get_nowait()
            surplus -= 1


def address_of(request: gr.Request) -> str:
    """Where a visitor is."""
    return request.client.host if request.client else ""


def shown_message(text: str) -> str:
    """One line as HTML, which gradio takes messages for."""
    return html.escape(one_line(text), quote=False)


@contextmanager
def shown_errors() -> Iterator[None]:
    """Show what the visitor can mend."""
    try:
        yield
    except TagCLIPError as error:
        raise gr.Error(shown_message(str(error)), print_exception=False) from error


@contextmanager
def _nothing_kept_of_errors() -> Iterator[None]:
    """Let go of what the work had when it ended: pictures, logits.

    gradio puts an error into a frame of its own traceback: all frames below would keep what they
    hold until Python looks for cycles. The traceback can still be printed.
    """
    try:
        yield
    except BaseException as error:
        errors = [error]
        for each in errors:
            traceback.clear_frames(each.__traceback__)
            before = (each.__cause__, each.__context__)
            errors += [e for e in before if e is not None and e not in errors]
        raise
