"""TagCLIPPredictor: any words on any image, without a dataset."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import Tensor

import tagclip
from tagclip.checkpoint import checkpoint_config, find_weights, load_trained
from tagclip.config.checks import available_device, check_config, check_registered
from tagclip.data.image_io import read_image
from tagclip.data.prepared_image import ImageLike, ImagePreparer, PreparedImage
from tagclip.data.protocol import Protocol, resolve_seen
from tagclip.data.read_ahead import BUDGET, check_budget, read_ahead
from tagclip.errors import ConfigError, DatasetError, VocabularyError
from tagclip.modeling.clip import resolve_pixels
from tagclip.modeling.inference.fusion import ScoreFusion, refuse_nan
from tagclip.prediction import Prediction
from tagclip.projects import import_projects
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_class import is_int
from tagclip.utils.files import expand_path

__all__ = ["AskedClasses", "Demand", "ImageLike", "TagCLIPPredictor", "VocabularyLike"]

logger = logging.getLogger(__name__)

VocabularyLike = Sequence[str] | Vocabulary | str | Path


@dataclass(frozen=True)
class AskedClasses:
    """What an image is asked for.

    Attributes:
        shown: the K classes of the result.
        all: these and, behind them, the context: classes that compete but are not shown.
    """

    shown: Vocabulary
    all: Vocabulary


@dataclass(frozen=True)
class Demand:
    """What an image will ask of the machine.

    Attributes:
        size: (height, width) of it in pixels.
        windows: how many the model will see, of all views.
        logits_nbytes: bytes of the logits of all windows, which `TagCLIPPredictor.encode` returns.
        views_nbytes: bytes of what the networks take.
        nbytes: of these and of the image while it is prepared.
    """

    size: tuple[int, int]
    windows: int
    logits_nbytes: int
    views_nbytes: int
    nbytes: int


class TagCLIPPredictor:
    """Segments images into the classes of a vocabulary, which may be any words.

    A vocabulary costs one text encoding, which the model's text bank keeps; an image costs the
    same whatever was asked before. Several threads may call one predictor at the same time: a call
    answers for the vocabulary that was set when it began.

    Attributes:
        cfg: the model's config, on a device that this machine has.
        model: `TagCLIP` with its trained weights.
        preparer: reads and resizes images for `segment_prepared`, here or elsewhere.
        asked: the vocabulary in use, at first that of DATASETS.TEST, or else of training.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build the model and load MODEL.WEIGHTS.

        Args:
            cfg: see `tagclip.config`; OUTPUT does not matter. MODEL.DEVICE becomes cpu where
                there is no GPU, which is logged.

        Raises:
            TagCLIPError: a key, a vocabulary, the CLIP weights or the checkpoint are not in order.
        """
        tagclip.register()
        check_config(cfg)
        self.cfg = cfg = resolve_pixels(cfg).clone()
        cfg.defrost()
        if cfg.MODEL.WEIGHTS:
            cfg.MODEL.WEIGHTS = str(find_weights(cfg.MODEL.WEIGHTS))
        # The folders do not matter here, nor may their names be taken by other registrations.
        carried = Protocol(cfg).carried
        folders = cfg.DATASETS.FOLDER_DATASETS
        cfg.DATASETS.FOLDER_DATASETS = [
            entry
            for entry in folders
            if not (isinstance(entry, Mapping) and entry.get("name") in carried)
        ]
        self._given = cfg.clone()
        cfg.MODEL.TAGCLIP.TEST.OUTPUT = "labels"
        cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
        if cfg.MODEL.DEVICE != self._given.MODEL.DEVICE:
            logger.info("Found no GPU: MODEL.DEVICE %s becomes cpu", self._given.MODEL.DEVICE)
        cfg.freeze()
        import_projects(cfg.PROJECTS)
        check_registered(cfg)
        self.model = load_trained(cfg)
        if self.model.relative_trusty is not None:
            self.model.relative_trusty.check_promise()
        self.preparer = ImagePreparer.from_config(cfg)
        self._protocol = Protocol(cfg)
        self._trained = self._protocol.full
        self.asked = self._against_others(self.model.vocabulary, self.model.vocabulary)

    @classmethod
    def from_checkpoint(cls, path: str | Path, opts: Sequence[str] = ()) -> TagCLIPPredictor:
        """Build from a checkpoint alone: config and class lists travel in it, not CLIP's weights.

        Args:
            path: see `checkpoint_config`.
            opts: alternating config keys and values that go before those of the checkpoint.

        Raises:
            TagCLIPError: see `checkpoint_config` and the constructor.
        """
        return cls(checkpoint_config(expand_path(path), opts))

    @classmethod
    def from_pretrained(
        cls, name: str | Path, opts: Sequence[str] = (), **hub_options: Any
    ) -> TagCLIPPredictor:
        """Build from what `save_pretrained` or `push_to_hub` wrote, or from a checkpoint.

        Args:
            name: a folder, ``ORGANISATION/NAME`` of the hub, or a checkpoint; what is here goes
                first, see `find_weights`.
            opts: alternating config keys and values that go before those of the model.
            hub_options: ``revision``, ``cache_dir``, ``force_download``, ``local_files_only`` and
                ``token`` of `tagclip.checkpoint.hub.download`.

        Raises:
            TagCLIPError: see `find_weights`, `checkpoint_config` and the constructor.
        """
        return cls.from_checkpoint(find_weights(expand_path(name), **hub_options), opts)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        with_clip: bool = False,
        results: Iterable[str | Path] = (),
        license: str = "",
        overwrite: bool = False,
    ) -> Path:
        """Write a folder with all that others need: tensors, config, class list, model card.

        Args:
            folder: is created, whole or not at all.
            with_clip: see `tagclip.pretrained.pretrained_content`, as for the two that follow.
            results: metrics.json files of its evaluations.
            license: of what was trained.
            overwrite: replace a model that was written there before; other files never are.

        Returns:
            Its absolute path.

        Raises:
            CheckpointError: CLIP's weights are a file of this machine and are not to be copied,
                results are of another model, or the folder holds something or cannot be written.
        """
        # Nobody who only predicts pays for it.
        from tagclip.pretrained import check_target, pretrained_content, save_folder

        folder = check_target(expand_path(folder), overwrite)
        content = pretrained_content(
            self._given,
            self.model,
            folder.name,
            with_clip=with_clip,
            results=results,
            license=license,
        )
        return save_folder(content, folder, overwrite)

    def push_to_hub(
        self,
        name: str,
        *,
        with_clip: bool = False,
        results: Iterable[str | Path] = (),
        license: str = "",
        **hub_options: Any,
    ) -> str:
        """Send what `save_pretrained` writes to a repository of the hub, in one commit.

        Args:
            name: ``ORGANISATION/NAME``; is made if there is none.
            with_clip: see `save_pretrained`.
            results: see `save_pretrained`.
            license: see `save_pretrained`.
            hub_options: ``private``, ``token``, ``commit_message`` and ``branch`` of
                `tagclip.pretrained.push_to_hub`.

        Returns:
            Address of the commit.

        Raises:
            CheckpointError: see `save_pretrained`; or the hub is not within reach, or refuses.
        """
        from tagclip.pretrained import pretrained_content, push_to_hub

        content = pretrained_content(
            self._given, self.model, name, with_clip=with_clip, results=results, license=license
        )
        return push_to_hub(content, name, **hub_options)

    @property
    def dataset_names(self) -> set[str]:
        """Names that mean the class list of a dataset: registered ones, and the model's own."""
        return {*DatasetCatalog.list(), *self._protocol.carried}

    @property
    def vocabulary(self) -> Vocabulary:
        """The K classes of the results, with seen and unseen decided."""
        return self.asked.shown

    @property
    def can_be_other(self) -> bool:
        """Whether pixels may get none of the K classes: there is context, or TEST.BACKGROUND."""
        has_context = len(self.asked.all) > len(self.asked.shown)
        return has_context or self.model.inference_settings.may_be_other

    def set_vocabulary(
        self,
        vocabulary: VocabularyLike,
        seen: Sequence[bool] | Iterable[str] | None = None,
        context: VocabularyLike | None = None,
    ) -> None:
        """Choose the classes of the images that follow, and encode their names.

        Arguments and errors are those of `resolve`.
        """
        asked = self.resolve(vocabulary, seen, context)
        if len(asked.all) == 1 and not self.model.inference_settings.may_be_other:
            logger.warning(
                "The only class, %r, gets every pixel; name others as context, or set "
                "MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD, or BACKGROUND auto", asked.shown.names[0],
            )  # fmt: skip
        with torch.no_grad():
            self.model.text_bank(asked.all)
        self.asked = asked

    def resolve(
        self,
        vocabulary: VocabularyLike,
        seen: Sequence[bool] | Iterable[str] | None = None,
        context: VocabularyLike | None = None,
    ) -> AskedClasses:
        """Decide what `encode` is asked, without changing it for anyone else.

        Args:
            vocabulary: K class names, a `Vocabulary`, the name of a dataset (`dataset_names`), or
                the path of a vocabulary json.
            seen: K flags, or the names of the seen classes; None: a `Vocabulary` may say so, a
                dataset that the model is trained on is known, and otherwise
                MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES decides (by the names seen in training).
            context: more classes, in the same forms, that compete for pixels but are not shown:
                where one wins, the label is -1. Those that the vocabulary has, too, are dropped.

        With MODEL.TAGCLIP.TEST.BACKGROUND auto the context has the training's other classes, too,
        see `TagCLIP.competitors`.

        Raises:
            VocabularyError: names are empty or occur twice, or a file is inconsistent.
            DatasetError: the dataset is not registered with a vocabulary.
        """
        shown = self._resolved(vocabulary)
        shown = shown if seen is None else shown.with_seen(seen)
        everything = shown if context is None else shown.joined(self._resolved(context))
        return self._against_others(shown, everything)

    def _against_others(self, shown: Vocabulary, everything: Vocabulary) -> AskedClasses:
        """With the classes that TEST.BACKGROUND auto adds."""
        others = self.model.competitors(everything)
        return AskedClasses(shown, everything if others is None else everything.joined(others))

    def __call__(
        self, image: ImageLike | Sequence[ImageLike], top_k: int = 0
    ) -> Prediction | list[Prediction]:
        """Segment one image, or each of a list.

        Images of a list are read while the model works. On a GPU windows of several images fill
        batches of MODEL.TAGCLIP.TEST.WINDOW_BATCH. On a CPU, where a batch would change the
        rounding, results have the bits of single calls.

        Args:
            image: BGR (H, W, 3) uint8 as everywhere in detectron2 or BGRA, a PIL image, a path,
                the bytes of an image file, or a list of these, read as
                `tagclip.data.image_io.read_image` says: alpha is dropped.
            top_k: how many of the K classes to rank at every pixel; 0: none.

        Returns:
            A `Prediction`, or a list of them: dicts of CPU tensors of the image's own size.

        Raises:
            DatasetError: an image is damaged, too large, or of another form; in a list it is named
                by its place, from 0.
            ConfigError: ``top_k`` is not between 0 and K.
            CheckpointError: the weights are broken: a score is nan.
        """
        if isinstance(image, (list, tuple)):
            return list(self._segment(image, top_k))
        asked, prepared = self.asked, self._prepared(image, "image")
        outputs = next(self.segment_prepared([prepared], asked, top_k))
        return self._prediction(image, prepared.pixels, outputs, asked)

    def read_image(self, path: str | Path) -> np.ndarray:
        """Read a file as training does, within INPUT.MAX_PIXELS: (H, W, 3) uint8 BGR.

        Raises:
            DatasetError: the file is missing, damaged or too large.
        """
        path = expand_path(path)
        return read_image(path, "BGR", self.cfg.INPUT.MAX_PIXELS, name=path)

    def demand(self, size: tuple[int, int], asked: AskedClasses) -> Demand:
        """Say what `encode` would take.

        Args:
            size: (height, width) of an image in pixels, upright or not.
            asked: what `resolve` returns.

        Raises:
            DatasetError: an image of this size cannot be resized as the config says.
        """
        views = [view.size(*size) for view in self.preparer.inputs.views]
        plans = [self.model.window_plan(*view, len(asked.all)) for view in views]
        logits = sum(plan.logits_nbytes for plan in plans)
        return Demand(
            size=size,
            windows=sum(len(plan.grid) for plan in plans),
            logits_nbytes=logits,
            views_nbytes=sum(3 * height * width for height, width in views),
            # As it is read, and with the channels in the order of the model.
            nbytes=logits + 3 * (2 * size[0] * size[1] + sum(h * w for h, w in views)),
        )

    def encode(self, image: ImageLike, asked: AskedClasses) -> ScoreFusion:
        """Run the networks on one image; gate, bias, threshold and size can follow, many times.

        Args:
            image: in the forms of a call.
            asked: what `resolve` returns.

        Returns:
            The low-resolution logits of the classes of ``asked.all``.

        Raises:
            DatasetError: the image is damaged, too large, or of another form.
        """
        return self.model.encode(self._prepared(image, "image").input, asked.all)

    @torch.no_grad()
    def segment_prepared(
        self,
        images: Iterable[PreparedImage | DatasetError],
        asked: AskedClasses | None = None,
        top_k: int = 0,
        budget: int = BUDGET,
    ) -> Iterator[dict[str, Tensor] | DatasetError]:
        """Segment a stream of images that ``preparer`` has prepared.

        Args:
            images: prepared images, and errors of others in their places.
            asked: what `resolve` returns; None: ``asked`` as it is when the stream begins.
            top_k: see a call.
            budget: bytes of images that wait on a GPU until windows of equal size fill a batch,
                see `TagCLIP.encode_each`.

        Yields:
            In order, of an image the tensors of its `Prediction`, on the CPU; an error as it came.

        Raises:
            ConfigError: ``top_k`` is not between 0 and K, or ``budget`` is no number of bytes.
            CheckpointError: the weights are broken: a score is nan.
        """
        check_budget(budget)
        asked = asked or self.asked
        count = len(asked.shown)
        if not is_int(top_k) or not 0 <= top_k <= count:
            raise ConfigError(
                f"top_k: found {top_k!r:.80}, expected 0 to {count}, the number of classes"
            )
        waiting: deque[tuple[int, int] | DatasetError] = deque()

        def inputs() -> Iterator[dict[str, Any]]:
            for image in images:
                is_error = isinstance(image, DatasetError)
                waiting.append(image if is_error else image.size)
                if not is_error:
                    yield image.input

        threshold = self.model.inference_settings.background_threshold
        for fusion in self.model.encode_each(inputs(), asked.all, budget):
            while isinstance(waiting[0], DatasetError):
                yield waiting.popleft()
            result = fusion.labels(waiting.popleft(), threshold, top_k, count)
            labels = result["sem_seg_labels"]
            labels[labels >= count] = -1
            outputs = {key: value.cpu() for key, value in result.items()}
            refuse_nan(outputs["sem_seg_scores"], "score", "image")
            yield outputs
        yield from waiting

    def _segment(self, images: Sequence[ImageLike], top_k: int) -> Iterator[Prediction]:
        """Segment images, each of which is prepared while the model is busy with others."""
        asked, pixels = self.asked, deque()
        numbers = range(len(images))

        def size_of(number: int) -> int:
            return self.preparer.nbytes(images[number])

        def prepare(number: int) -> PreparedImage:
            return self._prepared(images[number], f"image {number}")

        def noted(prepared: Iterator[PreparedImage]) -> Iterator[PreparedImage]:
            for image in prepared:
                pixels.append(image.pixels)
                yield image

        # An error of the model would leave it open as long as anybody keeps the error.
        with closing(read_ahead(numbers, prepare, size_of)) as prepared:
            results = self.segment_prepared(noted(prepared), asked, top_k)
            for image, outputs in zip(images, results, strict=True):
                yield self._prediction(image, pixels.popleft(), outputs, asked)

    @staticmethod
    def _prediction(
        image: ImageLike, pixels: np.ndarray, outputs: dict[str, Tensor], asked: AskedClasses
    ) -> Prediction:
        file = str(image) if isinstance(image, (str, Path)) else ""
        return Prediction(outputs, pixels, asked.shown, file)

    def _prepared(self, image: ImageLike, name: str) -> PreparedImage:
        """With its pixels; messages say its path, too, which is enough for a single one."""
        if isinstance(image, (str, Path)):
            name = str(image) if name == "image" else f"{name}: {image}"
        return self.preparer(image, name, keep_pixels=True)

    def _resolved(self, source: VocabularyLike) -> Vocabulary:
        vocabulary = resolve_seen(
            self._named(source),
            self.model.train_vocabulary,
            self.cfg.MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES,
        )
        return vocabulary.match_colors(self._trained)

    def _named(self, source: VocabularyLike) -> Vocabulary:
        """The vocabulary that is meant; its partition is open unless somebody set it."""
        if isinstance(source, Vocabulary):
            return source
        if isinstance(source, str) and source in self.dataset_names:
            return self._protocol.asked(source)
        if isinstance(source, (str, Path)):
            if Path(source).suffix != ".json":
                raise VocabularyError(
                    f"vocabulary: found the text {str(source)!r}, expected a list of class names, "
                    "a registered dataset or the path of a vocabulary json; put a name in [ ]"
                )
            # A split in the json says nothing about this model's training.
            return replace(Vocabulary.from_json(source), seen=None, split="")
        return Vocabulary.from_names(source)
