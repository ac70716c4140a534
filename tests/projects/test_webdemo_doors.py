"""The doors of the web page: names it answers to, bytes it takes in, and at what pace."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from helpers.full_disk import largest_file

from tagclip.projects.webdemo.doors import (
    ROOM_AROUND_FILE,
    BodyDoor,
    CookieDoor,
    CrowdDoor,
    FaultDoor,
    HostDoor,
    PaceDoor,
    ProgressDoor,
    ShareDoor,
)
from tagclip.projects.webdemo.space import UploadSpace

MIB = 1 << 20


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


@pytest.mark.parametrize(
    ("host", "is_taken"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:7860", True),
        ("LOCALHOST:1", True),
        ("localhost.", True),
        ("[::1]:7860", True),
        ("10.0.0.7:7860", True),
        ("bound.example", True),
        ("page.example:443", True),
        ("evil.example", False),
        ("evil.example:7860", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1@evil.example", False),
        ("127.0.0.1:7860@evil.example", False),
        ("127.0.0.1:99999999", False),
        ("127.0.0.1:", False),
        ("127.0.0.1:x", False),
        ("127.0.0.1/evil", False),
        ("[::1]x", False),
        ("[::1", False),
        ("::1", False),
        ("10.0.0.8", False),
        ("[::2]", False),
        ("", False),
        (None, False),
        ("page.example, evil.example", False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE"])
def test_only_its_own_names_are_answered(
    tmp_path: Path, host: str | None, is_taken: bool, method: str
) -> None:
    page = Page(tmp_path)
    app = HostDoor(page, ["bound.example", "Page.example"])
    status, text = ask(app, headers={"host": host}, body=[b""], method=method)
    assert (status == 200) == is_taken == bool(page.bodies)
    if not is_taken:
        assert status == 421 and text.count("\n") == 1 and "--allow-host NAME" in text
    # A proxy's name counts, too.
    status, _ = ask(app, headers={"x-forwarded-host": host}, body=[b""], method=method)
    assert (status == 200) == (is_taken or host is None)


def test_two_names_in_one_request_and_websockets(tmp_path: Path) -> None:
    sent = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"headers": [(b"host", b"localhost"), (b"host", b"evil.example")], "server": None}
    asyncio.run(HostDoor(Page(tmp_path), [])(scope | {"type": "http"}, None, send))
    asyncio.run(HostDoor(Page(tmp_path), [])(scope | {"type": "websocket"}, None, send))
    assert (sent[0]["status"], sent[2]) == (421, {"type": "websocket.close", "code": 1008})


@pytest.fixture
def doors(tmp_path: Path) -> tuple[Page, BodyDoor]:
    page = Page(tmp_path / "files")
    page.folder.mkdir()
    (tmp_path / "arriving").mkdir()
    space = UploadSpace(3 * MIB, 5 * MIB, clock=count(step=10).__next__)
    return page, BodyDoor(page, space, MIB, tmp_path / "arriving")


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/gradio_api/upload", MIB, 200),
        ("/gradio_api/upload/", MIB + ROOM_AROUND_FILE, 200),
        ("/gradio_api/upload", MIB + ROOM_AROUND_FILE + 7, 413),
        ("/gradio_api/queue/join", 1000, 200),
        ("/gradio_api/queue/join", MIB // 4, 200),
        ("/gradio_api/queue/join", MIB // 4 + 7, 413),
        ("/anything", 9 * MIB, 413),
    ],
)
def test_what_is_too_large_leaves_nothing_behind(
    doors: tuple[Page, BodyDoor],
    path: str,
    size: int,
    status: int,
    has_length: bool,
    pieces: int,
) -> None:
    page, app = doors
    body, step = bytes(range(256)) * (size // 256) + bytes(size % 256), -(-size // pieces)
    parts = [body[start : start + step] for start in range(0, size, step)]
    headers = {"content-length": str(size)} if has_length else {}
    found, text = ask(app, path, parts, headers=headers)
    assert found == status and page.bodies == ([body] if status == 200 else [])
    if status != 200:
        assert text.startswith("body: found ") and text.count("\n") == 1
        assert app.space.held == 0
    assert not list(app.folder.iterdir())


def test_an_upload_that_is_broken_off_leaves_nothing_behind(
    doors: tuple[Page, BodyDoor],
) -> None:
    page, app = doors
    assert ask(app, "/gradio_api/upload", [b"abc", None]) == (0, "")
    assert not page.bodies and app.space.held == 0 and not list(app.folder.iterdir())


def test_files_are_taken_at_one_address_only(doors: tuple[Page, BodyDoor]) -> None:
    page, app = doors
    headers = {"content-type": "Multipart/form-data; boundary=x"}
    for path in ("/gradio_api/component_server", "/gradio_api/process_recording"):
        status, text = ask(app, path, b"abc", headers=headers)
        assert status == 415 and "expected json" in text and not page.bodies


def test_a_visitor_keeps_the_newest_files_and_all_have_room(doors: tuple[Page, BodyDoor]) -> None:
    page, app = doors
    for number in range(20):
        status, _ = ask(app, "/gradio_api/upload", bytes(MIB // 2), client=f"{number % 2}")
        assert status == 200
        held = sum(path.stat().st_size for path in page.folder.iterdir())
        assert held == app.space.held <= 5 * MIB
        assert all(app.space.held_by(who) <= 3 * MIB for who in "01")
    names = {path.name for path in page.folder.iterdir()}
    assert "19.png" in names and "0.png" not in names
    # A third one without files has none to lose; those of others stay.
    answers = [
        ask(app, "/gradio_api/upload", bytes(MIB), client=f"{number}") for number in range(10, 16)
    ]
    assert {status for status, _ in answers} <= {200, 413} and answers[-1][0] == 413
    assert "of all visitors here" in answers[-1][1]
    assert sum(path.stat().st_size for path in page.folder.iterdir()) <= 5 * MIB
    # What is deleted elsewhere makes room.
    for path in page.folder.iterdir():
        path.unlink()
    assert ask(app, "/gradio_api/upload", bytes(MIB), client="99")[0] == 200


@pytest.mark.parametrize("length", [64, 65, 200_000])
def test_a_session_with_a_long_name_is_refused(doors: tuple[Page, BodyDoor], length: int) -> None:
    page, app = doors
    body = json.dumps({"data": [], "session_hash": "x" * length}).encode()
    status, text = ask(app, "/gradio_api/queue/join", body)
    assert (status, page.bodies) == ((200, [body]) if length == 64 else (400, []))
    assert length == 64 or text == (
        f"session_hash: found {length} characters, expected at most 64; reload the page\n"
    )
    # Not json, or json of something else, is for the page to refuse; a file may hold the words.
    for other in (b"[1]", b"{", b"[" * 5000, b'{"session_hash": 3}'):
        assert ask(app, "/gradio_api/queue/join", other)[0] == 200
    assert ask(app, "/gradio_api/upload", body)[0] == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ("[" * 50 + "]" * 50, 200),
        (json.dumps([{"path": "a"}, "[" * 5000, "{a, b}, " * 200, ["x"] * 200]), 200),
        ("[" + "[]," * 99 + "1]", 400),
        ("[" + "[]," * 80_000 + "1]", 400),
        (json.dumps([{"path": "a", "meta": {}}] * 60), 400),
    ],
)
def test_a_body_of_many_lists_is_refused(
    doors: tuple[Page, BodyDoor], data: str, status: int
) -> None:
    """Small on the way and large in memory, and each file in it is looked for."""
    page, app = doors
    found, text = ask(app, "/gradio_api/call/segment", f'{{"data": {data}}}'.encode())
    assert found == status and len(page.bodies) == (status == 200)
    assert status == 200 or re.match(
        "body: found more than (100 lists and objects|40000 commas), expected", text
    )


def scope_of(client: str, method: str = "GET", path: str = "/") -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "headers": [], "client": (client, 5)}


def test_some_requests_of_an_address_are_answered_at_a_time() -> None:
    """Others wait for these to begin their answers, however long these go on; nobody else does."""
    at_work: list[str] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        at_work.append(scope["client"][0])
        await scope["goes_on"].wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await scope["ends"].wait()

    async def send(message: Any) -> None:
        pass

    async def rounds(count: int = 20) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def together() -> None:
        door = ShareDoor(page, lambda address: 0)
        events = {"goes_on": asyncio.Event(), "ends": asyncio.Event()}
        tasks = [asyncio.create_task(door(scope_of("many") | events, None, send)) for _ in range(9)]
        await rounds()
        assert at_work == ["many"] * 4
        tasks.append(asyncio.create_task(door(scope_of("one") | events, None, send)))
        await rounds()
        assert at_work == ["many"] * 4 + ["one"]
        # Who leaves gives the place back.
        tasks[0].cancel()
        await rounds()
        assert at_work.count("many") == 5
        events["goes_on"].set()
        await rounds()
        assert at_work.count("many") == 9
        events["ends"].set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not door._slots

    asyncio.run(together())


def test_an_address_that_asks_and_asks_waits_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 40 a second in the long run, of which 400 may come at once, and none waits long."""
    now, waits = [5.0], []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("tagclip.projects.webdemo.doors.asyncio.sleep", sleep)
    app = PaceDoor(Page(tmp_path), clock=lambda: now[0])
    for _ in range(400):
        assert ask(app, body=b"x")[0] == 200
    assert not waits
    for _ in range(3):
        ask(app, body=b"x")
    assert waits == pytest.approx([1 / 40, 2 / 40, 3 / 40])
    ask(app, body=b"x", client="2")
    assert len(waits) == 3
    # With time it may ask again, and with more time it is forgotten.
    now[0] += 4 / 40
    ask(app, body=b"x")
    assert len(waits) == 3 and app._paces._due.keys() == {"1.2.3.4", "2"}
    statuses = [ask(app, body=b"x")[0] for _ in range(700)]
    assert max(waits) == pytest.approx(15, abs=0.03) and statuses == sorted(statuses)
    assert ask(app, body=b"x") == (
        429,
        "requests: found more than 40 a second of your address, expected fewer; try again later\n",
    )
    now[0] += 26
    ask(app, body=b"x", client="3")
    assert app._paces._due.keys() == {"3"}


