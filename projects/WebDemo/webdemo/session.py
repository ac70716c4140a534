"""What a visitor asks for: one forward pass per image, any number of looks at its scores."""

from __future__ import annotations

import math
import os
import stat
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image

from tagclip.config.checks import check_value
from tagclip.data.prepared_image import PreparedImage
from tagclip.errors import DatasetError, TagCLIPError, VocabularyError
from tagclip.modeling.inference.fusion import ScoreFusion, refuse_nan
from tagclip.predictor import AskedClasses, Demand, TagCLIPPredictor
from tagclip.projects.webdemo.reading import read_pixels, read_size
from tagclip.projects.webdemo.turns import Turns, current_turn
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.class_names import split_words
from tagclip.utils.files import temporary_folder
from tagclip.utils.text import one_line

__all__ = [
    "Arrivals",
    "EncodedImage",
    "Limits",
    "Settings",
    "Uploads",
    "encode_image",
    "find_upload",
    "least_limits",
    "no_upload",
]

# Longer side, in pixels, of what is drawn; the result to download has the image's own size.
_SHOWN_SIZE = 800
# Float32 planes of the result and of a view that `EncodedImage.predict` holds at a time.
_PLANES = 8
# Side in pixels of an image that anybody may be expected to bring.
_SMALLEST = 64
# Characters around a word: comma, spaces, quotes.
_AROUND = 8
# Paths of uploads above which is looked which of them are deleted.
_LEAST_LOOKED = 1000


@dataclass(frozen=True)
class Limits:
    """What visitors may ask for; INPUT.MAX_PIXELS limits the image, too.

    Attributes:
        words: number of words, context included; at most 250.
        characters: length of a word.
        windows: that the model sees of an image.
        seconds: of a request, waiting included.
        memory: bytes of all requests that are worked on; one may take half of it.
        kept: bytes of all images after their forward pass; one may take half of it.
        kept_seconds: of images and files that nobody asks for.
    """

    words: int = 200
    characters: int = 80
    windows: int = 32
    seconds: float = 60
    memory: int = 2 << 30
    kept: int = 64 << 20
    kept_seconds: int = 3600

    def check(self, demand: Demand, kept_nbytes: int, name: str) -> None:
        """Check what an image would take.

        Args:
            demand: of the model.
            kept_nbytes: what is kept of it until the visitor asks for another one.
            name: of the image.

        Raises:
            DatasetError: more than is allowed.
        """
        size = f"{name}: image of {demand.size[1]}x{demand.size[0]} pixels"
        if demand.windows > self.windows:
            raise DatasetError(
                f"{size}: found {demand.windows} windows for the model, expected at most "
                f"{self.windows}; cut a piece out of it that is less long and thin"
            )
        if kept_nbytes > self.kept // 2:
            raise DatasetError(
                f"{size}: found {kept_nbytes // 2**20 + 1} MiB to be kept, expected at most "
                f"{self.kept // 2 // 2**20}; ask for fewer words, or cut a piece out of it"
            )


@dataclass(frozen=True)
class Settings:
    """What the sliders say.

    Attributes:
        gate: one of `GATE_MODES`.
        seen_bias: subtracted from the scores of seen classes.
        background_threshold: pixels whose best score is below are "other"; 0: none.
    """

    gate: str
    seen_bias: float
    background_threshold: float

    def __post_init__(self) -> None:
        """Check what a request may have put in the place of a slider.

        Raises:
            ConfigError: the config key that says the same cannot have this value.
        """
        for name, value in vars(self).items():
            check_value(f"MODEL.TAGCLIP.TEST.{name.upper()}", value)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Settings:
        """Those that the model is evaluated with."""
        test = cfg.MODEL.TAGCLIP.TEST
        return cls(test.GATE, test.SEEN_BIAS, test.BACKGROUND_THRESHOLD)


