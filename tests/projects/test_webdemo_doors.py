"""The doors of the web page: names it answers to, bytes it takes in, requests nobody waits for."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from detectron2.config import CfgNode
from helpers.full_disk import largest_file
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import exit_of, load_tool
from helpers.webdemo_server import served
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from tagclip import TagCLIPPredictor
from tagclip.projects.webdemo.doors import (
    ROOM_AROUND_FILE,
    BodyDoor,
    FaultDoor,
    HostDoor,
    PaceDoor,
    ProgressDoor,
    ShareDoor,
)
from tagclip.projects.webdemo.session import Limits
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


def test_a_file_of_two_visitors_stays_as_long_as_one_has_it(tmp_path: Path) -> None:
    space, path = UploadSpace(10, 100), tmp_path / "a.png"
    path.write_bytes(bytes(8))
    for visitor in ("a", "b"):
        assert not space.take(visitor, 9)
        space.arrived(visitor, 9, [str(path)])
    assert space.held == 8
    assert not space.take("a", 9) and path.exists()
    assert not space.take("b", 9) and not path.exists()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("take", "delete", "later")), st.sampled_from("abc"),
            st.integers(0, 9), st.integers(0, 3),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_room_is_that_of_a_count_of_all_files(steps: list[tuple[str, str, int, int]]) -> None:
    """Sums that are kept equal those that are made anew, whatever comes and goes."""
    now = 0.0
    with TemporaryDirectory() as folder:
        space = UploadSpace(20, 40, least=3, clock=lambda: now)
        for kind, visitor, nbytes, name in steps:
            path = Path(folder, str(name))
            if kind == "take" and not space.take(visitor, nbytes):
                if not path.exists():
                    path.write_bytes(bytes(name))
                space.arrived(visitor, nbytes, [str(path)])
            elif kind == "delete":
                path.unlink(missing_ok=True)
            elif kind == "later":
                now += 10
            files = {p: n for own in space._files.values() for p, n in own.items()}
            assert space.held == sum(files.values())
            for who, own in space._files.items():
                others = {p for each, o in space._files.items() if each != who for p in o}
                assert own and space.held_by(who) == sum(own.values())
                assert space._alone[who] == sum(n for p, n in own.items() if p not in others)
            assert set(files) == set(space._owners)
        now += 10
        # Nobody has more than may be, and files that are gone count for nothing.
        for path in Path(folder).iterdir():
            path.unlink()
        assert not space.take("d", 20)


def test_a_small_file_counts_for_its_place(tmp_path: Path) -> None:
    space = UploadSpace(100, 1000, least=10)
    paths = [tmp_path / str(index) for index in range(30)]
    for path in paths:
        path.write_bytes(b"x")
    space.arrived("a", 0, map(str, paths[:20]))
    assert space.held == 200
    assert not space.take("a", 1) and space.held == 91
    assert [path.exists() for path in paths[:20]] == [False] * 11 + [True] * 9


def test_deleted_files_are_looked_for_where_room_lacks_and_not_again_at_once(
    tmp_path: Path,
) -> None:
    now = 0.0
    space, path = UploadSpace(10, 10, clock=lambda: now), tmp_path / "a"
    for seconds, has_room in ((0, True), (1, False), (6, True)):
        path.write_bytes(bytes(8))
        space.arrived("a", 0, [str(path)])
        path.unlink()
        now = float(seconds)
        assert (space.refusal("b", 5) == "") == has_room


_PART = 'Content-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'


@pytest.mark.parametrize(
    "parts",
    [
        [("x", '; filename="a.png"', "1234")],
        [("files", '; filename=".."', "1234")],
        [("files", '; filename="a.png"', "1234"), ("files", "", "1234")],
        [("x", '; filename="a.png"', "1234")] * 30,
        [("files", '; filename="a.png"', "1234")] * 2,
        [("files", '; filename="a.png"', "1234"), None],
    ],
    ids=["field", "name", "text", "many", "two", "cut"],
)
def test_a_file_that_no_answer_names_does_not_stay(
    address: str, tmp_path: Path, parts: list[tuple[str, str, str] | None]
) -> None:
    """gradio would keep it as long as it runs."""
    body = "".join("--b\r\n" + _PART.format(*part) for part in parts if part)
    body += "" if None in parts else "--b--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=b"}
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    answer = httpx_post(f"{address}/gradio_api/upload", body.encode(), kind)
    assert answer.status_code in (200, 400) and "png" not in answer.text
    good = "--b\r\n" + _PART.format("files", '; filename="a.png"', "12345") + "--b--\r\n"
    (path,) = httpx_post(f"{address}/gradio_api/upload", good.encode(), kind).json()
    assert Path(path).read_bytes() == b"12345"
    left = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path for path in left if b"1234" in path.read_bytes()} == {Path(path)}


def httpx_post(url: str, body: bytes, headers: dict[str, str]) -> Any:
    import httpx

    return httpx.post(url, content=body, headers=headers)


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


@pytest.fixture
def predictor(tiny_cfg: CfgNode, tmp_path: Path) -> TagCLIPPredictor:
    return TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "output"))


@pytest.fixture
def address(
    predictor: TagCLIPPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Of the running page."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    (folder := tmp_path / "served").mkdir()
    Image.fromarray(picture(70, 95)).save(tmp_path / "a.png")
    with served(predictor, tmp_path / "a.png", folder, monkeypatch) as found:
        yield found.rstrip("/")


def test_the_running_page_has_these_doors(address: str, tmp_path: Path) -> None:
    import httpx

    assert httpx.get(f"{address}/config").status_code == 200
    port = address.rsplit(":", 1)[1]
    assert httpx.get(f"{address}/config", headers={"Host": f"localhost:{port}"}).status_code == 200
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/heartbeat/x", "/nothing"):
        answer = httpx.get(f"{address}{path}", headers={"Host": f"evil.example:{port}"})
        assert answer.status_code == 421 and "found 'evil.example" in answer.text
    answer = httpx.post(f"{address}/gradio_api/call/segment", json={"data": ["x" * MIB]})
    assert answer.status_code == 413
    files = {f"files{k}": (f"{k}.png", bytes(MIB // 2)) for k in range(4)}
    assert httpx.post(f"{address}/gradio_api/upload", files=files).status_code == 413
    # Not past the turns.
    answer = httpx.post(f"{address}/gradio_api/run/segment", json={"data": [None] * 8})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("path", "question", "said"),
    [
        ("queue/data?session_hash=nobody", None, "GET /gradio_api/queue/data: found a request"),
        ("call/segment/nobody", None, "GET /gradio_api/call/segment/nobody: found a request"),
        ("queue/join", {"data": [], "fn_index": 99}, "POST /gradio_api/queue/join: found a"),
        ("call/nothing", {"data": [1]}, "POST /gradio_api/call/nothing: found a request"),
        ("queue/join", {"data": ["cat"], "fn_index": 1}, "segment: found other values"),
        ("queue/join", {"data": [{"path": 5}, 3, [], 7, "a", None, {}], "fn_index": 1},
         "segment: found other values"),
    ],
)  # fmt: skip
def test_what_the_page_never_asks_leaves_one_line(
    address: str,
    path: str,
    question: dict[str, Any] | None,
    said: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """And no traceback, whether gradio or its server finds it out."""
    import httpx

    api = f"{address}/gradio_api"
    if question is None:
        httpx.get(f"{api}/{path}")
    else:
        answer = httpx.post(f"{api}/{path}", json=question | {"session_hash": "a"})
        if answer.status_code == 200:
            text = httpx.get(f"{api}/queue/data?session_hash=a").text
            assert "found other values than this page sends" in text
        else:
            assert answer.status_code == 500 and len(answer.text.splitlines()) == 1
    (line,) = [line for line in caplog.messages if "found" in line]
    assert line.startswith(said) and "\n" not in line
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_long_thin_image_is_refused_with_one_line(address: str, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    Image.new("1", (95, 1)).save(tmp_path / "thin.png")
    client = Client(f"{address}/", verbose=False)
    for _ in range(2):
        with pytest.raises(AppError, match="thin.png: image of 95x1 pixels: found 127 windows"):
            client.predict(handle_file(str(tmp_path / "thin.png")), "cat", api_name="/segment")


def test_many_sessions_of_one_visitor_push_nobody_out(address: str, tmp_path: Path) -> None:
    """gradio would forget the oldest, whose sliders then do nothing, without a word."""
    import httpx
    from gradio_client import Client, handle_file

    client = Client(f"{address}/", verbose=False)
    client.predict(handle_file(str(tmp_path / "a.png")), "cat, dog", api_name="/segment")
    api = f"{address}/gradio_api"
    for number in range(110):
        body = {"data": ["both", 0.1, 0.0, 0.5], "session_hash": f"other {number}"}
        event = httpx.post(f"{api}/call/adjust", json=body).json()["event_id"]
        assert "event: complete" in httpx.get(f"{api}/call/adjust/{event}").text
    assert "cat" in client.predict("none", 0.5, 0.0, 0.5, api_name="/adjust")[0]
    (labels, _) = client.predict(api_name="/save")["value"]
    assert Path(labels).is_file()


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


def test_the_folder_of_a_file_goes_with_it(tmp_path: Path) -> None:
    """gradio makes one for each content; another folder is none of its."""
    now, places = [0.0], []
    space = UploadSpace(250, 1000, clock=lambda: now[0])
    for number in range(4):
        place = tmp_path / ("kept" if number == 1 else f"{number:064x}")
        place.mkdir()
        (place / "a.png").write_bytes(bytes(100))
        assert space.take("me", 100) == ""
        space.arrived("me", 100, [str(place / "a.png")])
        places.append(place)
    assert [place.exists() for place in places] == [False, True, True, True]
    assert not any(places[1].iterdir())
    # One that the page deletes, too.
    (places[2] / "a.png").unlink()
    now[0] = 1e6
    space.arrived("me", 0, [])
    assert [place.exists() for place in places] == [False, True, False, True]


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


def test_no_table_of_all_answers_is_made_for_each(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take longer with every answer, up to 10000 of them."""
    from gradio.queueing import Queue
    from gradio_client import Client, handle_file

    made: list[int] = []
    monkeypatch.setattr(Queue, "_get_df", lambda _, records: made.append(len(records)))
    client = Client(f"{address}/", verbose=False)
    client.predict(handle_file(str(tmp_path / "a.png")), "cat", api_name="/segment")
    for _ in range(3):
        client.predict(api_name="/adjust")
    assert not made