@pytest.mark.parametrize(
    ("method", "path", "is_question"),
    [
        ("POST", "/gradio_api/queue/join", True),
        ("POST", "/gradio_api/call/segment", True),
        ("POST", "/gradio_api/run/segment", True),
        ("GET", "/gradio_api/call/segment/x", False),
        ("POST", "/gradio_api/upload", False),
        ("POST", "/gradio_api/cancel", False),
    ],
)
def test_questions_of_an_address_are_counted(
    tmp_path: Path, method: str, path: str, is_question: bool
) -> None:
    page, counts = Page(tmp_path), {"1.2.3.4": 24, "2": 23}
    app = ShareDoor(page, counts.__getitem__)
    status, text = ask(app, path, [b"x"], method=method, client="2")
    assert status == 200
    status, text = ask(app, path, [b"x"], method=method)
    assert status == (429 if is_question else 200)
    assert not is_question or text == (
        "requests: found 24 of your address unfinished, expected fewer than 24; wait for an answer "
        "first\n"
    )


def test_slow_uploads_keep_no_room_and_what_is_refused_costs_no_file(
    doors: tuple[Page, BodyDoor],
) -> None:
    """What was announced counts for nothing until it comes."""
    page, app = doors
    headers = [(b"host", b"a"), (b"content-length", str(MIB).encode())]
    scope = {"type": "http", "method": "POST", "path": "/upload", "headers": headers,
             "client": ("1.2.3.4", 5), "server": ("10.0.0.7", 7860)}  # fmt: skip
    answers: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        answers.extend([message["status"]] if "status" in message else [])

    async def together() -> None:
        enough = asyncio.Event()

        async def slow() -> dict[str, Any]:
            if not slow.pieces:
                await enough.wait()
                return {"type": "http.disconnect"}
            slow.pieces -= 1
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def quick() -> dict[str, Any]:
            return {"type": "http.request", "body": bytes(MIB // 2), "more_body": False}

        slow.pieces = 20
        waiting = [asyncio.create_task(app(scope, slow, send)) for _ in range(20)]
        await asyncio.sleep(0)
        await app(scope, quick, send)
        enough.set()
        await asyncio.gather(*waiting)

    asyncio.run(together())
    assert answers == [200] and app.space.held == MIB // 2
    (file,) = page.folder.iterdir()
    # More than there is room for, whatever went.
    app.space.in_all = MIB
    assert not app.space.take("other", MIB // 2)
    app.space.in_all -= 1
    assert "of all visitors" in app.space.take("1.2.3.4", MIB // 2)
    assert file.exists() and app.space.held_by("1.2.3.4") == MIB // 2


def test_a_body_ends_in_time(doors: tuple[Page, BodyDoor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its bytes keep coming."""
    page, app = doors
    monkeypatch.setattr("tagclip.projects.webdemo.doors._LONGEST", 0.05)
    more = iter(range(10**9))

    async def drip() -> dict[str, Any]:
        next(more)
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"", "more_body": True}

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/upload", "headers": []}
    asyncio.run(app(scope, drip, send))
    assert sent[0]["status"] == 408 and b"no end for" in sent[1]["body"] and not page.bodies


def test_a_full_disk_refuses_files_and_nothing_else(doors: tuple[Page, BodyDoor]) -> None:
    """Words need none; whoever brings a file loses the own older ones for it, and nobody else."""
    page, app = doors
    assert ask(app, "/gradio_api/upload", b"theirs", client="2")[0] == 200
    assert ask(app, "/gradio_api/upload", b"mine", client="1")[0] == 200
    theirs, mine = sorted(page.folder.iterdir())
    with largest_file(20):
        status, text = ask(app, "/gradio_api/upload", bytes(200), client="1")
        assert status == 507 and text == (
            "upload: found no room on this server's disk, expected some; try again later\n"
        )
        assert theirs.exists() and not mine.exists() and app.space.held == len(b"theirs")
        # A body that is no file gets to the page, which here fails to write it down.
        with pytest.raises(OSError, match="File too large"):
            ask(app, "/gradio_api/queue/join", bytes(200), client="1")
        assert page.bodies[-1] == bytes(200)
    assert not list(app.folder.iterdir())


@pytest.mark.parametrize("begun", [False, True])
def test_a_disk_that_is_full_for_gradio(tmp_path: Path, begun: bool) -> None:
    """It writes a file again; what it has said by then, nobody has heard."""

    async def page(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise OSError(28, "No space left on device")

    app = BodyDoor(page, UploadSpace(3 * MIB, 5 * MIB), MIB, tmp_path)
    status, text = ask(app, "/gradio_api/upload", b"abc")
    assert status == 507 and "no room on this server's disk" in text
    assert app.space.held == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("begun", [False, True])
def test_a_fault_behind_the_doors_is_one_line(
    begun: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise KeyError("no such\nthing")

    monkeypatch.delenv("TAGCLIP_DEBUG", raising=False)
    answer = ask(FaultDoor(page), "/queue/join", b"{}")
    assert answer == (
        (200, "half")
        if begun
        else (500, "request: found none that this page answers; reload the page\n")
    )
    (line,) = caplog.messages
    assert line.startswith("POST /queue/join: found ") and "\n" not in line and "KeyError" in line
    monkeypatch.setenv("TAGCLIP_DEBUG", "1")
    with pytest.raises(KeyError):
        ask(FaultDoor(page), "/queue/join", b"{}")


def test_questions_of_an_address_have_a_pace_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 8 a second in the long run, of which 80 may come at once."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("tagclip.projects.webdemo.doors.asyncio.sleep", sleep)
    app = PaceDoor(Page(tmp_path), clock=lambda: 5.0)
    for _ in range(80):
        assert ask(app, "/gradio_api/queue/join", b"x")[0] == 200
    assert not waits
    ask(app, "/gradio_api/call/segment", b"x")
    ask(app, "/gradio_api/upload", b"x")
    ask(app, "/gradio_api/queue/join", b"x", client="2")
    assert waits == pytest.approx([1 / 8])
    statuses = [ask(app, "/gradio_api/queue/join", b"x")[0] for _ in range(130)]
    assert max(waits) == pytest.approx(15) and statuses == [200] * 119 + [429] * 11


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/upload_progress", "/upload/"])
def test_the_progress_of_an_upload_is_forgotten(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """gradio would keep it, under a name of any length, until somebody asks for it."""
    monkeypatch.setattr("tagclip.projects.webdemo.doors._FORGET", 0.0)
    forgotten: list[str] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"[]"})

    async def patient(scope: Any, receive: Any, send: Any) -> None:
        await ProgressDoor(page, forgotten.append)(scope, receive, send)
        # Who looks is told of the end first.
        assert not forgotten
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert ask(patient, path, query=b"upload_id=abc&x=1")[0] == 200
    assert forgotten == ["abc"]
    long = b"upload_id=" + b"a" * 65
    status, text = ask(ProgressDoor(page, forgotten.append), path, query=long)
    assert status == 400
    assert text == "upload_id: found more than 64 characters; reload the page\n"
    app = ProgressDoor(page, forgotten.append)
    assert ask(app, "/gradio_api/queue/join", query=long)[0] == 200
    assert forgotten == ["abc"]


def test_cookies_do_not_get_in() -> None:
    """Python takes a second to read some of 15 KB, on the loop for all."""
    got: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        got.append(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    headers = {"cookie": "a=1", "accept": "text/html"}
    assert ask(CookieDoor(page), headers=headers)[0] == 200
    assert got == [{b"host": b"127.0.0.1:7860", b"accept": b"text/html"}]


def test_open_requests_of_an_address_are_bounded() -> None:
    """Behind a server in front, whose connections are not counted by address."""
    waiting, left = [], asyncio.Event()

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/stream":
            waiting.append(scope["client"][0])
            await left.wait()
        await send({"type": "http.response.body", "body": b""})

    app = CrowdDoor(page, most=3)

    async def status(path: str, client: str) -> int:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "path": path,
            "method": "GET",
            "headers": [],
            "client": (client, 1),
        }
        await app(scope, None, send)
        return sent[0]["status"]

    async def visit() -> None:
        streams = [asyncio.create_task(status("/stream", name)) for name in ("a", "a", "b", "a")]
        while len(waiting) < 4:
            await asyncio.sleep(0)
        assert [await status("/", name) for name in ("a", "b", "c")] == [429, 200, 200]
        left.set()
        assert [await stream for stream in streams] == [200] * 4
        assert await status("/", "a") == 200

    asyncio.run(visit())
    assert not app._open


def test_many_names_of_a_proxy_are_none(tmp_path: Path) -> None:
    app = HostDoor(Page(tmp_path), allowed=["a"])
    for number, status in ((8, 200), (9, 421), (6000, 421)):
        names = ",".join(["localhost"] * number)
        assert ask(app, body=b"x", headers={"x-forwarded-host": names})[0] == status


def test_many_values_are_refused_before_they_are_taken_apart(
    doors: tuple[Page, BodyDoor], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, app = doors
    words = json.dumps({"data": ["a," * 8800, "b," * 8800]}).encode()
    assert ask(app, "/gradio_api/queue/join", words)[0] == 200
    monkeypatch.setattr("tagclip.projects.webdemo.doors.json.loads", lambda _: pytest.fail("read"))
    status, text = ask(app, "/gradio_api/queue/join", b"[" + b"0," * 40001 + b"0]")
    assert status == 400 and text.startswith("body: found more than 40000 commas, expected values")


UPLOAD = {
    "type": "http",
    "method": "POST",
    "path": "/upload",
    "headers": [(b"content-length", b"1")],
    "server": ("10.0.0.7", 7860),
}


async def receive_one_byte() -> dict[str, Any]:
    return {"type": "http.request", "body": b"x", "more_body": False}


def test_an_upload_whose_answer_nobody_reads_holds_up_nobody(
    doors: tuple[Page, BodyDoor],
) -> None:
    page, app = doors

    async def together() -> None:
        read, answers = asyncio.Event(), []

        async def blocked(message: dict[str, Any]) -> None:
            await read.wait()

        async def send(message: dict[str, Any]) -> None:
            answers.append(message)

        stuck = [
            asyncio.create_task(app(UPLOAD | {"client": ("1", n)}, receive_one_byte, blocked))
            for n in range(9)
        ]
        await asyncio.sleep(0)
        await asyncio.wait_for(app(UPLOAD | {"client": ("2", 5)}, receive_one_byte, send), 20)
        assert answers[0]["status"] == 200
        read.set()
        await asyncio.gather(*stuck)

    asyncio.run(together())
    assert len(page.bodies) == 10 and not app._of_address


def test_uploads_of_an_address_come_one_behind_the_other_and_others_between(
    tmp_path: Path,
) -> None:
    """However many wait, one of another address is the next but one."""
    order: list[str] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        order.append(scope["client"][0])
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"[]"})

    async def send(message: dict[str, Any]) -> None:
        pass

    async def together() -> None:
        app = BodyDoor(page, UploadSpace(MIB, 5 * MIB), MIB, tmp_path)
        tasks = [
            asyncio.create_task(app(UPLOAD | {"client": (address, 5)}, receive_one_byte, send))
            for address in ["many"] * 9 + ["one"]
        ]
        await asyncio.gather(*tasks)

    asyncio.run(together())
    assert order.index("one") <= 2 and order.count("many") == 9
