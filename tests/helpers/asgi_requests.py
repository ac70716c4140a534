"""Requests to ASGI middleware without a server, and a page behind it that takes everything."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

__all__ = ["Page", "ask", "scope_of"]


class Page:
    """Takes everything; knows what it got. An upload lies where gradio would put it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bodies = folder, []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        path = self.folder / f"{len(self.bodies)}.png"
        self.bodies.append(body)
        path.write_bytes(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps([str(path)]).encode()})


def ask(app: Any, path: str = "/", body: bytes | list[bytes] = b"", **more: Any) -> tuple[int, str]:
    """Status and text of the answer; `body` in pieces, None among them is a broken connection."""
    pieces = [body] if isinstance(body, bytes) else list(body)
    headers = {"host": "127.0.0.1:7860"} | more.get("headers", {})
    scope = {
        "type": "http",
        "method": more.get("method", "POST" if body else "GET"),
        "path": path,
        "headers": [(k.encode(), v.encode()) for k, v in headers.items() if v is not None],
        "client": (more.get("client", "1.2.3.4"), 5),
        "query_string": more.get("query", b""),
        "server": ("10.0.0.7", 7860),
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        piece = pieces.pop(0) if pieces else None
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    if not sent:
        return 0, ""
    return sent[0]["status"], b"".join(m["body"] for m in sent[1:]).decode()


def scope_of(client: str, method: str = "GET", path: str = "/") -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "headers": [], "client": (client, 5)}