def test_saved_results_take_the_room_of_their_visitor(
    predictor: TagCLIPPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would lie there for an hour, whoever else needs the disk."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    from gradio_client import Client, handle_file

    (folder := tmp_path / "served").mkdir()
    Image.fromarray(picture(70, 95)).save(tmp_path / "a.png")
    monkeypatch.setattr("tagclip.projects.webdemo.server._FILE_SYSTEM", 1 << 16)
    with served(predictor, tmp_path / "a.png", folder, monkeypatch, max_uploads_mb=3) as address:
        client = Client(address, verbose=False)
        client.predict(handle_file(str(tmp_path / "a.png")), "cat, dog", api_name="/segment")
        for number in range(30):
            client.predict("both", 0.1, number / 40, api_name="/save")
        results = [path for path in folder.rglob("a*") if path.suffix in (".png", ".json")]
        # Of 64 KiB each, in a room of 1088 KiB, with the image.
        assert len(results) == 16


def test_a_full_disk_says_so_where_a_result_is_saved(
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Both where it is written and where gradio would copy it."""
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(f"{address}/", verbose=False)
    client.predict(handle_file(str(tmp_path / "a.png")), "cat, dog", api_name="/segment")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    module = "tagclip.projects.webdemo.handlers"
    for name in ("save_file_to_cache", "write_result"):
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.{name}", full)
            with pytest.raises(AppError) as caught:
                client.predict(api_name="/save")
        assert str(caught.value) == (
            "result: found no room on this server's disk, expected some; try again later"
        )
    assert "Traceback" not in "".join(capfd.readouterr())
    assert client.predict(api_name="/save")["value"]


def test_a_format_that_takes_long_is_refused(address: str, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(f"{address}/", verbose=False)
    if features.check("jpg_2000"):
        Image.fromarray(picture(70, 95)).save(tmp_path / "b.jp2")
        with pytest.raises(AppError, match="^b.jp2: found JPEG2000, expected one of AVIF, BMP, GI"):
            client.predict(handle_file(str(tmp_path / "b.jp2")), "cat", api_name="/segment")
    for suffix in ("bmp", "gif", "jpg", "tif", "webp", "ppm"):
        Image.fromarray(picture(70, 95)).save(tmp_path / f"b.{suffix}")
        assert client.predict(
            handle_file(str(tmp_path / f"b.{suffix}")), "cat", api_name="/segment"
        )


@pytest.mark.parametrize(("proxies", "left"), [([], 4), (["127.0.0.1"], 9), (["10.1.1.1"], 4)])
def test_where_a_visitor_is_says_a_proxy_alone(
    predictor: TagCLIPPredictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    proxies: list[str],
    left: int,
) -> None:
    """Each address has a room of 1 MiB here, of which four of nine files have place."""
    httpx = pytest.importorskip("httpx", reason="not installed: pip install '.[demo]'")
    (folder := tmp_path / "served").mkdir()
    Image.fromarray(picture(70, 95)).save(tmp_path / "a.png")
    more = {"max_uploads_mb": 10, "proxies": proxies}
    with served(predictor, tmp_path / "a.png", folder, monkeypatch, **more) as address:
        for number in range(9):
            files = {"files": (f"{number}.png", str(number).encode() * (MIB // 4))}
            headers = {"X-Forwarded-For": f"10.0.0.{number}"}
            url = f"{address}gradio_api/upload"
            assert httpx.post(url, files=files, headers=headers).status_code == 200
        assert len([*folder.rglob("[0-9].png")]) == left


def test_the_running_page_bounds_connections(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with ExitStack() as opened:
        for _ in range(400):
            opened.enter_context(socket.create_connection((host, int(port)), 20))
        # Of another address.
        other = socket.create_connection((host, int(port)), 20, source_address=("127.0.0.2", 0))
        opened.enter_context(other).sendall(b"GET /config HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert other.recv(12) == b"HTTP/1.1 200"
        mine = opened.enter_context(socket.create_connection((host, int(port)), 20))
        with suppress(ConnectionResetError):
            assert mine.recv(1) == b""


def test_what_gradio_offers_beside_the_page_is_refused(address: str, tmp_path: Path) -> None:
    """A link to a visit would be a file for each, which nobody counts and nobody removes."""
    import httpx
    from gradio_client import Client, handle_file

    client = Client(f"{address}/", verbose=False)
    client.predict(handle_file(str(tmp_path / "a.png")), "cat", api_name="/segment")
    before = {*tmp_path.rglob("*")}
    for method, path in (
        ("GET", f"gradio_api/deep_link?session_hash={client.session_hash}"),
        ("POST", "gradio_api/process_recording"),
        ("GET", "gradio_api/stream/a/b/1/playlist-file"),
        ("GET", "gradio_api/proxy=https://a.example/a"),
        ("GET", "gradio_api/file=http://a.example/a.png"),
        ("HEAD", "gradio_api/file=https://a.example/a.png"),
        ("GET", "gradio_api/file/http://a.example/a.png"),
        ("GET", "monitoring"),
    ):
        answer = httpx.request(method, f"{address}/{path}")
        assert answer.status_code == 404, path
        assert method == "HEAD" or "found no address of this page" in answer.text, path
    assert {*tmp_path.rglob("*")} == before


@pytest.mark.parametrize("how", ["cancel", "leave"])
def test_a_request_that_nobody_waits_for_ends(
    address: str, predictor: TagCLIPPredictor, tmp_path: Path, how: str
) -> None:
    """The model stops at its first window until the visitor is gone, and sees no second one."""
    import httpx
    from gradio.context import LocalContext

    seen, began, gone = [], threading.Event(), threading.Event()
    image = tmp_path / "a.png"

    def wait(*_: object) -> None:
        seen.append(LocalContext.blocks.get()._queue)
        began.set()
        gone.wait(30)

    hook = predictor.model.backbone.register_forward_pre_hook(wait)
    api, session = f"{address}/gradio_api", "somebody"
    sent = httpx.post(f"{api}/upload", files={"files": ("b.png", image.read_bytes())})
    data = [{"path": sent.json()[0]}, "cat, dog", "", "both", 0.1, 0.0, 0.5]
    functions = httpx.get(f"{address}/config").json()["dependencies"]
    number = next(f["id"] for f in functions if f["api_name"] == "segment")
    body = {"data": data, "fn_index": number, "session_hash": session}
    event = httpx.post(f"{api}/queue/join", json=body).json()["event_id"]
    with httpx.stream("GET", f"{api}/queue/data?session_hash={session}", timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert began.wait(30)
        if how == "cancel":
            asked = {"session_hash": session, "fn_index": number, "event_id": event}
            assert httpx.post(f"{api}/cancel", json=asked).json() == {"success": True}
    # The stream is closed, which gradio hears a moment later.
    known = seen[0].event_ids_to_events
    while (found := known.get(event)) and found.alive:
        httpx.get(f"{api}/queue/status")
    gone.set()
    # The visitor's next one waits until the first has ended.
    body = {"data": data, "session_hash": session}
    again = httpx.post(f"{api}/call/segment", json=body).json()["event_id"]
    # Gradio leaves the stream of a session open in which one was broken off.
    with httpx.stream("GET", f"{api}/call/segment/{again}", timeout=60) as stream:
        ends = (line for line in stream.iter_lines() if line in ("event: complete", "event: error"))
        assert next(ends) == "event: complete"
    hook.remove()
    windows = len(predictor.encode(image, predictor.asked).views[0].grid)
    assert windows > 1 and len(seen) == 1 + windows


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    return load_tool(repository / "projects" / "WebDemo" / "serve.py")


def test_names_are_given_one_by_one(tool: ModuleType) -> None:
    assert tool.parse_args([]).allow_host == []
    args = tool.parse_args(["--allow-host", "a.example", "--allow-host", "b.example"])
    assert args.allow_host == ["a.example", "b.example"]


@pytest.mark.parametrize(
    "words",
    [
        ["--allow-host", "https://demo.example/"],
        ["--allow-host", "a b"],
        ["--allow-host", ""],
        ["--proxy", "demo.example"],
        ["--proxy", "10.0.0.0.1"],
        ["--max-upload-mb", "20", "--max-uploads-mb", "19"],
    ],
)
def test_options_that_would_never_fit_are_refused(tool: ModuleType, words: list[str]) -> None:
    assert exit_of(tool.parse_args, words) == 2
    good = ["--allow-host", "demo.example:8080", "--allow-host", "[::1]", "--proxy", "::1"]
    args = tool.parse_args([*good, "--max-upload-mb", "20", "--max-uploads-mb", "20"])
    assert (args.allow_host, args.proxy) == (["demo.example:8080", "[::1]"], ["::1"])
