"""The doors of the web page: names it answers to, and at what pace and how much at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from helpers.asgi_requests import Page, ask, scope_of

from tagclip.projects.webdemo.doors import (
    CookieDoor,
    CrowdDoor,
    FaultDoor,
    HostDoor,
    PaceDoor,
    ProgressDoor,
    RouteDoor,
    ShareDoor,
)

EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
PICTURE = (b"content-type", b"image/png")


async def rounds(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


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


def test_some_requests_of_an_address_are_answered_at_a_time() -> None:
    """Others wait for these to begin, however long a stream then goes on; nobody else does."""
    at_work: list[str] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        at_work.append(scope["client"][0])
        await scope["goes_on"].wait()
        await send({"type": "http.response.start", "status": 200, "headers": [EVENTS]})
        await scope["ends"].wait()

    async def send(message: Any) -> None:
        pass

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


@pytest.mark.parametrize(
    ("headers", "expected"), [([EVENTS], 9), ([PICTURE], 4), ([EVENTS, PICTURE], 4), ([], 4)]
)
def test_some_parts_of_files_of_an_address_are_read_at_a_time(
    headers: list[Any], expected: int
) -> None:
    """A stream that waits for events is none, and cannot be claimed by who asks for a file."""
    reading, most, got = [], [0], []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(5):
            reading.append(scope)
            await rounds(3)
            most[0] = max(most[0], len(reading))
            reading.pop()
            await send({"type": "http.response.body", "body": b"x", "more_body": number < 4})

    async def send(message: Any) -> None:
        got.append(message)

    async def together() -> None:
        door = ShareDoor(page, lambda address: 0)
        await asyncio.gather(*(door(scope_of("many"), None, send) for _ in range(9)))
        assert not door._slots

    asyncio.run(together())
    assert (most[0], len(got)) == (expected, 9 * 6)


def test_a_download_that_is_not_read_holds_up_no_other() -> None:
    """Whether nothing of it is read, or all of it but the end."""

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [PICTURE]})
        for number in range(5):
            await send({"type": "http.response.body", "body": b"x", "more_body": number < 4})

    async def together() -> None:
        door, left = ShareDoor(page, lambda address: 0), asyncio.Event()

        def send_of(read: int) -> Any:
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)
                if len(sent) > read:
                    await left.wait()

            return send

        asks = [door(scope_of("a"), None, send_of(read)) for read in (0, 1, 2, 3, 4, 5) * 2]
        tasks = [asyncio.create_task(ask) for ask in asks]
        await rounds()
        await asyncio.wait_for(door(scope_of("a"), None, send_of(9)), timeout=60)
        assert not any(task.done() for task in tasks)
        left.set()
        await asyncio.gather(*tasks)
        assert not door._slots

    asyncio.run(together())


def test_who_asks_for_uploads_that_never_come_holds_up_nobody() -> None:
    """gradio waits three seconds for each, also where its client has gone."""
    waiting: list[str] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/gradio_api/upload_progress":
            waiting.append(scope["path"])
            await asyncio.Event().wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        pass

    async def together() -> None:
        door, path = ShareDoor(page, lambda address: 0), "/gradio_api/upload_progress"
        asks = [door(scope_of("a", path=path), None, send) for _ in range(60)]
        tasks = [asyncio.create_task(ask) for ask in asks]
        await rounds()
        assert len(waiting) == 60
        await asyncio.wait_for(door(scope_of("a"), None, send), timeout=60)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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


@pytest.mark.parametrize(
    "path", ["/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/upload/"]
)
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
    assert ask(app, path, query=b"upload_id=a&upload_id=b") == (
        400,
        "upload_id: found 2 names, expected one; reload the page\n",
    )
    # gradio keeps nothing of what is asked elsewhere.
    for other in ("/gradio_api/queue/join", "/x/upload", "/upload"):
        assert ask(app, other, query=long)[0] == 200
        assert ask(app, other, query=b"upload_id=a")[0] == 200
    assert forgotten == ["abc"]


@pytest.mark.parametrize(
    ("path", "is_ours"),
    [
        ("/", True),
        ("/config", True),
        ("/theme.css", True),
        ("/assets/index.js", True),
        ("/static/fonts/a/b.woff2", True),
        ("/gradio_api/info", True),
        ("/gradio_api/queue/join", True),
        ("/gradio_api/queue/data", True),
        ("/gradio_api/call/segment/abc", True),
        ("/gradio_api/heartbeat/abc", True),
        ("/gradio_api/upload", True),
        ("/gradio_api/upload_progress", True),
        ("/gradio_api/file=/tmp/a b/c.png", True),
        ("/gradio_api/file=https://a.example/a.png", False),
        ("/gradio_api/file=HTTP://a.example/a.png", False),
        ("/login", False),
        ("/login/", False),
        ("/logout", False),
        ("/openapi.json", False),
        ("/docs", False),
        ("/monitoring", False),
        ("/x/upload", False),
        ("/gradio_api/openapi.json", False),
        ("/gradio_api/deep_link", False),
        ("/gradio_api/component_server", False),
        ("/gradio_api/uploads", False),
    ],
)
def test_what_the_page_asks_is_all_that_is_answered(
    tmp_path: Path, path: str, is_ours: bool
) -> None:
    page = Page(tmp_path)
    for method in ("GET", "POST", "HEAD"):
        status, text = ask(RouteDoor(page), path, b"x", method=method)
        assert status == (200 if is_ours else 404)
        assert is_ours or text == f"{path!r}: found no address of this page; reload the page\n"
    assert len(page.bodies) == 3 * is_ours


@pytest.mark.parametrize("length", [0, 1024, 1025, 16_000])
def test_a_long_query_is_refused_before_it_is_taken_apart(tmp_path: Path, length: int) -> None:
    page = Page(tmp_path)
    for path in ("/config", "/gradio_api/upload"):
        status, text = ask(RouteDoor(page), path, b"x", query=b"a" * length)
        assert status == (200 if length <= 1024 else 414)
        assert length <= 1024 or text == (
            f"query: found {length} bytes, expected at most 1024; reload the page\n"
        )


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
