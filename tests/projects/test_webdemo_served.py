"""The running page: its doors and bounds, asked over HTTP."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from helpers.webdemo_server import findable_weights, served, served_alone
from PIL import Image, features

from tagclip import TagCLIPPredictor
from tagclip.projects.webdemo.result import write_result

MIB = 1 << 20

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


def test_streams_of_one_session_leave_nothing_behind(
    address: str, predictor: TagCLIPPredictor, tmp_path: Path
) -> None:
    """gradio's task that keeps a stream alive would stay for good, of all but the first."""
    import httpx

    gone = threading.Event()
    hook = predictor.model.backbone.register_forward_pre_hook(lambda *_: gone.wait(60) and None)
    api, image = f"{address}/gradio_api", tmp_path / "a.png"
    sent = httpx.post(f"{api}/upload", files={"files": ("b.png", image.read_bytes())})
    data = [{"path": sent.json()[0]}, "cat", "", "both", 0.1, 0.0, 0.5]
    httpx.post(f"{api}/call/segment", json={"data": data, "session_hash": "s"})
    with ExitStack() as opened:
        for number in range(1, 4):
            url = f"{api}/queue/data?session_hash=s"
            opened.enter_context(httpx.stream("GET", url, timeout=60))
            assert heartbeats_when(lambda found, n=number: found == n, api) == number
    assert heartbeats_when(lambda found: not found, api) == 0
    gone.set()
    hook.remove()


def heartbeats_when(is_enough: Callable[[int], bool], api: str) -> int:
    """Number of gradio's tasks of this process that keep streams alive, once it is as it should be.

    Each of many questions gives the server time to hear of connections.
    """
    import httpx

    for _ in range(100):
        tasks = [each for each in gc.get_objects() if isinstance(each, asyncio.Task)]
        names = [task.get_coro().__qualname__ for task in tasks if not task.done()]
        found = sum(name.endswith("queue_data_helper.<locals>.heartbeat") for name in names)
        if is_enough(found):
            break
        httpx.get(f"{api}/queue/status")
    return found


def test_answers_of_few_sessions_are_remembered(address: str, tmp_path: Path) -> None:
    """gradio keeps the last one of each, for links that this page does not have."""
    import httpx

    api, content = f"{address}/gradio_api", (tmp_path / "a.png").read_bytes()
    for number in range(20):
        sent = httpx.post(f"{api}/upload", files={"files": ("b.png", content)})
        word = f"word {number} of a visitor"
        data = [{"path": sent.json()[0]}, word, "", "both", 0.1, 0.0, 0.5]
        body = {"data": data, "session_hash": f"s{number}"}
        event = httpx.post(f"{api}/call/segment", json=body).json()["event_id"]
        assert word in httpx.get(f"{api}/call/segment/{event}", timeout=60).text
    states = [each for each in gc.get_objects() if type(each).__name__ == "SessionState"]
    words = re.findall(r"word \d+ of a visitor", str([state.config_values for state in states]))
    assert 0 < len(set(words)) <= 16


