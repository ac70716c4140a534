"""What reaches the page at all: requests to its own names, with bodies of a bounded size.

ASGI middleware without gradio. An upload is received whole, into an unnamed file, before gradio
sees it: what is too large, too much or broken off leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs

from tagclip.projects.webdemo.paces import Paces
from tagclip.projects.webdemo.space import FULL, UploadSpace, megabytes

__all__ = [
    "HOST",
    "ROOM_AROUND_FILE",
    "BodyDoor",
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

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# What a Host header looks like: a name or an address, an IPv6 one in brackets, and maybe a port.
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:@/?#,]+)(:[0-9]{1,5})?")
# Of gradio, and not of this page: they write files that nobody counts (state of a visit, recorded
# sound, code), fetch addresses of other machines, or show what others do.
_NOT_OURS = re.compile(
    "/gradio_api/(deep_link|process_recording|stream|run-history|profiling|dev|vibe-|undo-vibe-|"
    "proxy=|file[=/] *https?:)|/monitoring",
    re.IGNORECASE,
)
# Uploads and what says how far they are.
_UPLOAD = re.compile("/upload(_progress)?/*$")
# What becomes a question to the model.
_QUESTION = re.compile("/gradio_api/(queue/join|call/|run/|api/)")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Bytes of words, sliders and paths: 200 words of 80 letters, each written as a number.
_LARGEST_JSON = 1 << 18
# Lists and objects in a json; a request of the page has some five.
_MOST_LISTS = 100
# In what 200 words and as many of context may hold, and some.
_MOST_COMMAS = 40_000
# Names in a header of proxies.
_MOST_HOSTS = 8
# Seconds that a request waits for the pace of its address.
_LONGEST_WAIT = 15.0
# Requests of an address that are answered at a time; more wait for these to begin their answers.
_AT_A_TIME = 4
# Requests per second of an address, and how many may come at once; loading the page takes 76.
_PACE, _BURST = 40, 400
# The same of questions, each of which passes through the whole of gradio even where it is refused.
_QUESTION_PACE, _QUESTION_BURST = 8, 80
# Questions of an address that wait or work, as gradio counts them.
_UNFINISHED = 24
# Bytes of boundaries and names around a file.
ROOM_AROUND_FILE = 1 << 16
# Seconds without a byte after which an upload ends.
_SILENCE = 30.0
# Seconds after which it ends in any case: 20 MB take half a MBit a second.
_LONGEST = 320.0
_PIECE = 1 << 16
# Seconds between the end of an upload and that of its progress.
_FORGET = 10.0
# Characters of a session's or upload's name, of which the page makes some ten; it keeps what it is
# told.
_LONGEST_SESSION = 64


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
                return await _refuse(scope, send, 500, text)
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
        address = _address(scope)
        if self._open[address] >= self._most:
            text = f"requests: found {self._most} of your address open, expected fewer"
            return await _refuse(scope, send, 429, f"{text}; close some tabs of this page")
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
            address, now = _address(scope), self._clock()
            wait, pace = self._paces.wait(address, now, _LONGEST_WAIT), _PACE
            if wait is not None and scope["method"] == "POST" and _QUESTION.match(scope["path"]):
                own, pace = self._questions.wait(address, now, _LONGEST_WAIT), _QUESTION_PACE
                wait = None if own is None else max(wait, own)
            if wait is None:
                text = f"requests: found more than {pace} a second of your address, expected fewer"
                return await _refuse(scope, send, 429, f"{text}; try again later")
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
            hosts = _headers(scope, b"host") or [""]
            # From a proxy: the page makes addresses of it. The one name too many is none.
            for part in _headers(scope, b"x-forwarded-host"):
                hosts += part.split(",", _MOST_HOSTS - 1)
            arrived = _name((scope.get("server") or [""])[0] or "")
            for host in hosts:
                is_host = HOST.fullmatch(host.strip())
                if not is_host or not (_name(host) in self.allowed or _name(host) == arrived):
                    text = (
                        f"Host: found {host.strip()[:80]!r}, expected a name of this page; start "
                        "it with --allow-host NAME if that is one"
                    )
                    return await _refuse(scope, send, 421, text)
        return await self.app(scope, receive, send)


class RouteDoor:
    """Refuses addresses that gradio answers and this page never asks (404)."""

    def __init__(self, app: App) -> None:
        """Stand before the page."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what the page may ask."""
        if scope["type"] == "http" and _NOT_OURS.match(scope["path"]):
            text = f"{scope['path'][:80]!r}: found no address of this page; reload the page"
            return await _refuse(scope, send, 404, text)
        return await self.app(scope, receive, send)


