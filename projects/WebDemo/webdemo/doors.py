"""What reaches the page at all: requests to its own names and addresses, at a bounded pace.

ASGI middleware without gradio; what requests bring is bounded in `bodies`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from urllib.parse import parse_qs

from tagclip.projects.webdemo.asgi import (
    LONGEST_SESSION,
    App,
    Message,
    Receive,
    Scope,
    Send,
    Slots,
    address_of,
    headers_of,
    is_upload,
    refuse,
)
from tagclip.projects.webdemo.paces import Paces

__all__ = [
    "HOST",
    "CookieDoor",
    "CrowdDoor",
    "FaultDoor",
    "HostDoor",
    "PaceDoor",
    "ProgressDoor",
    "RouteDoor",
    "ShareDoor",
]

logger = logging.getLogger(__name__)

# What a Host header looks like: a name or an address, an IPv6 one in brackets, and maybe a port.
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:@/?#,]+)(:[0-9]{1,5})?")
# What the page and gradio_client ask. gradio answers more: it writes files that nobody counts
# (state of a visit, recorded sound, code), fetches addresses of other machines, shows what others
# do, and takes forms apart on the loop for all.
_OURS = re.compile(
    "/|/(config|theme[.]css|favicon[.]ico|robots[.]txt|manifest[.]json)/?|/(assets|static)/.+|"
    "/gradio_api/((info|app_id|theme[.]css|startup-events|cancel|reset|upload|upload_progress)/?|"
    "queue/(join|data|status)/?|(call|heartbeat)/.+|file=(?! *https?:).+)",
    re.IGNORECASE | re.DOTALL,
)
# Bytes behind the question mark, of which the page needs some hundred; gradio takes each of its
# fields apart, several times, on the loop for all.
_LONGEST_QUERY = 1024
# Uploads and what says how far they are.
_UPLOAD = re.compile("/gradio_api/upload(_progress)?/?")
# Waits up to three seconds for an upload of the name that it is asked for, before it begins.
_PROGRESS = "/gradio_api/upload_progress"
# What an answer is that waits for events.
_EVENTS = "text/event-stream"
# What becomes a question to the model.
_QUESTION = re.compile("/gradio_api/(queue/join|call/|run/|api/)")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Names in a header of proxies.
_MOST_HOSTS = 8
# Seconds that a request waits for the pace of its address.
_LONGEST_WAIT = 15.0
# Requests of an address that are answered at a time, each part of a file by itself; more wait.
_AT_A_TIME = 4
# Requests per second of an address, and how many may come at once; loading the page takes 76.
_PACE, _BURST = 40, 400
# The same of questions, each of which passes through the whole of gradio even where it is refused.
_QUESTION_PACE, _QUESTION_BURST = 8, 80
# Questions of an address that wait or work, as gradio counts them.
_UNFINISHED = 24
# Seconds between the end of an upload and that of its progress.
_FORGET = 10.0


class FaultDoor:
    """Says in one line what gradio answers with a traceback: a request that it does not expect."""

    def __init__(self, app: App) -> None:
        """Stand before the page."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on; where that fails, answer 500 or, if the answer has begun, end it."""
        has_begun = False

        async def begin_and_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, begin_and_send)
        except Exception as error:
            if scope["type"] != "http" or os.environ.get("TAGCLIP_DEBUG") == "1":
                raise
            # Of "response already started" the cause tells more.
            reason = " ".join(f"{type(error).__name__}: {error.__cause__ or error}".split())
            path = f"{scope['method']} {scope['path']}"
            logger.warning("%s: found a request that this page does not expect (%s)", path, reason)
            if not has_begun:
                text = "request: found none that this page answers; reload the page"
                return await refuse(scope, send, 500, text)
            with suppress(Exception):
                await send({"type": "http.response.body", "body": b""})
        return None


class CookieDoor:
    """Takes cookies away, of which the page has none.

    gradio reads them on the one loop for all, and one of 15 KB took Python 3.11.7 a second.
    """

    def __init__(self, app: App) -> None:
        """Stand before the page."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on without them."""
        if scope["type"] == "http":
            headers = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
            scope = {**scope, "headers": headers}
        return await self.app(scope, receive, send)


class CrowdDoor:
    """Bounds the open requests of an address, streams included (429).

    Each has a connection, of which a server in front may bring those of many addresses.
    """

    def __init__(self, app: App, most: int) -> None:
        """Begin with nobody.

        Args:
            app: the page.
            most: of an address.
        """
        self.app, self._most = app, most
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is not too much."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        address = address_of(scope)
        if self._open[address] >= self._most:
            text = f"requests: found {self._most} of your address open, expected fewer"
            return await refuse(scope, send, 429, f"{text}; close some tabs of this page")
        self._open[address] += 1
        try:
            return await self.app(scope, receive, send)
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]


