"""Pictures of strangers are read in processes of their own, with bounded time and memory.

A file of kilobytes can keep a decoder at work for hours or have it fill all memory, by its header
alone, and no thread can be ended. A process can, and gives its memory back.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from tagclip.data.image_io import opened, read_image, stored_size
from tagclip.errors import DatasetError

__all__ = ["read_pixels", "read_size", "started_reading"]

# As Pillow calls them: what cameras and browsers write, and quick to decode.
_FORMATS = frozenset(("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP"))
# Of a processor, for the header and for all of the picture; 25 million pixels take one or two.
_HEADER_SECONDS, _SECONDS = 3, 10
# That the header may take, and more for each pixel: Pillow opens a WebP with two canvases.
_HEADER_NBYTES, _CANVAS_NBYTES = 256 << 20, 8
# What Pillow says of a WebP that is damaged, or for whose canvases there is no room.
_NO_CANVAS = "could not create decoder object"
# Seconds between two looks at whether anybody still waits.
_LOOK = 0.1
# Whoever answers others goes before whoever reads a picture.
_NICE = 10
_MIB = 1 << 20

# Forked from a process that has imported this module and nothing heavy.
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_CONTEXT = multiprocessing.get_context(_METHOD)
if _METHOD == "forkserver":
    _CONTEXT.set_forkserver_preload(["__main__", __name__])

_Task = Callable[[str, int, Connection], None]


@contextmanager
def started_reading() -> Iterator[list[Path]]:
    """Start what starts those processes; give the temporary files that it cannot do without."""
    if _METHOD != "forkserver":
        yield []
        return
    forkserver.ensure_running()
    place = Path(get_temp_dir())
    try:
        yield [place, *place.iterdir()]
    finally:
        # Python removes it when it ends, and could not do so without a traceback if it has gone.
        place.mkdir(exist_ok=True)


def read_size(path: str | Path, max_pixels: int, check: Callable[[], None]) -> tuple[int, int]:
    """(height, width) of a picture as its header says, before any EXIF rotation.

    Args:
        path: of the file.
        max_pixels: pictures with more are refused; 0 sets none but Pillow's.
        check: called now and then; what it raises ends the reading.

    Raises:
        DatasetError: it is no picture, too large, of a format that takes long to decode, or its
            header takes more time or memory than headers do.
    """
    nbytes = _HEADER_NBYTES + _CANVAS_NBYTES * (max_pixels or 2 * Image.MAX_IMAGE_PIXELS)
    return _read(_send_size, path, max_pixels, check, _HEADER_SECONDS, nbytes)


def read_pixels(
    path: str | Path, max_pixels: int, check: Callable[[], None], nbytes: int
) -> np.ndarray:
    """(H, W, 3) uint8 BGR, as `tagclip.data.image_io.read_image` reads it.

    Args:
        path, max_pixels, check: see `read_size`.
        nbytes: that reading it may take.

    Raises:
        DatasetError: it is damaged, or takes more time or memory.
    """
    return _read(_send_pixels, path, max_pixels, check, _SECONDS, nbytes)


def _read(
    task: _Task,
    path: str | Path,
    max_pixels: int,
    check: Callable[[], None],
    seconds: int,
    nbytes: int,
) -> Any:
    """What a task sends from a process of its own."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    args = (task, str(path), max_pixels, seconds, nbytes, sender)
    process = _CONTEXT.Process(target=_serve, args=args, daemon=True)
    try:
        process.start()
        sender.close()
        while not receiver.poll(_LOOK):
            check()
        try:
            error, found = receiver.recv()
            if error:
                raise DatasetError(error)
            if task is _send_pixels:
                found = _receive(receiver, found)
        except (EOFError, OSError) as died:
            raise DatasetError(
                f"{path}: found a picture that takes more than {seconds} seconds or "
                f"{nbytes // _MIB} MiB to be read, expected less; save it anew as PNG or JPEG"
            ) from died
        return found
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        receiver.close()


def _receive(receiver: Connection, shape: tuple[int, int, int]) -> np.ndarray:
    pixels = np.empty(shape, np.uint8)
    receiver.recv_bytes_into(memoryview(pixels).cast("B"))
    return pixels


def _serve(
    task: _Task, path: str, max_pixels: int, seconds: int, nbytes: int, sender: Connection
) -> None:
    """Be the process: do the task, or say why it is not done."""
    # Whoever started it ends it; and what it has to say goes through the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    warnings.simplefilter("ignore")
    _bound(seconds, nbytes)
    try:
        task(path, max_pixels, sender)
    except DatasetError as error:
        if isinstance(error.__cause__, MemoryError):
            _end()
        sender.send((_large_or_damaged(path, max_pixels, error), None))
    except MemoryError:
        _end()


def _large_or_damaged(path: str, max_pixels: int, error: DatasetError) -> str:
    if _NO_CANVAS not in str(error.__cause__):
        return str(error)
    most = f"more than the {max_pixels} pixels" if max_pixels else "more pixels than those"
    return (
        f"{path}: found a WebP that is damaged or has {most} that are read here, expected a whole "
        "one with fewer; save it anew as PNG or JPEG, and smaller"
    )


def _end() -> NoReturn:
    """As one that the system ends for want of memory."""
    os._exit(1)


def _bound(seconds: int, nbytes: int) -> None:
    """Bound the time and memory of this process, where the system can."""
    with suppress(OSError):
        os.nice(_NICE)
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        allowed = pages * resource.getpagesize() + nbytes
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


def _send_size(path: str, max_pixels: int, sender: Connection) -> None:
    with opened(path, "image", max_pixels, path) as image:
        if image.format not in _FORMATS:
            raise DatasetError(
                f"{path}: found {image.format}, expected one of {', '.join(sorted(_FORMATS))}; "
                "save it as one of these"
            )
    sender.send(("", stored_size(path, max_pixels, name=path)))


def _send_pixels(path: str, max_pixels: int, sender: Connection) -> None:
    pixels = np.ascontiguousarray(read_image(path, "BGR", max_pixels, name=path))
    sender.send(("", pixels.shape))
    sender.send_bytes(memoryview(pixels).cast("B"))