class ShareDoor:
    """Answers some requests of an address at a time, and keeps questions of others' places free.

    What answers a request works on one loop for all: who sends many at once would hold it. Uploads
    have a turn of their own, behind their arrival, which may take long.
    """

    def __init__(self, app: App, unfinished: Callable[[str], int]) -> None:
        """Begin with nobody.

        Args:
            app: the page.
            unfinished: questions of an address that wait or work.
        """
        self.app, self._unfinished = app, unfinished
        self._slots: dict[str, _Slots] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on when it is this address's turn; what streams is counted until it begins."""
        if scope["type"] != "http" or _is_upload(scope):
            return await self.app(scope, receive, send)
        address = _address(scope)
        if scope["method"] == "POST" and _QUESTION.match(scope["path"]):
            found = self._unfinished(address)
            if found >= _UNFINISHED:
                text = (
                    f"requests: found {found} of your address unfinished, expected fewer than "
                    f"{_UNFINISHED}; wait for an answer first"
                )
                return await _refuse(scope, send, 429, text)
        slots = self._slots.setdefault(address, _Slots(_AT_A_TIME))
        slots.users += 1
        try:
            async with AsyncExitStack() as slot:
                await slot.enter_async_context(slots.free)

                async def begin_and_send(message: Message) -> None:
                    # At the first message; then nothing is left to give back.
                    await slot.aclose()
                    await send(message)

                return await self.app(scope, receive, begin_and_send)
        finally:
            slots.users -= 1
            if not slots.users:
                del self._slots[address]


class _Slots:
    """Of an address.

    Attributes:
        free: one for each request that is answered at a time.
        users: requests that wait for one or have one.
    """

    def __init__(self, count: int) -> None:
        self.free, self.users = asyncio.Semaphore(count), 0


def _address(scope: Scope) -> str:
    """Where a request comes from."""
    return (scope.get("client") or [""])[0]


def _is_upload(scope: Scope) -> bool:
    return scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload")


