#!/usr/bin/env python
"""Write predictions as files of COCO, labelme, CVAT or Label Studio.

tagclip labels export output/run/inference/my_val/predictions \\
    --to cvat --output out/cvat
tagclip labels export out/demo --images photos --vocab-file words.txt \\
    --to labelme --output out/labelme

The predictions are those of an evaluation (TEST.SAVE_PREDICTIONS png or json),
or label files with the ids of a class list, such as those of tagclip segment
--save-labels: NAME_labels.png or NAME.png for each image of --images. Pixels
without a class are in no region. docs/other_tools.md tells more.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tagclip.errors import ConfigError
from tagclip.utils.cli import check_output, run_tool, writing
from tagclip.utils.files import remove_leftovers
from tagclip.utils.run_lock import RunLock
from tagclip.utils.text import listed, utf8_text
from tagclip.utils.tool_parser import ToolParser, add_vocabulary_options

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    import numpy as np

    from tagclip.data.formats.labelled_image import LabelledImage
    from tagclip.evaluation.saved_folder import ImageName
    from tagclip.structures.vocabulary import Vocabulary

logger = logging.getLogger("tagclip.export")
# Behind the name of an image where its picture lies beside its label.
_MARK = "_labels"
# What is written below --output; for labelme, besides, a json per image.
FILES = {
    "coco": ("annotations.json",),
    "labelme": ("labels.txt",),
    "cvat": ("annotations.xml",),
    "label-studio": ("tasks.json", "label_config.xml"),
}
# They know an image by its name in UTF-8 alone; a json can say any.
_IN_UTF8 = ("cvat", "label-studio")


class Predictions:
    """Predictions of several images, read one by one."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        images: Sequence[str],
        read: Callable[[str], np.ndarray],
        name: str,
    ) -> None:
        """Read nothing yet.

        Args:
            vocabulary: the classes.
            images: files.
            read: image -> (H, W) indices of classes, negative for none.
            name: of the progress bar.
        """
        from tagclip.evaluation.saved_folder import image_names

        self.vocabulary, self._read, self._title = vocabulary, read, name
        self.names = image_names(images)

    def __iter__(self) -> Iterator[LabelledImage]:
        from tqdm import tqdm

        from tagclip.data.formats.labelled_image import LabelledImage

        for image in tqdm(self.names, desc=self._title, unit="image", disable=None):
            name = self.names[image]
            yield LabelledImage(name.file, name.stem, Path(image), self._read(image))


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    # argparse would not break the line of the class lists.
    parser = ToolParser(__doc__, usage="%(prog)s FOLDER --to TOOL --output FOLDER [options]")
    add = parser.add_argument
    add("predictions", type=Path, metavar="FOLDER", help="of an evaluation, or of label files")
    add("--to", choices=FILES, required=True, help="what reads them")
    add("--output", type=Path, required=True, metavar="FOLDER", help="for the files")
    add("--images", type=Path, metavar="FOLDER", help="with label files: their images")
    add_vocabulary_options(parser)
    add(
        "--shapes", choices=("polygons", "masks"),
        help="what a region is (default: polygons; with coco masks, as RLE)",
    )  # fmt: skip
    add("--image-url", metavar="PREFIX", help="label-studio: stands before the file of an image")
    add("--overwrite", action="store_true", help="replace files of these names")
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if parsed.to == "coco" and parsed.shapes == "polygons":
        parser.error("--shapes: coco takes masks")
    if parsed.image_url is not None and parsed.to != "label-studio":
        parser.error("--image-url: only label-studio takes it")
    return parsed


def main(args: argparse.Namespace) -> None:
    """Write the files.

    Raises:
        TagCLIPError: the predictions are not complete or do not fit their images or classes, or
            the files cannot be written.
    """
    from tagclip.scoring.predictions import is_saved_folder

    is_evaluation = is_saved_folder(args.predictions)
    found = read_evaluation(args) if is_evaluation else read_label_files(args)
    if args.to in _IN_UTF8:
        _check_utf8(found.names, args.to)
    names = [f"{name.stem}.json" for name in found.names.values()] * (args.to == "labelme")
    check_output("--output", args.output, is_folder=True)
    there = [name for name in (*FILES[args.to], *names) if (args.output / name).exists()]
    if there and not args.overwrite:
        raise ConfigError(
            f"--output {args.output}: found {listed(there, 3)}, expected none of these files; "
            "choose another folder, or replace them with --overwrite"
        )
    with writing("--output", args.output), RunLock(args.output, "--output"):
        for folder in {args.output, *((args.output / name).parent for name in names)}:
            remove_leftovers(folder, "*")
        written = writer(args)(args.output, found, found.vocabulary)
    print(f"{len(found.names)} images written: {', '.join(map(str, written))}")
    if args.to == "coco" and any(entry.id == 0 for entry in found.vocabulary.classes):
        print("category_id is the class's id plus 1: to some tools category 0 is no class")


