"""What the doors of the page share: types of ASGI, and what a request says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

__all__ = [
    "LONGEST_SESSION",
    "App",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "Slots",
    "address_of",
    "headers_of",
    "is_upload",
    "refuse",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Characters of a session's or upload's name, of which the page makes some ten; it keeps what it is
# told.
LONGEST_SESSION = 64


class Slots:
    """Requests of an address that are answered at a time.

    Attributes:
        free: one for each request that is answered at a time.
        users: requests that wait for one or have one.
    """

    def __init__(self, count: int) -> None:
        """Begin without any."""
        self.free, self.users = asyncio.Semaphore(count), 0


def address_of(scope: Scope) -> str:
    """Where a request comes from."""
    return (scope.get("client") or [""])[0]


def is_upload(scope: Scope) -> bool:
    """Whether a request brings a file."""
    return scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload")


def headers_of(scope: Mapping[str, Any], name: bytes) -> list[str]:
    """All values of a header."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


async def refuse(scope: Scope, send: Send, status: int, text: str) -> None:
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