def _name(host: str) -> str:
    """A host without its port and brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0].rstrip(".")


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
        """Hand on; a name that is too long is refused (400)."""
        is_upload = scope["type"] == "http" and _UPLOAD.search(scope["path"])
        names = parse_qs(scope.get("query_string", b"")).get(b"upload_id", []) if is_upload else []
        if any(len(name) > _LONGEST_SESSION for name in names):
            text = f"upload_id: found more than {_LONGEST_SESSION} characters; reload the page"
            return await _refuse(scope, send, 400, text)
        try:
            return await self.app(scope, receive, send)
        finally:
            for name in names:
                # Who looks at the progress is told of the end first.
                asyncio.get_running_loop().call_later(_FORGET, self._forget, name.decode("latin-1"))


class BodyDoor:
    """Bounds what requests bring (413), and takes files at the page's one address for them only."""

    def __init__(self, app: App, space: UploadSpace, largest: int, folder: Path) -> None:
        """Keep the limits.

        Args:
            app: the page.
            space: for the files of all visitors.
            largest: bytes of a file.
            folder: where files lie while they arrive, without a name, and where the page puts them.
        """
        self.app, self.space, self.largest, self.folder = app, space, largest, folder
        self._one = asyncio.Lock()
        # Of each address one waits for that, so that others wait for one of it at most.
        self._of_address: dict[str, _Slots] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive the body whole and hand it on."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        hand_on = self._hand_on_file if _is_upload(scope) else self._hand_on_json
        try:
            return await hand_on(scope, receive, send)
        except _Refusal as refusal:
            # Who has gone hears nothing.
            if refusal.status:
                await _refuse(scope, send, refusal.status, str(refusal))
        return None

    async def _hand_on_json(self, scope: Scope, receive: Receive, send: Send) -> None:
        """In memory: words need no disk, which may be full."""
        if _kind(scope).lower().startswith("multipart/"):
            raise _Refusal(415, "body: found files, expected json; use /upload")
        _announced(scope, _LARGEST_JSON)
        with BytesIO() as body:
            await _receive_all(receive, body.write, _LARGEST_JSON)
            if text := _wrong_json(body.getvalue()):
                raise _Refusal(400, text)
            size = body.tell()
            body.seek(0)
            await self.app(scope, _Replay(body, size, receive), send)

    async def _hand_on_file(self, scope: Scope, receive: Receive, send: Send) -> None:
        largest, visitor = self.largest + ROOM_AROUND_FILE, _address(scope)
        if text := self.space.refusal(visitor, _announced(scope, largest)):
            raise _Refusal(413, f"upload: {text}")
        answer, arriving = _Answer(send), _Arriving(self.space, visitor)
        try:
            # Without a buffer: a write that fails is known at once.
            with tempfile.TemporaryFile(dir=self.folder, buffering=0) as body:
                await _receive_all(receive, partial(arriving.put, body), largest)
                size = body.tell()
                body.seek(0)
                if text := _wrong_parts(body, _kind(scope)):
                    raise _Refusal(400, text)
                body.seek(0)
                await self._hand_on_alone(scope, _Replay(body, size, receive), answer)
        except OSError as error:
            if error.errno not in FULL or answer.has_begun:
                raise
            # gradio takes as much room again.
            self.space.give_room(visitor)
            text = "upload: found no room on this server's disk, expected some; try again later"
            raise _Refusal(507, text) from error
        finally:
            self.space.arrived(visitor, arriving.nbytes, answer.paths)

    async def _hand_on_alone(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One at a time: what then lies there belongs to nobody.

        The answer is sent behind that: who does not read it holds up nobody else.
        """
        address, answer = _address(scope), []

        async def keep(message: Message) -> None:
            answer.append(message)

        slots = self._of_address.setdefault(address, _Slots(1))
        slots.users += 1
        try:
            async with slots.free, self._one:
                try:
                    await self.app(scope, receive, keep)
                finally:
                    self._remove_unnamed()
        finally:
            slots.users -= 1
            if not slots.users:
                del self._of_address[address]
        for message in answer:
            await send(message)

    def _remove_unnamed(self) -> None:
        """Remove what gradio has received and not named in its answer: it keeps that for good."""
        for path in self.folder.glob(f"{tempfile.gettempprefix()}*"):
            if path.is_file():
                path.unlink(missing_ok=True)


class _Refusal(Exception):
    """A body is not handed on; 0 as status: nobody waits for an answer."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


class _Arriving:
    """Bytes of an upload that have come, counted as its visitor's."""

    def __init__(self, space: UploadSpace, visitor: str) -> None:
        self._space, self._visitor, self.nbytes = space, visitor, 0

    def put(self, body: IO[bytes], piece: bytes) -> None:
        """Write a piece; where the disk is full, the visitor's oldest files make room."""
        if text := self._space.take(self._visitor, len(piece)):
            raise _Refusal(413, f"upload: {text}")
        self.nbytes += len(piece)
        left = memoryview(piece)
        while left:
            try:
                left = left[body.write(left) :]
            except OSError as error:
                if error.errno not in FULL or not self._space.give_room(self._visitor):
                    raise


async def _receive_all(receive: Receive, put: Callable[[bytes], object], largest: int) -> None:
    """Receive a body, in time and of at most so many bytes."""
    end, size = asyncio.get_running_loop().time() + _LONGEST, 0
    while True:
        left = end - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(receive(), min(_SILENCE, left))
        except TimeoutError as error:
            text = (
                f"body: found no byte for {_SILENCE:g} seconds, or no end for {_LONGEST:g}, "
                "expected more; try again"
            )
            raise _Refusal(408, text) from error
        if message["type"] == "http.disconnect":
            raise _Refusal(0)
        piece = message.get("body", b"")
        size += len(piece)
        if size > largest:
            raise _Refusal(413, _too_large(size, largest))
        put(piece)
        if not message.get("more_body", False):
            return


class _Replay:
    """Hands a received body on, and then waits as the server does."""

    def __init__(self, body: IO[bytes], left: int, receive: Receive) -> None:
        self._body, self._left, self._receive = body, left, receive
        self._is_done = False

    async def __call__(self) -> Message:
        if self._is_done:
            return await self._receive()
        piece = self._body.read(_PIECE)
        self._left -= len(piece)
        self._is_done = self._left <= 0
        return {"type": "http.request", "body": piece, "more_body": not self._is_done}


class _Answer:
    """Hands the answer to an upload on, and reads in it where the files lie."""

    def __init__(self, send: Send) -> None:
        self._send, self._is_good, self._body = send, False, b""
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            self._is_good = message["status"] == 200
        elif message["type"] == "http.response.body" and self._is_good:
            self._body += message.get("body", b"")
        await self._send(message)

    @property
    def paths(self) -> list[str]:
        return json.loads(self._body) if self._body else []


def _wrong_parts(body: IO[bytes], kind: str) -> str:
    """Say what is wrong with the parts of an upload, "" if it is one that ends.

    Of several, gradio may keep the first and fail at the next; what is no upload it refuses.
    """
    if not kind.lower().startswith("multipart/"):
        return ""
    boundaries = re.findall("boundary *= *([^;]*)", kind, re.IGNORECASE)
    delimiter = b"--" + "".join(boundaries).strip(' "').encode("latin-1")
    found, tail = 0, b""
    while piece := body.read(_PIECE):
        piece = tail + piece
        found += piece.count(delimiter)
        # What the next one completes: a whole delimiter in it would count twice.
        tail = piece[1 - len(delimiter) :]
    # One before the part and one behind it.
    if len(boundaries) != 1 or found != 2:
        return "upload: found other parts, expected one whole file; send files one by one"
    return ""


def _wrong_json(body: bytes) -> str:
    """Say what is wrong with values, lists and session of a json, "" if nothing is."""
    if body.count(b",") > _MOST_COMMAS:
        return (
            f"body: found more than {_MOST_COMMAS} commas, expected values of this page; reload it"
        )
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        # The page says so.
        return ""
    left, lists = [content], 0
    while left and lists <= _MOST_LISTS:
        value = left.pop()
        if isinstance(value, (list, dict)):
            lists += 1
            left += value if isinstance(value, list) else value.values()
    if lists > _MOST_LISTS:
        return (
            f"body: found more than {_MOST_LISTS} lists and objects, expected values of this page; "
            "reload it"
        )
    session = content.get("session_hash") if isinstance(content, dict) else None
    if isinstance(session, str) and len(session) > _LONGEST_SESSION:
        return (
            f"session_hash: found {len(session)} characters, expected at most {_LONGEST_SESSION}; "
            "reload the page"
        )
    return ""


def _kind(scope: Mapping[str, Any]) -> str:
    return next(iter(_headers(scope, b"content-type")), "")


def _announced(scope: Mapping[str, Any], largest: int) -> int:
    """Bytes that the body has by its header, at most so many; without a header so many."""
    length = next(iter(_headers(scope, b"content-length")), "")
    announced = int(length) if length.isascii() and length.isdigit() else largest
    if announced > largest:
        raise _Refusal(413, _too_large(announced, largest))
    return announced


def _headers(scope: Mapping[str, Any], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _too_large(found: int, largest: int) -> str:
    sizes = f"found {megabytes(found)} or more, expected at most {megabytes(largest)}"
    return f"body: {sizes}; make it smaller"


async def _refuse(scope: Scope, send: Send, status: int, text: str) -> None:
    """Answer with one line, and end the connection: what else comes is not read."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = f"{text}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
