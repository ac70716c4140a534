"""Example images, and the server with everything switched off that would leave this machine."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tagclip.demo.media import find_images
from tagclip.errors import ConfigError
from tagclip.predictor import TagCLIPPredictor
from tagclip.projects.webdemo.bodies import ROOM_AROUND_FILE, BodyDoor
from tagclip.projects.webdemo.connections import AcceptFilter, Connections, most_connections
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
from tagclip.projects.webdemo.session import Limits
from tagclip.projects.webdemo.space import UploadSpace
from tagclip.projects.webdemo.temporary import TemporaryFiles
from tagclip.projects.webdemo.turns import Turns
from tagclip.structures.vocabulary import Vocabulary

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["find_examples", "serve"]

_MAX_EXAMPLES = 5
# Sessions of which gradio keeps a copy of the page's layout with their last answers, up to 2 MB
# each, and requests that it takes in before they take turns.
_SESSIONS, _WAITING = 16, 200
# Sessions with unread answers, which `Visits` keeps to fewer.
_UNREAD = 2000
# Bytes that a file takes at least, with the folder that gradio makes for it: a block each.
_FILE_SYSTEM = 8192
# Seconds for the requests at work when the server ends: Python would end in the middle of them.
_LAST = 30
# Seconds between two looks at the temporary files.
_LOOK = 5

_LOCAL_ONLY = {
    "share": False,
    "inbrowser": False,
    "quiet": True,
    "footer_links": [],
    "run_history": False,
    "enable_monitoring": False,
    "mcp_server": False,
    "pwa": False,
    "ssr_mode": False,
}
# A small image fills its place; on a narrow screen the examples stand below the result.
_CSS = """
#image img { height: 100%; object-fit: contain; width: 100%; }
#examples :is(th, td) { overflow-wrap: anywhere; white-space: normal; }
@media (max-width: 767px) {
  #question { display: contents; }
  #question > * { flex: 1 1 100%; }
  #examples { order: 1; }
}
"""

logger = logging.getLogger(__name__)


def find_examples(
    predictor: TagCLIPPredictor, folder: str | None, target: Path
) -> list[tuple[str, str]]:
    """Images to try, copied into a folder that the server may show.

    Args:
        predictor: a model of MiniBench gets its first test scenes and what is on them.
        folder: of images, or None; the words stay open.
        target: where to write.

    Returns:
        (image file, words) pairs, at most five.

    Raises:
        ConfigError: the folder holds no image.
    """
    if folder is not None:
        examples = []
        found = find_images([folder], target, "--examples")
        for index, (path, _) in enumerate(found[:_MAX_EXAMPLES]):
            (target / str(index)).mkdir()
            examples.append((str(shutil.copy(path, target / str(index) / path.name)), ""))
        return examples
    if "minibench" not in predictor.cfg.PROJECTS:
        return []
    from tagclip.projects.minibench import VOCABULARY_JSON
    from tagclip.projects.minibench.generate import scene

    names, examples = Vocabulary.from_json(VOCABULARY_JSON).names, []
    for index in range(_MAX_EXAMPLES):
        drawn, path = scene("test", index), target / f"scene_{index}.png"
        Image.fromarray(drawn.image).save(path)
        values, counts = np.unique(drawn.label[drawn.label < len(names)], return_counts=True)
        words = [names[value] for value in values[np.argsort(-counts, kind="stable")]]
        examples.append((str(path), ", ".join(words)))
    return examples


def serve(
    predictor: TagCLIPPredictor,
    examples: Sequence[tuple[str, str]],
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload_mb: int = 20,
    max_uploads_mb: int = 1000,
    allowed_hosts: Sequence[str] = (),
    proxies: Sequence[str] = (),
    limits: Limits | None = None,
    files: TemporaryFiles | None = None,
) -> gr.Blocks:
    """Serve the page.

    Args:
        predictor: shared by all visitors.
        examples: of `find_examples`.
        folder: for uploads and results, of `page_folder`.
        host, port: where to listen.
        max_upload_mb: larger files are refused before they are read.
        max_uploads_mb: of all files that visitors have brought; a tenth of it, or one file, is for
            each address.
        allowed_hosts: names of the page beside ``host`` and those of this machine's loopback.
        proxies: addresses of servers in front, whose X-Forwarded-For says where a visitor is.
        limits: what a visitor may ask for.
        files: of the page, which is served until Ctrl-C or until one has gone; None: return at
            once.

    Returns:
        The running page; ``close()`` ends it.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's; or temporary files
            that the page needs have gone.
    """
    # Read when gradio is imported and when the page is built.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    # After each answer gradio would make a table of the last 10000, for monitoring that is off.
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**9)
    # Of uvicorn, which else believes whoever is on this machine.
    os.environ["FORWARDED_ALLOW_IPS"] = ",".join(proxies)
    from gradio.routes import file_upload_statuses
    from starlette.middleware import Middleware
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from tagclip.projects.webdemo.page import build_page
    from tagclip.projects.webdemo.visits import Messages

    largest, in_all = max_upload_mb << 20, max_uploads_mb << 20
    space = UploadSpace(max(in_all // 10, largest + ROOM_AROUND_FILE), in_all, _FILE_SYSTEM)
    # Who works when is decided by `turns`: gradio's limits would let one visitor fill all places,
    # and its open API would pass them by.
    limits = limits or Limits()
    turns = Turns(limits.memory, limits.seconds)
    page = build_page(predictor, examples, limits, uploads=folder, space=space, turns=turns).queue(
        default_concurrency_limit=None, max_size=_WAITING, api_open=False
    )
    page._queue.pending_messages_per_session = Messages(_UNREAD)

    def unfinished(address: str) -> int:
        events = list(page._queue.event_ids_to_events.values())
        clients = [event.request.client for event in events]
        return sum(client is not None and client.host == address for client in clients)

    def forget(upload: str) -> None:
        file_upload_statuses.stop_tracking(upload)
        file_upload_statuses._signals.pop(upload, None)

    connections = Connections(most_connections(), proxies=proxies)
    doors = [
        Middleware(FaultDoor),
        # First: to refuse something takes time, too.
        Middleware(CrowdDoor, most=connections.per_address),
        Middleware(PaceDoor),
        Middleware(CookieDoor),
        Middleware(HostDoor, allowed=[host, *allowed_hosts]),
        Middleware(RouteDoor),
        Middleware(ProgressDoor, forget=forget),
        Middleware(BodyDoor, space=space, largest=largest, folder=folder),
        Middleware(ShareDoor, unfinished=unfinished),
    ]
    try:
        page.launch(
            server_name=host,
            server_port=port,
            max_file_size=f"{max_upload_mb}mb",
            state_session_capacity=_SESSIONS,
            app_kwargs={"middleware": doors},
            css=_CSS,
            prevent_thread_lock=True,
            **_LOCAL_ONLY,
        )
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: found it taken, or no address of this machine, expected "
            "one to listen on; name another --port"
        ) from error
    # gradio puts its own around them: they would compress files on the loop for all, seconds each,
    # and let pages of others read answers where the page is asked by another name than localhost.
    app = page.server_app
    app.user_middleware = [each for each in app.user_middleware if each in doors]
    app.middleware_stack = app.build_middleware_stack()
    config = page.server.config
    # Asked anew for every connection. What a request is, and where it ends, says this class alone;
    # the page has no websockets.
    config.http_protocol_class = connections.bounded(H11Protocol)
    config.ws_protocol_class = None
    logging.getLogger("asyncio").addFilter(AcceptFilter())
    logger.info("The page is at %s (Ctrl-C ends it)", page.local_url)
    if files is not None:
        _serve_until_stopped(page, turns, files)
    return page


def _serve_until_stopped(page: gr.Blocks, turns: Turns, files: TemporaryFiles) -> None:
    try:
        while True:
            files.check()
            time.sleep(_LOOK)
    except KeyboardInterrupt:
        logger.info("The page ends")
    finally:
        # A thread that is in the middle of the model when Python ends would make a crash of it.
        if not turns.end(_LAST):
            logger.warning("A request is still at work after %d seconds", _LAST)
        page.close(verbose=False)
