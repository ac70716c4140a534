"""What requests bring: bodies of a bounded size, received whole before the page sees them.

ASGI middleware without gradio. An upload goes into an unnamed file: what is too large, too much or
broken off leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

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
from tagclip.projects.webdemo.space import FULL, UploadSpace, megabytes

__all__ = ["ROOM_AROUND_FILE", "BodyDoor"]

# Bytes of words, sliders and paths: 200 words of 80 letters, each written as a number.
_LARGEST_JSON = 1 << 18
# Lists and objects in a json; a request of the page has some five.
_MOST_LISTS = 100
# In what 200 words and as many of context may hold, and some.
_MOST_COMMAS = 40_000
# Bytes of boundaries and names around a file.
ROOM_AROUND_FILE = 1 << 16
# Seconds without a byte after which an upload ends.
_SILENCE = 30.0
# Seconds after which it ends in any case: 20 MB take half a MBit a second.
_LONGEST = 320.0
_PIECE = 1 << 16
# What browsers and programs say of an upload. gradio decodes names and texts by the charset, on the
# loop for all, and for some the time grows with the square of their length.
_UPLOAD_KIND = re.compile(
    r"""multipart/form-data(\ *;\ *charset="?utf-8"?)?
    \ *;\ *boundary=("?)(?P<boundary>[\w'()+,./:=?-]{1,70})\2(\ *;\ *charset="?utf-8"?)?\ *""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
_JSON = "application/json"
# Of a file: gradio decodes what comes without a filename as a text.
_FILE_FIELD = re.compile(rb'form-data *; *name="?files"?; *filename=.+', re.IGNORECASE)


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
        self._of_address: dict[str, Slots] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive the body whole and hand it on."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        hand_on = self._hand_on_file if is_upload(scope) else self._hand_on_json
        try:
            return await hand_on(scope, receive, send)
        except _Refusal as refusal:
            # Who has gone hears nothing.
            if refusal.status:
                await refuse(scope, send, refusal.status, str(refusal))
        return None

    async def _hand_on_json(self, scope: Scope, receive: Receive, send: Send) -> None:
        """In memory: words need no disk, which may be full."""
        # gradio would take a form apart on the loop for all.
        for kind in headers_of(scope, b"content-type"):
            if kind.partition(";")[0].strip().lower() != _JSON:
                text = f"body: found {kind[:80]!r}, expected json ({_JSON}); use /upload for files"
                raise _Refusal(415, text)
        _announced(scope, _LARGEST_JSON)
        with BytesIO() as body:
            await _receive_all(receive, body.write, _LARGEST_JSON)
            if text := _wrong_json(body.getvalue()):
                raise _Refusal(400, text)
            size = body.tell()
            body.seek(0)
            await self.app(scope, _Replay(body, size, receive), send)

    async def _hand_on_file(self, scope: Scope, receive: Receive, send: Send) -> None:
        largest, visitor = self.largest + ROOM_AROUND_FILE, address_of(scope)
        kind = _kind(scope)
        shape = _UPLOAD_KIND.fullmatch(kind)
        # What is no multipart gradio refuses without a look at the body.
        if not shape and "multipart" in kind.lower():
            text = (
                f"Content-Type: found {kind[:120]!r}, expected multipart/form-data with a boundary "
                "and no charset but utf-8; send the file so"
            )
            raise _Refusal(415, text)
        if text := self.space.refusal(visitor, _announced(scope, largest)):
            raise _Refusal(413, f"upload: {text}")
        answer, arriving = _Answer(send), _Arriving(self.space, visitor)
        try:
            # Without a buffer: a write that fails is known at once.
            with tempfile.TemporaryFile(dir=self.folder, buffering=0) as body:
                await _receive_all(receive, partial(arriving.put, body), largest)
                size = body.tell()
                body.seek(0)
                if shape and (text := _wrong_parts(body, shape["boundary"])):
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
        address, answer = address_of(scope), []

        async def keep(message: Message) -> None:
            answer.append(message)

        slots = self._of_address.setdefault(address, Slots(1))
        slots.users += 1
        try:
            async with slots.free, self._one:
                try:
                    await self.app(scope, receive, keep)
                finally:
                    self._remove_unnamed()
                _refuse_hidden(answer)
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


def _refuse_hidden(answer: list[Message]) -> None:
    """gradio keeps such a file, and then takes it for none of this page."""
    for path in map(Path, _paths(answer)):
        if path.name.startswith("."):
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()
            raise _Refusal(
                400,
                f"upload: found the name {path.name!r}, expected one that does not begin with a "
                "dot; rename the file",
            )


def _paths(answer: list[Message]) -> list[str]:
    """Where files of a good answer to an upload lie."""
    status = next((message["status"] for message in answer if "status" in message), 0)
    body = b"".join(message.get("body", b"") for message in answer)
    return json.loads(body) if status == 200 and body else []


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
        self._send, self._sent = send, []

    async def __call__(self, message: Message) -> None:
        self._sent.append(message)
        await self._send(message)

    @property
    def has_begun(self) -> bool:
        return bool(self._sent)

    @property
    def paths(self) -> list[str]:
        return _paths(self._sent)


def _wrong_parts(body: IO[bytes], boundary: str) -> str:
    """Say what is wrong with the parts of an upload, "" if it is one file that ends.

    Of several, gradio may keep the first and fail at the next.
    """
    delimiter = b"--" + boundary.encode()
    if not _begins_with_file(body.read(_PIECE), delimiter):
        return (
            "upload: found a part that is no file, expected one named files with a filename; send "
            "a file"
        )
    body.seek(0)
    found, tail = 0, b""
    while piece := body.read(_PIECE):
        piece = tail + piece
        found += piece.count(delimiter)
        # What the next one completes: a whole delimiter in it would count twice.
        tail = piece[1 - len(delimiter) :]
    # One before the part and one behind it.
    if found != 2:
        return "upload: found other parts, expected one whole file; send files one by one"
    return ""


def _begins_with_file(piece: bytes, delimiter: bytes) -> bool:
    """Whether the header of the first part is that of a file."""
    head, end, _ = piece.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    named = [line.partition(b":") for line in lines]
    # Of several gradio takes the last.
    fields = [value.strip() for name, _, value in named if name.lower() == b"content-disposition"]
    is_file = len(fields) == 1 and bool(_FILE_FIELD.fullmatch(fields[0]))
    return bool(end) and first == delimiter and is_file


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
    if isinstance(session, str) and len(session) > LONGEST_SESSION:
        return (
            f"session_hash: found {len(session)} characters, expected at most {LONGEST_SESSION}; "
            "reload the page"
        )
    return ""


def _kind(scope: Mapping[str, Any]) -> str:
    return next(iter(headers_of(scope, b"content-type")), "")


def _announced(scope: Mapping[str, Any], largest: int) -> int:
    """Bytes that the body has by its header, at most so many; without a header so many."""
    length = next(iter(headers_of(scope, b"content-length")), "")
    announced = int(length) if length.isascii() and length.isdigit() else largest
    if announced > largest:
        raise _Refusal(413, _too_large(announced, largest))
    return announced


def _too_large(found: int, largest: int) -> str:
    sizes = f"found {megabytes(found)} or more, expected at most {megabytes(largest)}"
    return f"body: {sizes}; make it smaller"
