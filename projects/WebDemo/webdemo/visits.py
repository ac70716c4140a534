"""Between gradio and the handlers: who asks, whether anybody still waits, what is kept for whom."""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import gradio as gr
from detectron2.utils import logger as detectron2_logger
from gradio.context import LocalContext

from tagclip.errors import TagCLIPError
from tagclip.projects.webdemo.kept import Kept, KeptImages
from tagclip.projects.webdemo.session import EncodedImage, Limits
from tagclip.projects.webdemo.turns import Turns
from tagclip.utils.text import one_line

__all__ = ["Visits", "shown_errors", "shown_message"]

# Answers that nobody has fetched, of as many sessions, and lines that are logged once.
_UNREAD, _LOGGED = 50, 2000


class Visits:
    """All requests of the page and what is kept between them."""

    def __init__(self, limits: Limits) -> None:
        """Begin with nothing."""
        self.turns = Turns(limits.memory, limits.seconds)
        self.kept = KeptImages(limits.kept)

    def attended(self, handler: Callable[..., Any], needs_image: bool = True) -> Callable[..., Any]:
        """Return a handler that takes turns, and whose encoded images lie in `kept`.

        Args:
            handler: takes and returns `EncodedImage`; a generator yields once, and ends when
                gradio has what it yielded.
            needs_image: whether it cannot do without the image that was kept.
        """
        find = self.kept.open if needs_image else self.kept.find

        def outside(value: Any) -> Any:
            return self.kept.keep(value) if isinstance(value, EncodedImage) else value

        def call(function: Callable[..., Any], *args: Any) -> Any:
            with shown_errors(), self._request():
                given = [find(arg) if isinstance(arg, Kept) else arg for arg in args]
                result = function(*given)
                return tuple(map(outside, result)) if isinstance(result, tuple) else result

        if not inspect.isgeneratorfunction(handler):
            return wraps(handler)(lambda *args: call(handler, *args))

        @wraps(handler)
        def run(*args: Any) -> Iterator[Any]:
            steps: list[Iterator[Any]] = []

            def first(*given: Any) -> Any:
                steps.append(handler(*given))
                return next(steps[0])

            try:
                yield call(first, *args)
            finally:
                for each in steps:
                    each.close()

        return run

    @contextmanager
    def _request(self) -> Iterator[None]:
        request, event = LocalContext.request.get(None), LocalContext.event_id.get(None)
        blocks = LocalContext.blocks.get(None)
        queue = None if blocks is None else blocks._queue
        if queue is not None:
            _forget_unread(queue)

        def is_abandoned() -> bool:
            """Gradio marks the event of a tab that is closed, and forgets one that is cancelled."""
            if queue is None or event is None:
                return False
            found = queue.event_ids_to_events.get(event)
            return found is None or not found.alive

        visitor = getattr(request, "session_hash", None) or event or ""
        with self.turns.request(visitor, is_abandoned):
            yield


def _forget_unread(queue: Any) -> None:
    """Let go of what gradio and detectron2 keep of visitors for as long as the server runs.

    Gradio keeps messages of 2000 sessions until they are fetched; nothing is taken from a session
    with a request that still runs.
    """
    active = {event.session_hash for event in list(queue.event_ids_to_events.values())}
    idle = [name for name in list(queue.pending_messages_per_session) if name not in active]
    for name in idle[:-_UNREAD]:
        queue.pending_messages_per_session.pop(name, None)
        queue.pending_event_ids_session.pop(name, None)
    if len(detectron2_logger._LOG_COUNTER) > _LOGGED:
        detectron2_logger._LOG_COUNTER.clear()


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
