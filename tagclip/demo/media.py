"""Images and videos that a command line names, and writing of videos."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tagclip.data.datasets.walk import files_below, files_matching
from tagclip.data.image_io import IMAGE_SUFFIXES, announce_other_images
from tagclip.demo.frame_times import FrameTimes
from tagclip.demo.whole_video import check_video
from tagclip.errors import ConfigError, DatasetError, OutputError
from tagclip.utils.files import expand_path, path_atomic
from tagclip.utils.opencv import opencv_name, quiet_opencv
from tagclip.utils.text import counted

__all__ = ["Video", "VideoFile", "find_images", "has_display", "is_video", "list_images"]

logger = logging.getLogger(__name__)

_CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
_VP9 = (".mp4", ".webm")
# Constant quality, of the encoder's faster half; threads would change bits.
_VP9_OPTIONS = {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "7", "row-mt": "0"}
_VIDEOS = {*_CODECS, ".m4v", ".mkv", ".mov", ".mpeg", ".mpg", ".webm"}
_INSTALL = "pip install av"


def is_video(path: str | Path) -> bool:
    """Whether a file name is that of a video."""
    return Path(path).suffix.lower() in _VIDEOS


def find_images(
    inputs: Sequence[str],
    output: Path | None,
    option: str = "IMAGE",
    output_option: str = "--output",
) -> list[tuple[Path, Path | None]]:
    """List images and where their pictures go.

    Args:
        inputs: files (of any suffix), folders (with the folders below) and globs.
        output: a folder, whose own files are no input; or a .png file for a single image; None:
            there are no pictures.
        option, output_option: what messages call the inputs and the output.

    Returns:
        (image, picture) pairs without doubles, folders and globs in alphabetical order. Pictures
        keep their place below an input folder; NAME.png, or NAME.jpg.png if two would share it;
        None without an output.

    Raises:
        ConfigError: an input does not exist, holds no image or only the output's own, or two images
            share a picture.
    """
    found = list_images(inputs, output, option, output_option)
    if output is None:
        return [(path, None) for path in found]
    if output.suffix.lower() == ".png":
        if len(found) > 1:
            raise ConfigError(
                f"--output {output}: found {len(found)} images for one file, expected a folder"
            )
        return [(path, output) for path in found]
    if output.suffix and not output.is_dir():
        raise ConfigError(f"--output {output}: expected a folder, or NAME.png for a single image")
    names = Counter(relative.with_suffix(".png") for relative in found.values())
    pairs = []
    for path, relative in found.items():
        short = relative.with_suffix(".png")
        name = short if names[short] == 1 else relative.with_name(f"{relative.name}.png")
        pairs.append((path, output / name))
    doubles = [str(p) for p, count in Counter(picture for _, picture in pairs).items() if count > 1]
    if doubles:
        raise ConfigError(
            f"{option}: several images would be drawn as {doubles[0]}; give them in separate runs "
            "or with the folder that holds them all"
        )
    return pairs


def list_images(
    inputs: Sequence[str], output: Path | None, option: str, output_option: str = "--output"
) -> dict[Path, Path]:
    """Images without doubles -> their paths below the inputs; the rest as in `find_images`."""
    # Of a link to itself, resolve raises.
    unique: dict[str, tuple[Path, Path]] = {}
    for text in inputs:
        for path, relative in _expand(text, output, option, output_option):
            unique.setdefault(os.path.realpath(path), (path, relative))
    return dict(unique.values())


def _expand(
    text: str, output: Path | None, option: str, output_option: str
) -> list[tuple[Path, Path]]:
    """(file, its path below the input) pairs of one input."""
    path = Path(expand_path(text))
    if path.is_file():
        return [(path, Path(path.name))]
    if path.is_dir():
        files = sorted(files_below(path))
        pairs = [(file, file.relative_to(path)) for file in files if _is_input(file, output)]
    else:
        files = sorted(files_matching(path)[1])
        pairs = [(file, Path(file.name)) for file in files if _is_input(file, output)]
    own = [] if pairs else [file for file in files if _is_input(file, None)]
    if own:
        raise ConfigError(
            f"{option} {text}: found {counted(len(own), 'image')}, all within {output_option} "
            f"{output}, whose files are no input, expected images elsewhere; give another "
            f"{output_option}, or move the images"
        )
    videos = [file for file in files if is_video(file)]
    if not pairs and videos:
        raise ConfigError(
            f"{option} {text}: found no image, but videos, expected one alone; name it: "
            f"--video-input {shlex.quote(str(videos[0]))}"
        )
    if not pairs:
        what = "no image in this folder" if path.is_dir() else "no such file, folder or match"
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ConfigError(f"{option} {text}: {what}; expected images ({kinds})")
    announce_other_images(text, (file.name for file in files if not file.name.startswith(".")))
    return pairs


def _is_input(file: Path, output: Path | None) -> bool:
    is_image = file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    folders = Path(os.path.realpath(file)).parents
    is_own = output is not None and Path(os.path.realpath(output)) in folders
    # A link to nothing is named when it is read, not left out unsaid.
    return is_image and (file.is_file() or file.is_symlink()) and not is_own


@contextmanager
def _quiet_decoder() -> Iterator[None]:
    """Keep what cv2 and ffmpeg print about a bad file or disk off the terminal: errors say it."""
    # ffmpeg reads it once, AV_LOG_QUIET; a level of the user's own stays.
    if os.environ.get("TAGCLIP_DEBUG") != "1":
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with quiet_opencv():
        yield


class Video:
    """Frames of a video file or a camera."""

    def __init__(self, source: str | int) -> None:
        """Open a file, or a camera by its number.

        Raises:
            ConfigError: it is an address, see `expand_path`.
            DatasetError: it cannot be opened.
        """
        source = expand_path(source) if isinstance(source, str) else source
        self.name = source if isinstance(source, str) else f"camera {source}"
        if isinstance(source, str) and not os.path.isfile(source):
            raise DatasetError(f"{source}: no such video; check its name")
        with _quiet_decoder():
            is_file = isinstance(source, str)
            self._capture = cv2.VideoCapture(opencv_name(source) if is_file else source)
        if not self._capture.isOpened():
            kind = "a video that cv2 can decode" if isinstance(source, str) else "a webcam"
            raise DatasetError(f"{self.name}: cannot be opened, expected {kind}; try another one")
        fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        # Cameras, and some files, do not know.
        count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.fps, self.length, self.drift, self._numbers = fps, count, 0.0, {}
        if isinstance(source, str):
            with _quiet_decoder():
                times = FrameTimes(source, fps, count)
            self.fps, self.length, self.drift = times.fps, times.length, times.drift
            self._numbers = times.numbers
            if times.end is not None:
                logger.warning(
                    "%s: the last frame is at %.1f s, its header says that it lasts %.1f s; "
                    "the end may be missing", self.name, *times.end,
                )  # fmt: skip

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield numbers, from 0, and (H, W, 3) uint8 BGR frames.

        Broken frames of a file are left out, which is logged, as are their numbers, if it is known
        which they are.

        Raises:
            DatasetError: there is not a single one.
        """
        attempts, count, number = 0, 0, -1
        try:
            while True:
                is_read, frame = self._capture.read()
                if is_read:
                    number = self._number(number, attempts if not count else None)
                    count += 1
                    yield number, frame
                attempts += 1
                # Behind a broken frame of a file there may be good ones; a camera has stopped.
                if not is_read and attempts >= self.length:
                    break
        finally:
            self._capture.release()
        if not count:
            raise DatasetError(
                f"{self.name}: found no frame that can be decoded, expected some; convert the "
                "video or try another one"
            )
        if count < self.length:
            logger.warning(
                "%s: found %d frames that can be decoded, expected %d; the others are left out "
                "(damaged, or trimmed away)%s",
                self.name, count, self.length,
                "" if self._numbers else ", and the numbers count those that are there",
            )  # fmt: skip

    def _number(self, before: int, first: int | None) -> int:
        """Of the frame that was read.

        Args:
            before: the number of the one before it.
            first: the number that the first one has if its time is right; None for later ones.
        """
        found = self._numbers.get(self._capture.get(cv2.CAP_PROP_POS_MSEC), -1)
        # Frames of some .avi come with the times of others.
        if found <= before or first not in (None, found):
            self._numbers = {}
        return found if self._numbers else before + 1


