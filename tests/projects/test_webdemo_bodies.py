"""What requests to the web page bring: how many bytes, in what time, and what is left of them."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from helpers.asgi_requests import Page, ask
from helpers.full_disk import largest_file

from tagclip.projects.webdemo.bodies import ROOM_AROUND_FILE, BodyDoor
from tagclip.projects.webdemo.space import UploadSpace

MIB = 1 << 20


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


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (None, 200),
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/x-www-form-urlencoded", 415),
        ("text/plain", 415),
        ("", 415),
    ],
)
def test_what_is_no_file_is_json(
    doors: tuple[Page, BodyDoor], kind: str | None, status: int
) -> None:
    page, app = doors
    found, text = ask(app, "/gradio_api/queue/join", b"{}", headers={"content-type": kind})
    assert found == status and len(page.bodies) == (status == 200)
    assert status == 200 or text.startswith(f"body: found {kind!r}, expected json")


DISPOSITION = b'Content-Disposition: form-data; name="files"; filename="a.png"'


def form(*lines: bytes, content: bytes = b"abc") -> bytes:
    """One part with these lines in its header."""
    return b"\r\n".join([b"--x", *lines, b"", content, b"--x--", b""])


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("multipart/form-data; boundary=x", 200),
        ('Multipart/Form-Data; Boundary="x"', 200),
        ("multipart/form-data; boundary=x; charset=UTF-8", 200),
        ("multipart/form-data;charset=utf-8;boundary=x", 200),
        ("multipart/form-data; boundary=x; charset=latin-1", 415),
        ("multipart/form-data; charset=latin-1; boundary=x", 415),
        ("multipart/form-data; boundary=x; charset=utf-8; charset=latin-1", 415),
        ('multipart/form-data; boundary=x; "charset"=latin-1', 415),
        ("multipart/form-data; boundary=x; boundary=y", 415),
        ("multipart/form-data", 415),
        ("multipart/mixed; boundary=x", 415),
        ("\xa0multipart/form-data; boundary=x", 415),
    ],
)
def test_an_upload_names_no_charset_of_its_own(
    doors: tuple[Page, BodyDoor], kind: str, status: int
) -> None:
    page, app = doors
    body = form(DISPOSITION)
    found, text = ask(app, "/gradio_api/upload", body, headers={"content-type": kind})
    assert (found, page.bodies) == (status, [body] if status == 200 else [])
    assert status == 200 or (text.startswith("Content-Type: found ") and text.count("\n") == 1)
    assert not list(app.folder.iterdir())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (form(DISPOSITION), 200),
        (form(b"Content-Type: image/png", DISPOSITION, b"Content-Length: 3"), 200),
        (form(b'content-disposition:form-data;name="files";filename="a;\xc3\xa9.png"'), 200),
        (form(b"Content-Disposition: form-data; name=files; filename=a.png"), 200),
        (form(b'Content-Disposition: form-data; name="files"'), 400),
        (form(b"Content-Disposition: form-data; name=\"files\"; filename*=utf-8''a.png"), 400),
        (form(b'Content-Disposition: form-data; name="other"; filename="a.png"'), 400),
        (form(DISPOSITION, b'Content-Disposition: form-data; name="files"'), 400),
        (form(b"Content-Type: image/png"), 400),
        (form(b'X: form-data; name="files"; filename="a.png"'), 400),
        (b"\r\n" + form(DISPOSITION), 400),
        (form(DISPOSITION).replace(b"--x\r\n", b"--x \r\n"), 400),
        (b"--x\r\n" + DISPOSITION, 400),
        (b"", 400),
    ],
)
def test_an_upload_is_a_file_with_a_name(
    doors: tuple[Page, BodyDoor], body: bytes, status: int
) -> None:
    page, app = doors
    headers = {"content-type": "multipart/form-data; boundary=x"}
    found, text = ask(app, "/gradio_api/upload", [body], headers=headers, method="POST")
    assert (found, page.bodies) == (status, [body] if status == 200 else [])
    assert status == 200 or text == (
        "upload: found a part that is no file, expected one named files with a filename; send a "
        "file\n"
    )
    assert not list(app.folder.iterdir())


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
    monkeypatch.setattr("tagclip.projects.webdemo.bodies._LONGEST", 0.05)
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


def test_many_values_are_refused_before_they_are_taken_apart(
    doors: tuple[Page, BodyDoor], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, app = doors
    words = json.dumps({"data": ["a," * 8800, "b," * 8800]}).encode()
    assert ask(app, "/gradio_api/queue/join", words)[0] == 200
    monkeypatch.setattr("tagclip.projects.webdemo.bodies.json.loads", lambda _: pytest.fail("read"))
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