class PaceDoor:
    """Lets requests of an address come at a pace: who sends more than a page needs waits.

    What answers them, and what refuses them, works on one loop for all.
    """

    def __init__(self, app: App, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nobody.

        Args:
            app: the page.
            clock: seconds.
        """
        self.app, self._clock = app, clock
        self._paces = Paces(_PACE, _BURST)
        self._questions = Paces(_QUESTION_PACE, _QUESTION_BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on in time; what would wait too long is refused (429)."""
        if scope["type"] == "http":
            address, now = address_of(scope), self._clock()
            wait, pace = self._paces.wait(address, now, _LONGEST_WAIT), _PACE
            if wait is not None and scope["method"] == "POST" and _QUESTION.match(scope["path"]):
                own, pace = self._questions.wait(address, now, _LONGEST_WAIT), _QUESTION_PACE
                wait = None if own is None else max(wait, own)
            if wait is None:
                text = f"requests: found more than {pace} a second of your address, expected fewer"
                return await refuse(scope, send, 429, f"{text}; try again later")
            if wait > 0:
                await asyncio.sleep(wait)
        return await self.app(scope, receive, send)


class HostDoor:
    """Refuses requests to other names than the page's (421).

    A page of somebody else's may point its own name at this machine (DNS rebinding); the visitor's
    browser then takes both for one site. The name still stands in the Host header.
    """

    def __init__(self, app: App, allowed: Iterable[str]) -> None:
        """Keep the names, with or without a port.

        Args:
            app: the page.
            allowed: beside this machine's loopback names and the address a request arrives at.
        """
        self.app = app
        self.allowed = {_name(host) for host in (*_LOOPBACK, *allowed)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is asked of a name of the page."""
        if scope["type"] in ("http", "websocket"):
            hosts = headers_of(scope, b"host") or [""]
            # From a proxy: the page makes addresses of it. The one name too many is none.
            for part in headers_of(scope, b"x-forwarded-host"):
                hosts += part.split(",", _MOST_HOSTS - 1)
            arrived = _name((scope.get("server") or [""])[0] or "")
            for host in hosts:
                is_host = HOST.fullmatch(host.strip())
                if not is_host or not (_name(host) in self.allowed or _name(host) == arrived):
                    text = (
                        f"Host: found {host.strip()[:80]!r}, expected a name of this page; start "
                        "it with --allow-host NAME if that is one"
                    )
                    return await refuse(scope, send, 421, text)
        return await self.app(scope, receive, send)


def _name(host: str) -> str:
    """A host without its port and brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0].rstrip(".")


class RouteDoor:
    """Refuses addresses that this page never asks (404), and long queries (414)."""

    def __init__(self, app: App) -> None:
        """Stand before the page."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what the page may ask."""
        if scope["type"] == "http":
            if not _OURS.fullmatch(scope["path"]):
                text = f"{scope['path'][:80]!r}: found no address of this page; reload the page"
                return await refuse(scope, send, 404, text)
            length = len(scope.get("query_string", b""))
            if length > _LONGEST_QUERY:
                text = f"query: found {length} bytes, expected at most {_LONGEST_QUERY}"
                return await refuse(scope, send, 414, f"{text}; reload the page")
        return await self.app(scope, receive, send)


class ShareDoor:
    """Answers some requests of an address at a time, and keeps questions of others' places free.

    What answers a request works on one loop for all: who sends many at once would hold it. So would
    files that are sent at once: each of their parts waits for its turn. Who reads slowly, or
    nothing, holds up no other. Uploads have a turn of their own, behind their arrival, which may
    take long.
    """

    def __init__(self, app: App, unfinished: Callable[[str], int]) -> None:
        """Begin with nobody.

        Args:
            app: the page.
            unfinished: questions of an address that wait or work.
        """
        self.app, self._unfinished = app, unfinished
        self._slots: dict[str, Slots] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on when it is this address's turn; what waits for events has none."""
        if scope["type"] != "http" or is_upload(scope) or scope["path"] == _PROGRESS:
            return await self.app(scope, receive, send)
        address = address_of(scope)
        if scope["method"] == "POST" and _QUESTION.match(scope["path"]):
            found = self._unfinished(address)
            if found >= _UNFINISHED:
                text = (
                    f"requests: found {found} of your address unfinished, expected fewer than "
                    f"{_UNFINISHED}; wait for an answer first"
                )
                return await refuse(scope, send, 429, text)
        slots = self._slots.setdefault(address, Slots(_AT_A_TIME))
        slots.users += 1
        try:
            async with AsyncExitStack() as slot:
                await slot.enter_async_context(slots.free)
                is_stream = False

                async def send_between(message: Message) -> None:
                    nonlocal is_stream
                    is_start = message["type"] == "http.response.start"
                    if is_start:
                        # Each of them: for a range of a file gradio sends that of the request, too.
                        kinds = headers_of(message, b"content-type")
                        is_stream = bool(kinds) and all(k.startswith(_EVENTS) for k in kinds)
                    # Sending waits until the client has read what came before.
                    await slot.aclose()
                    await send(message)
                    if not is_stream and (is_start or message.get("more_body", False)):
                        await slot.enter_async_context(slots.free)

                return await self.app(scope, receive, send_between)
        finally:
            slots.users -= 1
            if not slots.users:
                del self._slots[address]


class ProgressDoor:
    """Has the progress of uploads forgotten, which gradio keeps where nobody asks for it."""

    def __init__(self, app: App, forget: Callable[[str], None]) -> None:
        """Stand before the page.

        Args:
            app: the page.
            forget: forgets an upload by the name that its visitor gave it.
        """
        self.app, self._forget = app, forget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on; a name that is too long or one of several is refused (400)."""
        is_asked = scope["type"] == "http" and _UPLOAD.fullmatch(scope["path"])
        names = parse_qs(scope.get("query_string", b"")).get(b"upload_id", []) if is_asked else []
        if len(names) > 1:
            text = f"upload_id: found {len(names)} names, expected one; reload the page"
            return await refuse(scope, send, 400, text)
        if any(len(name) > LONGEST_SESSION for name in names):
            text = f"upload_id: found more than {LONGEST_SESSION} characters; reload the page"
            return await refuse(scope, send, 400, text)
        try:
            return await self.app(scope, receive, send)
        finally:
            for name in names:
                # Who looks at the progress is told of the end first.
                asyncio.get_running_loop().call_later(_FORGET, self._forget, name.decode("latin-1"))