class VideoFile:
    """Writes frames within ``with``; the size of the first one is that of the video.

    With PyAV, .mp4 and .webm are VP9, which browsers play; without it, .mp4 is MPEG-4 part 2, which
    most do not; .avi is Motion JPEG. The video appears under its name when it is complete and has
    been read back, or after Ctrl-C, which ends there.
    """

    def __init__(self, path: Path, fps: float) -> None:
        """Prepare; the file is opened with the first frame.

        Raises:
            ConfigError: there is no codec for a file of this name.
        """
        suffix, has_pyav = path.suffix.lower(), find_spec("av") is not None
        if suffix not in (*_VP9, *_CODECS):
            expected = ", ".join(sorted({*_VP9, *_CODECS}))
            raise ConfigError(f"--output {path}: expected a folder or one of {expected}")
        if suffix not in _CODECS and not has_pyav:
            raise ConfigError(
                f"--output {path}: found no PyAV, expected it for {suffix}; {_INSTALL}, or name an "
                ".mp4"
            )
        if suffix in _VP9 and not has_pyav:
            logger.warning("%s: a browser may not play it; for one that does, %s", path, _INSTALL)
        self._open = _PyavWriter if suffix in _VP9 and has_pyav else _Cv2Writer
        self._path, self._fps, self._count, self._writer = path, fps, 0, None
        self._place = path_atomic(path)

    def __enter__(self) -> VideoFile:
        self._temporary = self._place.__enter__()
        return self

    def write(self, picture: np.ndarray) -> None:
        """Append (H, W, 3) uint8 RGB.

        Raises:
            OutputError: this file cannot be written.
        """
        # Most codecs take even sizes only.
        height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
        with self._naming(), _quiet_decoder():
            if self._writer is None:
                self._size = width, height
                self._writer = self._open(self._temporary, self._fps, self._size)
            self._writer.write(np.ascontiguousarray(picture[:height, :width]))
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> bool:
        is_interrupted = kind is KeyboardInterrupt
        with ExitStack() as stack:
            # Renames the file, or removes it if anything fails.
            stack.push(self._place)
            if error is not None and not is_interrupted:
                if self._writer is not None:
                    with suppress(OSError):
                        self._writer.close()
                raise error
            if self._writer is not None:
                with self._naming(), _quiet_decoder():
                    self._writer.close()
                    check_video(self._temporary, self._count, self._size)
        if is_interrupted:
            logger.info("Interrupted: %s ends here", self._path)
        return is_interrupted

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(error.errno, error.strerror, str(self._path)) from error