def _check_utf8(names: Mapping[str, ImageName], tool: str) -> None:
    """Refuse images that the files of a tool cannot name."""
    for image, name in names.items():
        if (shown := utf8_text(name.file)) != name.file:
            raise ConfigError(
                f"{utf8_text(image)}: found the name {shown}, expected one in UTF-8, for {tool} "
                "knows no other; rename the image and its label file"
            )


def writer(args: argparse.Namespace) -> Callable[..., list[Path]]:
    """The function that writes the format of --to."""
    shapes = args.shapes or "polygons"
    if args.to == "coco":
        from tagclip.evaluation.coco_json import write_coco

        return write_coco
    if args.to == "labelme":
        from tagclip.data.formats.labelme_out import write_labelme

        return partial(write_labelme, shapes=shapes)
    if args.to == "cvat":
        from tagclip.data.formats.cvat_out import write_cvat

        return partial(write_cvat, shapes=shapes)
    from tagclip.data.formats.label_studio_out import IMAGE_URL, write_label_studio

    url = IMAGE_URL if args.image_url is None else args.image_url
    return partial(write_label_studio, shapes=shapes, image_url=url)


def read_evaluation(args: argparse.Namespace) -> Predictions:
    """Open ``predictions/`` of an evaluation.

    Raises:
        TagCLIPError: the folder is damaged, or its dataset is not here.
    """
    from detectron2.data import DatasetCatalog

    from tagclip.data import Protocol
    from tagclip.evaluation.results import CONFIG
    from tagclip.evaluation.run_folder import run_config
    from tagclip.evaluation.saved_predictions import SavedPredictions
    from tagclip.projects import PROJECT_NAMES, import_projects
    from tagclip.structures.vocabulary import Vocabulary
    from tagclip.utils.untrusted import load_json

    if any((args.images, args.vocab, args.vocab_file, args.vocab_from_dataset, args.dedup)):
        raise ConfigError(
            f"{args.predictions}: found the predictions of an evaluation, which knows its images "
            "and classes; leave out --images, --vocab... and --dedup"
        )
    index = args.predictions / "index.json"
    with SavedPredictions.kind.reading(index):
        dataset = str(load_json(index.read_text(encoding="utf-8"))["dataset"])
    # OUTPUT_DIR/inference/DATASET/predictions
    run = Path(os.path.abspath(args.predictions)).parents[2]
    if (run / CONFIG).is_file():
        vocabulary = Protocol(run_config(run, dataset)).asked(dataset)
    else:
        import_projects(PROJECT_NAMES)
        vocabulary = Vocabulary.from_metadata(dataset)
    images = [sample["file_name"] for sample in DatasetCatalog.get(dataset)]
    saved = SavedPredictions.open(args.predictions, vocabulary, images)
    evaluated = saved.evaluated(images)
    known = set(evaluated)
    missing = [image for image in images if image not in known]
    _warn_of_missing(args.predictions, missing, len(images))
    return Predictions(vocabulary, evaluated, lambda image: saved.read(image)[0], dataset)


