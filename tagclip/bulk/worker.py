"""What one process of a bulk run does: the shards that it is given, with a model of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from tagclip.bulk.manifest import BulkSettings, writing_output
from tagclip.bulk.members import StoredImage, shard_images
from tagclip.bulk.shards import MOST_ERRORS, Shard, ShardResult
from tagclip.data.prepared_image import ImagePreparer, PreparedImage
from tagclip.data.read_ahead import read_ahead
from tagclip.errors import DatasetError
from tagclip.evaluation.segment_rows import RowWriter, failed_row, prediction_row
from tagclip.predictor import AskedClasses, TagCLIPPredictor
from tagclip.utils.text import error_text

__all__ = ["BulkOptions", "BulkWorker", "Item", "prepare_image", "read_items"]

# An image that is ready, or why it is not, with its id.
Item = tuple[str, PreparedImage | DatasetError]


@dataclass(frozen=True)
class BulkOptions:
    """All that a process needs to know; can be pickled.

    Attributes:
        cfg: of a `TagCLIPPredictor`, with the weights' path.
        asked: what it is asked for.
        settings: of the run.
        output: its folder.
        memory: bytes of decoded images, at most, that wait for the model.
        threads: that decode while the model works.
    """

    cfg: CfgNode
    asked: AskedClasses
    settings: BulkSettings
    output: Path
    memory: int = 512 << 20
    threads: int = 1

    @property
    def budget(self) -> int:
        """Half of ``memory``, for images that wait to be asked for; as much for those that wait
        for a full batch."""
        return self.memory // 2


def prepare_image(image: StoredImage, prepare: ImagePreparer) -> Item:
    """Decode and resize one image; what is wrong with it becomes its value."""
    if isinstance(image.content, DatasetError):
        return image.id, image.content
    try:
        return image.id, prepare.attempt(image.content, image.id)
    except Exception as error:
        # Whatever a decoder makes of a damaged file, the other images are none the worse for it.
        return image.id, DatasetError(
            f"{image.id}: cannot be read ({error_text(error)}); replace it, or leave it out"
        )


def read_items(shard: Shard, options: BulkOptions, prepare: ImagePreparer) -> Iterator[Item]:
    """Read the images of a shard ahead of who takes them, within the options' memory.

    Raises:
        DatasetError: see `shard_images`.
    """
    settings = options.settings
    return read_ahead(
        shard_images(shard, settings.column, settings.id_column),
        lambda image: prepare_image(image, prepare),
        lambda image: prepare.nbytes(image.content),
        options.budget,
        options.threads,
    )


class BulkWorker:
    """Segments images into rows."""

    def __init__(self, options: BulkOptions, device: str = "") -> None:
        """Build the model.

        Args:
            options: of the run.
            device: instead of the config's.

        Raises:
            TagCLIPError: weights, config or words are not in order.
        """
        cfg = options.cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
        cfg.freeze()
        self.options = options
        self.predictor = TagCLIPPredictor(cfg)
        self.predictor.asked = options.asked

    def rows(self, items: Iterable[Item]) -> Iterator[dict[str, Any]]:
        """Make the rows of images, in their order (`tagclip.evaluation.segment_rows`)."""
        ids: deque[str] = deque()

        def images() -> Iterator[PreparedImage | DatasetError]:
            for image_id, image in items:
                ids.append(image_id)
                yield image

        vocabulary, labels = self.options.asked.shown, self.options.settings.labels
        for outputs in self.predictor.segment_prepared(images(), budget=self.options.budget):
            image_id = ids.popleft()
            if isinstance(outputs, DatasetError):
                yield failed_row(image_id, str(outputs), labels)
            else:
                yield prediction_row(image_id, outputs, vocabulary, labels)

    def do(self, shard: Shard, report: Callable[[int], None]) -> ShardResult:
        """Make the file of a shard, whole or not at all.

        Args:
            shard: see `plan_shards`.
            report: is told after each image how many there were since the last call.

        Raises:
            DatasetError: see `shard_images`.
            ConfigError: the file cannot be written.
        """
        settings, output = self.options.settings, self.options.output
        path, metadata = output / settings.output_of(shard), settings.metadata_of(shard)
        errors: list[str] = []
        with (
            writing_output(output),
            closing(read_items(shard, self.options, self.predictor.preparer)) as items,
            RowWriter(path, settings.format, settings.labels, metadata) as writer,
        ):
            for row in self.rows(items):
                writer.write(row)
                if row["error"] is not None and len(errors) < MOST_ERRORS:
                    errors.append(row["error"])
                report(1)
        return ShardResult(shard.name, writer.images, writer.failed, tuple(errors))