class _PyavWriter:
    """VP9 in whatever container the name of the file asks for; the same frames, the same file."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        import av

        self._av = av
        options = {"fflags": "+bitexact", "movflags": "+faststart"}
        with self._os_errors():
            self._container = av.open(str(path), "w", container_options=options)
            rate = Fraction(fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libvpx-vp9", rate, options=_VP9_OPTIONS)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.thread_count = 1
        # What browsers take for granted: BT.709, 16 to 235.
        context.colorspace = context.color_primaries = context.color_trc = 1
        context.color_range = 1
        self._has_failed = False

    def write(self, picture: np.ndarray) -> None:
        frame = self._av.VideoFrame.from_ndarray(picture, "rgb24")
        frame = frame.reformat(
            format="yuv420p",
            dst_colorspace="ITU709",
            src_color_range="JPEG",
            dst_color_range="MPEG",
        )
        self._mux(frame)

    def close(self) -> None:
        # A packet behind a header that could not be written would end the process.
        if not self._has_failed:
            self._mux(None)
        with self._os_errors():
            self._container.close()

    def _mux(self, frame: Any) -> None:
        with self._os_errors():
            for packet in self._stream.encode(frame):
                self._container.mux(packet)

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except self._av.FFmpegError as error:
            self._has_failed = True
            raise OSError(error.errno, error.strerror) from error


class _Cv2Writer:
    """What cv2 writes without further packages."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        code = cv2.VideoWriter_fourcc(*_CODECS[path.suffix.lower()])
        # Of finer rates cv2 makes fractions that MPEG-4 has no room for.
        self._writer = cv2.VideoWriter(opencv_name(path), code, round(fps, 2), size)
        if not self._writer.isOpened():
            raise OSError(errno.EIO, "cv2 opens no video here")

    def write(self, picture: np.ndarray) -> None:
        self._writer.write(np.ascontiguousarray(picture[:, :, ::-1]))

    def close(self) -> None:
        self._writer.release()


def has_display() -> bool:
    """Whether cv2 can open a window; to try would abort the process where it cannot."""
    if any("GUI:" in line and "NONE" in line for line in cv2.getBuildInformation().splitlines()):
        return False
    is_linux = sys.platform.startswith("linux")
    return not is_linux or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
