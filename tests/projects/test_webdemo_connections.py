"""Connections of the web page: so many of an address and in all, and none that does nothing."""

from __future__ import annotations

import gc
import logging
import resource
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tagclip.projects.webdemo.connections import AcceptFilter, Connections, most_connections
from tagclip.projects.webdemo.paces import Paces

uvicorn = pytest.importorskip("uvicorn", reason="not installed: pip install '.[demo]'")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="has other loopback addresses")

MUCH = 64 << 20
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
Connect = Callable[[str], socket.socket]


async def page(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer /wait when the visitor has gone, /much with 64 MiB, and all else at once."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    if scope["path"] == "/much":
        for _ in range(MUCH >> 20):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
    while scope["path"] == "/wait" and (await receive())["type"] != "http.disconnect":
        pass
    await send({"type": "http.response.body", "body": b"good"})


@contextmanager
def serving(connections: Connections) -> Iterator[Connect]:
    """A server with these bounds; the function gives a connection from an address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(page, log_level="error", lifespan="off", timeout_keep_alive=60)
        config.load()
        config.http_protocol_class = connections.bounded(config.http_protocol_class)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        listening.listen()
        thread.start()
        try:
            with ExitStack() as opened:

                def connect(address: str) -> socket.socket:
                    place = listening.getsockname()
                    found = socket.create_connection(place, 20, source_address=(address, 0))
                    return opened.enter_context(found)

                yield connect
        finally:
            server.should_exit = True
            thread.join()


def is_closed(connection: socket.socket) -> bool:
    """Wait for the end, or for an answer."""
    try:
        return not connection.recv(1000)
    except ConnectionResetError:
        return True


def answers(connection: socket.socket) -> bool:
    try:
        connection.sendall(HEAD + b"\r\n")
    except OSError:
        return False
    return not is_closed(connection)


def test_one_address_leaves_others_their_places() -> None:
    connections = Connections(in_all=8, per_address=6, silence=1e6)
    assert connections.per_address == 4
    with serving(connections) as connect:
        held = [connect("127.0.0.1") for _ in range(4)]
        # Whether it is said or not, a place is taken: an answer shows that the server knows.
        assert all(map(answers, held))
        assert is_closed(connect("127.0.0.1"))
        others = [connect("127.0.0.2") for _ in range(3)]
        assert all(map(answers, others))
        held.pop().close()
        # Until the server has seen it go.
        while not answers(connect("127.0.0.1")):
            pass
        assert answers(connect("127.0.0.3"))
        assert is_closed(connect("127.0.0.4"))
    assert not connections.open


def test_what_has_come_goes_with_its_connection() -> None:
    """A look that is still to come would keep it."""
    connections = Connections(in_all=100, silence=1e6)
    with serving(connections) as connect:
        assert answers(first := connect("127.0.0.1"))
        (kept,) = [weakref.ref(each) for each in connections.open]
        first.close()
        for _ in range(40):
            # The server's own work may still name what it did last.
            assert answers(connect("127.0.0.1"))
            gc.collect()
            if kept() is None:
                break
        assert kept() is None


def test_a_proxy_may_open_as_many_as_all() -> None:
    connections = Connections(in_all=6, per_address=2, proxies=["127.0.0.1"], silence=1e6)
    with serving(connections) as connect:
        assert all(answers(connect("127.0.0.1")) for _ in range(6))
        assert is_closed(connect("127.0.0.1"))


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"\r\n"], ids=["nothing", "half", "one"])
def test_who_asks_nothing_is_let_go(sent: bytes) -> None:
    """Also behind an answer; a request at work takes the time that it takes."""
    with serving(Connections(in_all=8, silence=0.05)) as connect:
        waits, idle = connect("127.0.0.1"), connect("127.0.0.1")
        waits.sendall(HEAD.replace(b"/ ", b"/wait ") + b"\r\n")
        assert waits.recv(1000).startswith(b"HTTP/1.1 200")
        idle.sendall(sent)
        if sent.endswith(b"\r\n\r\n"):
            assert not is_closed(idle)
        while not is_closed(idle):
            pass
        waits.settimeout(0)
        with pytest.raises(BlockingIOError):
            waits.recv(1)


@pytest.mark.parametrize(
    ("sent", "is_answered"),
    [
        (HEAD + b"a: b\r\n" * 90 + b"\r\n", True),
        (HEAD + b"a: b\r\n" * 110 + b"\r\n", False),
        (HEAD + b"a: " + b"b" * 16000 + b"\r\n\r\n", True),
        (HEAD + b"a: " + b"b" * 17000 + b"\r\n\r\n", False),
        (HEAD + b"a: b\r\n" * 110, False),
        (HEAD + b"Content-Length: 3\r\n\r\n\n\n\n", True),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", False),
    ],
    ids=["lines", "many lines", "long", "too long", "no end", "length", "chunked"],
)
def test_what_takes_long_to_take_apart_is_refused(sent: bytes, is_answered: bool) -> None:
    """Also behind another request of the same connection."""
    with serving(Connections(in_all=8, silence=1e6)) as connect:
        for before in (b"", HEAD + b"\r\n"):
            (connection := connect("127.0.0.1")).sendall(before + sent)
            end, found = b"good" if is_answered else b"Invalid HTTP request received.", b""
            while end not in found or found.count(b"HTTP/1.1") < 1 + bool(before):
                assert (more := connection.recv(1000))
                found += more
            assert found.count(b"HTTP/1.1 200") == is_answered + bool(before)


def test_connections_of_an_address_come_at_a_pace() -> None:
    connections = Connections(in_all=8, silence=1e6)
    connections._paces = Paces(1e-6, 3)
    with serving(connections) as connect:
        for _ in range(3):
            assert answers(connect("127.0.0.1"))
        assert is_closed(connect("127.0.0.1"))
        assert answers(connect("127.0.0.2"))


def test_who_reads_nothing_of_an_answer_is_let_go() -> None:
    """Who reads is not, however much there is."""
    connections = Connections(in_all=8, silence=0.1)
    with serving(connections) as connect:
        for is_read in (False, True):
            (connection := connect("127.0.0.1")).sendall(HEAD.replace(b"/ ", b"/much ") + b"\r\n")
            if not is_read:
                while not connections.open:
                    pass
                while connections.open:
                    pass
                continue
            count = 0
            while count < MUCH:
                assert (more := len(connection.recv(1 << 20)))
                count += more


def test_as_many_files_as_this_process_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    infinite = resource.RLIM_INFINITY
    for found, expected, raised in (
        ((1024, 4096), 1000, (4096, 4096)),
        ((512, 512), 312, None),
        ((256, infinite), 1000, (8192, infinite)),
        ((infinite, infinite), 1000, None),
        ((64, 64), 8, None),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, found=found: found)
        limits.clear()
        assert most_connections() == expected
        assert limits == ([raised] if raised else [])


def test_a_lack_of_files_is_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    logger, limit = logging.getLogger("tagclip.test"), AcceptFilter(lambda: now)
    logger.addFilter(limit)
    try:
        for now in (0.0, 1.0, 59.0, 61.0):
            try:
                raise OSError(24, "Too many open files")
            except OSError:
                logger.exception("socket.accept() out of system resource\nsocket: %s", "s")
            logger.warning("another at %s", now)
    finally:
        logger.removeFilter(limit)
    said = [r for r in caplog.records if r.getMessage().startswith("connections: found no file")]
    assert len(said) == 2 and all(r.exc_info is None for r in said)
    assert len(caplog.records) == 6 and "Traceback" not in caplog.text