def read_label_files(args: argparse.Namespace) -> Predictions:
    """Pair the label files of a folder with their images.

    Raises:
        TagCLIPError: an option is missing or names other classes than those of the files, a label
            file has no image of its own, or is of another image.
    """
    from tagclip.data import read_indices
    from tagclip.data.datasets.walk import files_below
    from tagclip.data.image_io import image_size
    from tagclip.data.label_notes import refuse_other_words
    from tagclip.demo.image_note import refuse_foreign
    from tagclip.demo.media import find_images

    if not args.predictions.is_dir():
        raise ConfigError(f"{args.predictions}: found no such folder; mend the path")
    vocabulary = _own_vocabulary(args.predictions, asked_vocabulary(args))
    if args.images is None or vocabulary is None:
        raise ConfigError(
            f"{args.predictions}: found no index.json of an evaluation, expected one, or --images "
            "and --vocab, --vocab-file or --vocab-from-dataset, which say what the label files are"
        )
    files = list(files_below(args.predictions))
    # By their names with the suffix in small letters.
    pngs = {file.with_suffix(".png"): file for file in files if file.suffix.lower() == ".png"}
    suffix = f"{_MARK}.png" if any(name.name.endswith(f"{_MARK}.png") for name in pngs) else ".png"
    pairs = find_images([str(args.images)], args.predictions, "--images", "FOLDER")
    wanted = {image: picture.with_name(picture.stem + suffix) for image, picture in pairs}
    labels = {str(image): pngs[label] for image, label in wanted.items() if label in pngs}
    missing = {picture.with_suffix(""): i for i, picture in pairs if str(i) not in labels}
    lonely = {file for name, file in pngs.items() if name.name.endswith(suffix)}
    lonely -= set(labels.values())
    _refuse_shared(wanted, lonely, suffix)
    remedy = _other_kinds(files, missing)
    if lonely or not labels:
        names = listed(sorted(map(str, lonely)), 3)
        found = f"{names} without an image" if lonely else "no label file of an image"
        raise ConfigError(
            f"{args.predictions}: found {found} below {args.images}, expected NAME{suffix} for an "
            f"image NAME{remedy or '; name the folder that was segmented'}"
        )
    refuse_other_words(labels.values(), vocabulary.value_names)
    refuse_foreign(labels)
    _warn_of_missing(args.predictions, list(map(str, missing.values())), len(pairs), remedy)

    def read(image: str) -> np.ndarray:
        indices = read_indices(labels[image], vocabulary, image_size(image), image=image)
        indices = indices.astype("int32")
        indices[indices == vocabulary.ignore_index] = -1
        return indices

    return Predictions(vocabulary, list(labels), read, args.predictions.name)


def _refuse_shared(wanted: Mapping[Path, Path], lonely: Set[Path], suffix: str) -> None:
    """Refuse a label file of a name that several images share: it may be of any of them."""
    sharing: dict[Path, list[Path]] = {}
    for image, label in wanted.items():
        sharing.setdefault(label.with_name(image.stem + suffix), []).append(image)
    for label in sorted(lonely):
        if len(alike := sharing.get(label.with_suffix(".png"), [])) > 1:
            names = listed([image.name for image in alike], 3)
            labels = listed([wanted[image].name for image in alike], 3)
            raise ConfigError(
                f"{label}: found {len(alike)} images of this name, {names}, expected a label file "
                f"of each, {labels}; rename it, or move the images that it is not of"
            )


def _other_kinds(files: Sequence[Path], missing: Container[Path]) -> str:
    """What to do about files that are no PNG where a label is missing; "" if there are none.

    Args:
        files: of the folder of label files.
        missing: labels there, without suffix.
    """
    from tagclip.data.image_io import IMAGE_SUFFIXES

    found = [
        file.name
        for file in sorted(files)
        if file.suffix.lower() in IMAGE_SUFFIXES - {".png"}
        and file.with_name(file.stem.removesuffix(_MARK)) in missing
    ]
    return f"; not read: {listed(found, 3)}; save such label files as PNG" if found else ""


def _warn_of_missing(folder: Path, missing: Sequence[str], count: int, remedy: str = "") -> None:
    if missing:
        logger.warning(
            "%s: found no labels of %d of %d images, such as %s; they are left out%s",
            folder, len(missing), count, missing[0], remedy,
        )  # fmt: skip


def _own_vocabulary(folder: Path, asked: Vocabulary | None) -> Vocabulary | None:
    """The list that labels convert and bulk-read write beside their files, or else ``asked``.

    Raises:
        ConfigError: another one is asked for.
    """
    from tagclip.data.label_notes import OtherWords
    from tagclip.structures.vocabulary import Vocabulary

    path = folder / "vocabulary.json"
    if not path.is_file():
        return asked
    own = Vocabulary.from_json(path)
    if asked is None:
        return own
    # A name may stand for more values than the one that is written.
    ids, asked_ids = ({e.id: e.name for e in each.classes} for each in (own, asked))
    if other := OtherWords(ids, asked.value_names) or OtherWords(asked_ids, own.value_names):
        raise ConfigError(
            f"{path}: found the list of what the label files there hold, with other ids or names "
            f"than --vocab..., such as {other}, expected the same; leave that option out"
        )
    return own


def asked_vocabulary(args: argparse.Namespace) -> Vocabulary | None:
    """The classes that the options name; ids of bare names are 0 to K-1, as in the demo."""
    from tagclip.projects import PROJECT_NAMES, import_projects
    from tagclip.structures.vocabulary import Vocabulary
    from tagclip.structures.vocabulary_words import read_asked

    import_projects(PROJECT_NAMES)
    asked = read_asked(args)
    if asked is None or not isinstance(asked, str):
        return None if asked is None else Vocabulary.from_names(asked)
    is_json = Path(asked).suffix == ".json"
    return Vocabulary.from_json(asked) if is_json else Vocabulary.from_metadata(asked)


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