@dataclass(frozen=True)
class EncodedImage:
    """An image after its forward pass: all else about it is cheap. The page keeps one per visitor.

    Attributes:
        name: of its file.
        size: (height, width) in pixels.
        picture: (h, w, 3) uint8 RGB, at most 800 pixels long; `size` if that is smaller.
        asked: the classes.
        fusion: their logits; the visitor chooses mode and bias of the gate.
        encode: runs the networks again, where the trusty map depends on which classes are seen.
        encode_nbytes: bytes that this holds.
    """

    name: str
    size: tuple[int, int]
    picture: np.ndarray
    asked: AskedClasses
    fusion: ScoreFusion
    encode: Callable[[AskedClasses], ScoreFusion] | None = None
    encode_nbytes: int = 0

    @property
    def vocabulary(self) -> Vocabulary:
        """The K classes of the result."""
        return self.asked.shown

    @property
    def nbytes(self) -> int:
        """Bytes that it holds: logits, picture and what runs the networks again."""
        views = self.fusion.views
        tensors = [t for v in views for t in (v.class_logits, v.trusty_logits, v.margins)]
        logits = sum(t.nbytes for t in tensors if t is not None)
        return logits + self.picture.nbytes + self.encode_nbytes

    def working_nbytes(self, size: tuple[int, int]) -> int:
        """Bytes that `predict` takes for a result of (height, width) pixels, about."""
        views = max(view.grid.height * view.grid.width for view in self.fusion.views)
        return 4 * _PLANES * (size[0] * size[1] + views)

    @property
    def background(self) -> str:
        """MODEL.TAGCLIP.TEST.BACKGROUND of the model."""
        return "threshold" if self.fusion.views[0].margins is None else "auto"

    @property
    def context(self) -> list[str]:
        """Names of the classes that compete but are not shown."""
        return self.asked.all.names[len(self.vocabulary) :]

    def with_seen(self, flags: Sequence[bool]) -> EncodedImage:
        """Call classes seen or unseen.

        Args:
            flags: K truth values; the context stays as it is.
        """
        context = self.asked.all.seen_mask[len(flags) :].tolist()
        asked = AskedClasses(
            self.asked.shown.with_seen(flags), self.asked.all.with_seen([*flags, *context])
        )
        fusion = self.fusion
        if self.encode is not None and asked.all.seen != self.asked.all.seen:
            turn = current_turn()
            turn.reserve(self.nbytes)
            with turn.work():
                fusion = self.encode(asked)
        return replace(self, asked=asked, fusion=fusion)

    @torch.no_grad()
    def predict(
        self, settings: Settings, size: tuple[int, int], top_k: int = 0
    ) -> dict[str, torch.Tensor]:
        """Gate, fuse and compare the scores.

        Args:
            settings: what the visitor chose.
            size: (height, width) of the result in pixels.
            top_k: how many classes, context included, to rank at every pixel; 0: none.

        Returns:
            ``sem_seg_labels``, ``sem_seg_scores``, ``trusty``, ``top_labels`` and ``top_scores``
            as a call of `TagCLIPPredictor`; a label from K on in ``top_labels`` is context.
        """
        turn = current_turn()
        turn.reserve(self.working_nbytes(size))
        with turn.work():
            return self._predict(settings, size, top_k)

    def _predict(
        self, settings: Settings, size: tuple[int, int], top_k: int
    ) -> dict[str, torch.Tensor]:
        seen = self.asked.all.seen_mask.tolist()
        gate = replace(self.fusion.gate, mode=settings.gate, bias=settings.seen_bias)
        fusion = replace(self.fusion, gate=gate, seen_mask=self.fusion.seen_mask.new_tensor(seen))
        result = fusion.labels(size, settings.background_threshold, top_k)
        labels = result["sem_seg_labels"]
        labels[labels >= len(self.vocabulary)] = -1
        outputs = {key: value.cpu() for key, value in result.items()}
        refuse_nan(outputs["sem_seg_scores"], "score", self.name)
        return outputs