def test_a_server_that_is_stopped_at_work_ends_well(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    """Python would end in the middle of the model, and the process with SIGABRT."""
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    import httpx

    words = ", ".join(f"w{number} x" for number in range(190))
    opts = ("MODEL.TAGCLIP.TEST.WINDOW", 512, "MODEL.TAGCLIP.TEST.STRIDE", 426)
    weights = findable_weights(tiny_cfg, tmp_path, *opts, "INPUT.MIN_SIZE_TEST", 512)
    Image.new("1", (1, 26)).save(tmp_path / "long.png")
    content = (tmp_path / "long.png").read_bytes()
    with served_alone(weights) as (_, address):
        api = f"{address}/gradio_api"
        for number in range(12):
            sent = httpx.post(f"{api}/upload", files={"files": ("a.png", content)}, timeout=60)
            data = [{"path": sent.json()[0]}, f"{words}, n{number}", "", "both", 0.1, 0.0, 0.5]
            body = {"data": data, "session_hash": f"s{number}"}
            httpx.post(f"{api}/call/segment", json=body, timeout=60)
    # `served_alone` has stopped it, and seen that its exit code is 0.


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
        assert "press Segment first" in httpx.get(f"{api}/call/adjust/{event}").text
    assert "cat" in client.predict("none", 0.5, 0.0, 0.5, api_name="/adjust")[0]
    (labels, _) = client.predict(api_name="/save")["value"]
    assert Path(labels).is_file()


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


def test_a_result_is_written_where_a_killed_server_leaves_nothing(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the folder of the page's files; and there it is gone when it is handed out."""
    from gradio_client import Client, handle_file

    module, places = "tagclip.projects.webdemo.handlers", []

    def write(encoded: Any, settings: Any, folder: Path) -> list[Path]:
        places.append(folder)
        return write_result(encoded, settings, folder)

    monkeypatch.setattr(f"{module}.write_result", write)
    client = Client(f"{address}/", verbose=False)
    client.predict(handle_file(str(tmp_path / "a.png")), "cat, dog", api_name="/segment")
    assert client.predict(api_name="/save")["value"]
    (place,) = places
    assert place.is_relative_to(tmp_path / "served") and not place.exists()


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


def test_one_visitor_behind_a_proxy_leaves_connections_to_others(
    predictor: TagCLIPPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpx = pytest.importorskip("httpx", reason="not installed: pip install '.[demo]'")
    (folder := tmp_path / "served").mkdir()
    Image.fromarray(picture(70, 95)).save(tmp_path / "a.png")
    with (
        served(predictor, tmp_path / "a.png", folder, monkeypatch, proxies=["127.0.0.1"]) as found,
        ExitStack() as opened,
    ):
        address = found.rstrip("/")
        host, port = address.removeprefix("http://").split(":")
        statuses = []
        for number in range(203):
            stream = opened.enter_context(socket.create_connection((host, int(port)), 60))
            head = f"GET /gradio_api/heartbeat/{number} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            stream.sendall(f"{head}X-Forwarded-For: 10.0.0.1\r\n\r\n".encode())
            statuses.append(stream.recv(12)[-3:])
        assert statuses == [b"200"] * 200 + [b"429"] * 3
        asked = {"X-Forwarded-For": "10.0.0.2"}
        assert httpx.get(f"{address}/config", headers=asked).status_code == 200


def test_nothing_is_compressed_on_the_loop_for_all(address: str, tmp_path: Path) -> None:
    import httpx

    text = {"files": ("b.txt", b"acgt" * 10000)}
    (path,) = httpx.post(f"{address}/gradio_api/upload", files=text).json()
    script = re.search(r'src="[./]*(assets/[^"]+[.]js)"', httpx.get(f"{address}/").text)[1]
    for asked in (f"gradio_api/file={path}", script, "theme.css", "config"):
        answer = httpx.get(f"{address}/{asked}", headers={"Accept-Encoding": "gzip, br"})
        assert answer.status_code == 200 and "content-encoding" not in answer.headers


@pytest.mark.parametrize("host", ["localhost", "localhost.", "127.0.0.1", "[::1]", "127.0.0.5"])
def test_no_page_of_others_reads_an_answer(address: str, host: str) -> None:
    """A browser lets it where the answer names it as allowed."""
    import httpx

    port = address.rsplit(":", 1)[1]
    headers = {"Host": f"{host}:{port}", "Origin": "http://evil.example"}
    asks = {"Access-Control-Request-Method": "POST"}
    for answer in (
        httpx.get(f"{address}/config", headers=headers),
        httpx.options(f"{address}/gradio_api/queue/join", headers=headers | asks),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_file_whose_name_begins_with_a_dot_is_refused(address: str, tmp_path: Path) -> None:
    """gradio would take it, and then say that it was never brought."""
    import httpx

    content = (tmp_path / "a.png").read_bytes()
    answer = httpx.post(f"{address}/gradio_api/upload", files={"files": (".a.png", content)})
    assert (answer.status_code, answer.text) == (
        400,
        "upload: found the name '.a.png', expected one that does not begin with a dot; rename the "
        "file\n",
    )
    sent = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", content)})
    (path,) = map(Path, sent.json())
    assert sent.status_code == 200 and [each.name for each in path.parent.iterdir()] == ["a.png"]


def test_no_cookie_is_read(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import starlette.requests

    read: list[str] = []
    parse = starlette.requests.cookie_parser
    monkeypatch.setattr(
        "starlette.requests.cookie_parser", lambda text: read.append(text) or parse(text)
    )
    for path in ("/", "/config", "/gradio_api/info"):
        assert httpx.get(f"{address}{path}", headers={"Cookie": "a=1"}).status_code == 200
    assert not read


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
        ("POST", "login"),
        ("GET", "logout"),
        ("GET", "openapi.json"),
        ("GET", "x/upload?upload_id=a"),
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