def find_upload(path: object, uploads: Path) -> Path:
    """Find a file that a visitor has uploaded; any other is refused without being opened.

    A request names its file itself, so it may name any that the server can read. What is a link,
    a pipe or a device is no upload, wherever it lies.

    Args:
        path: as the request says.
        uploads: folder of the uploads of this page.

    Raises:
        DatasetError: it is no file in that folder; says nothing about what else there is.
    """
    try:
        below = Path(os.path.abspath(path)).relative_to(os.path.abspath(uploads))
        file = uploads.resolve() / below
        is_upload = file.resolve() == file and stat.S_ISREG(file.lstat().st_mode)
    except (OSError, RuntimeError, TypeError, ValueError):
        is_upload = False
    if not is_upload:
        raise no_upload()
    return file


class Arrivals(set[str]):
    """gradio's set of the paths that visitors have uploaded, which counts how often each came.

    Attributes:
        times: path -> uploads.
    """

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self.times: Counter[str] = Counter()
        self._most = _LEAST_LOOKED

    def update(self, *paths: Iterable[str]) -> None:
        """Add paths, as gradio does after each upload."""
        for each in map(list, paths):
            self.times.update(each)
            super().update(each)
        if len(self) > self._most:
            for gone in [path for path in self if not os.path.isfile(path)]:
                self.discard(gone)
                self.times.pop(gone, None)
            self._most = _LEAST_LOOKED + 2 * len(self)


class Uploads:
    """The folder of the page's files: examples for everybody, uploads for those who brought them.

    gradio names an upload after its content and does not say whose it is. So many sessions own it
    as it was brought, those that ask for it first.
    """

    def __init__(self, folder: Path, times: MutableMapping[str, int]) -> None:
        """Take what lies in the folder now for examples.

        Args:
            folder: of all files.
            times: see `Arrivals`; results of others, which lie in the same folder, are not among
                them.
        """
        self.folder, self._times = folder, times
        self._examples = {path for path in folder.resolve().rglob("*") if path.is_file()}
        self._owners: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def find(self, path: object, session: str) -> Path:
        """Find a file that this session may see.

        Args:
            path: as the request says.
            session: gradio's name of the session.

        Raises:
            DatasetError: as `find_upload`, and with the same words for an upload of others.
        """
        file = find_upload(path, self.folder)
        if file in self._examples:
            return file
        name = os.path.abspath(path)
        with self._lock:
            owners = self._owners.get(name, set())
            if session in owners:
                return file
            if len(owners) >= self._times.get(name, 0):
                raise no_upload()
            self._owners[name] = owners | {session}
            for gone in [name for name in self._owners if not os.path.isfile(name)]:
                del self._owners[gone]
                self._times.pop(gone, None)
        return file


def no_upload() -> DatasetError:
    """What is said of any file that is not the visitor's, also where this server has none."""
    return DatasetError(
        "image: found no file that was uploaded to this page, expected one; drop a file or "
        "choose an example, after a reload of the page if its server has been started anew"
    )


def encode_image(
    predictor: TagCLIPPredictor, path: str | Path | None, words: str, context: str, limits: Limits
) -> EncodedImage:
    """Run the model on an uploaded file.

    Args:
        predictor: shared by all visitors; stays as it is.
        path: the file; None: the visitor gave none.
        words: class names between commas or ends of lines, see `split_words`.
        context: more of them, which compete but are not shown; may be empty.
        limits: what a visitor may ask for.

    Raises:
        DatasetError: there is no image, or it is damaged, too large or too long and thin.
        RequestError: the request of `current_turn` is to end.
        VocabularyError: there are no words, too many, too long ones, or one twice.
    """
    if path is None:
        raise DatasetError("image: found none, expected one; drop a file or choose an example")
    names, others = _split_words(words, limits), _split_words(context, limits)
    if not names:
        raise VocabularyError("words: found none, expected at least one; write what to look for")
    if len(names) + len(others) > limits.words:
        raise VocabularyError(
            f"words: found {len(names)}, and {len(others)} of context, expected at most "
            f"{limits.words} together; ask for fewer at a time"
        )
    name, turn = Path(path).name, current_turn()
    encodes_again = predictor.model.relative_trusty is not None
    max_pixels = predictor.cfg.INPUT.MAX_PIXELS
    try:
        with turn.work_aside():
            size = read_size(path, max_pixels, turn.check)
        with turn.work():
            asked = predictor.resolve(names, context=others or None)
        demand = predictor.demand(size, asked)
        kept_nbytes = demand.logits_nbytes + 3 * math.prod(_shown_size(demand.size))
        kept_nbytes += encodes_again * demand.views_nbytes
        limits.check(demand, kept_nbytes, name)
        turn.reserve(demand.nbytes)
        with turn.work_aside():
            pixels = read_pixels(path, max_pixels, turn.check, limits.memory // 2)
            picture = _shrunk(pixels[:, :, ::-1])
        with turn.work():
            # Not the pixels: of them, what the networks take is enough to run these again.
            prepared = predictor.preparer(pixels, str(path))
            fusion = _encoded(predictor, prepared, asked)
    except TagCLIPError as error:
        # Where the server keeps the file is of no use to the visitor.
        raise type(error)(str(error).replace(str(path), name)) from error
    return EncodedImage(
        name=name,
        size=pixels.shape[:2],
        picture=picture,
        asked=asked,
        fusion=fusion,
        encode=partial(_encoded, predictor, prepared) if encodes_again else None,
        encode_nbytes=prepared.nbytes if encodes_again else 0,
    )


def least_limits(predictor: TagCLIPPredictor) -> Limits:
    """Return the lowest limits with which there is a result: that of a small square and one word.

    Args:
        predictor: stays as it is; runs the model once.
    """
    turns = Turns(memory=sys.maxsize, seconds=math.inf)
    with temporary_folder() as folder, turns.request("", lambda: False) as turn:
        Image.new("RGB", (_SMALLEST, _SMALLEST)).save(path := folder / "least.png")
        demand = predictor.demand((_SMALLEST, _SMALLEST), predictor.resolve(["thing"]))
        open_limits = Limits(windows=sys.maxsize, kept=sys.maxsize)
        found = encode_image(predictor, path, "thing", "", open_limits)
        found.predict(Settings.from_config(predictor.cfg), found.size)
        return Limits(windows=demand.windows, memory=2 * turn.held, kept=2 * found.nbytes)


def _encoded(
    predictor: TagCLIPPredictor, prepared: PreparedImage, asked: AskedClasses
) -> ScoreFusion:
    return predictor.model.encode(prepared.input, asked.all)


def _shrunk(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> at most _SHOWN_SIZE pixels long, a copy."""
    size = image.shape[:2]
    shown = _shown_size(size)
    if shown == size:
        return image.copy()
    return cv2.resize(image, shown[::-1], interpolation=cv2.INTER_AREA)


def _shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of what is shown of an image."""
    scale = min(1.0, _SHOWN_SIZE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _split_words(text: str, limits: Limits) -> list[str]:
    """Words between commas or ends of lines; empty ones are dropped.

    Raises:
        VocabularyError: a word is too long, or quotes do not match.
    """
    # Commas without words would be as long to take apart, and count for nothing.
    most = limits.words * (limits.characters + _AROUND)
    if len(text) > most:
        raise VocabularyError(
            f"words: found a text of {len(text)} characters, expected at most {most}; ask for "
            "fewer at a time"
        )
    words = [one_line(word) for line in text.splitlines() for word in split_words(line)]
    words = [word for word in words if word]
    long = [word for word in words if len(word) > limits.characters]
    if long:
        raise VocabularyError(
            f"words: found {len(long[0])} characters in {long[0][:20]!r}..., expected at most "
            f"{limits.characters}; separate words by commas"
        )
    return words
