#!/usr/bin/env python
"""List the images of a bulk run: by class, by how much is unseen, or what failed.

tagclip bulk-read out/
tagclip bulk-read out/ --sort unseen --limit 100 --csv label_next.csv
tagclip bulk-read out/ --class "green board" --above 0.05 --labels-to labels/
tagclip bulk-read out/ --errors
tagclip bulk-read out/ --dataset my_val --split my_split --figure gain.png

DIR is the --output of tagclip bulk, which may still be running: finished shards
count. An order by unseen begins with the images on which most pixels have
w < 0.5, content that the model takes for unseen. --figure says what the orders
are worth: how many images with unseen classes are among the first, by the
labels of a dataset whose images were segmented.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING

from tagclip.errors import ConfigError, DatasetError
from tagclip.utils.cli import check_output, run_tool, writing
from tagclip.utils.files import write_atomic
from tagclip.utils.text import counted, did_you_mean, format_csv
from tagclip.utils.tool_parser import NumberIn, ToolParser

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    from tagclip.analysis.ranking import ImageSummary
    from tagclip.evaluation.segment_folder import SegmentFolder
    from tagclip.structures.vocabulary import Vocabulary

_SHOWN = 20
_CLASSES_SHOWN = 4
_COLUMNS = ("image_id", "height", "width", "unseen", "other", "score", "classes", "error")
# Options that a figure has no use for.
_OF_LISTS = ("sort", "name", "errors", "limit", "csv", "labels_to")
# Of the images, in the table of the orders.
_FIRST = (5, 10, 20, 50)


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="--output of tagclip bulk")
    add(
        "--sort", choices=("unseen", "other", "score", "id"),
        help="pixels with w < 0.5 or without a class, most first; mean score, least first "
        "(default: order of the input)",
    )  # fmt: skip
    add("--class", dest="name", metavar="NAME", help="only images with this class")
    add(
        "--above",
        type=NumberIn(float, 0, 1),
        default=0.0,
        metavar="SHARE",
        help="on more of the image, 0 to 1",
    )
    add("--errors", action="store_true", help="only images that were not read, and why")
    add(
        "--limit",
        type=NumberIn(int, 1, 10**9),
        metavar="N",
        help=f"images (default: all; printed are {_SHOWN})",
    )
    add("--csv", type=Path, metavar="FILE", help="write the list")
    add("--labels-to", type=Path, metavar="FOLDER", help="write label maps, as index PNGs")
    add("--figure", type=Path, metavar="FILE", help="draw what the orders find, as PNG")
    add("--dataset", default="", metavar="NAME", help="with --figure: whose labels are the truth")
    parser.add_config_file(use="with --figure: whose dataset and split it is")
    add("--split", default="", metavar="NAME", help="with --figure: says what is unseen")
    add(
        "--truth-above", type=NumberIn(float, 0, 1), default=0.0, metavar="SHARE",
        help="with --figure: look for images with more of unseen classes, 0 to 1",
    )  # fmt: skip
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if 1 in (parsed.above, parsed.truth_above):
        parser.error("--above, --truth-above: found 1, expected a share below 1, as 0.05")
    if parsed.above and not parsed.name:
        parser.error("--above: expected --class NAME")
    if parsed.errors and (parsed.name or parsed.labels_to or parsed.sort):
        parser.error("--errors: images that were not read have no classes, labels or order")
    if bool(parsed.figure) != bool(parsed.dataset or parsed.config_file):
        parser.error("--figure: expected with --dataset or --config-file, and these with it")
    if not parsed.figure and (parsed.split or parsed.truth_above):
        parser.error("--split, --truth-above: expected with --figure")
    if parsed.figure and any(getattr(parsed, name) for name in _OF_LISTS):
        parser.error("--figure: shows all orders of all images of the dataset; list in another run")
    return parsed


def main(args: argparse.Namespace) -> None:
    """List, write and draw.

    Raises:
        TagCLIPError: the folder is no bulk run, damaged, or has no such class or order; labels of
            the dataset are missing; or a file cannot be written.
    """
    import tagclip

    tagclip.register()

    from detectron2.utils.logger import setup_logger

    from tagclip.evaluation.segment_folder import SegmentFolder

    setup_logger(name="tagclip")
    check_outputs(args)
    folder = SegmentFolder(args.folder)
    if not folder.files:
        raise DatasetError(f"{args.folder}: found no finished shard, expected one; {folder.remedy}")
    if args.figure:
        draw(args, folder)
        return
    images, total = choose(args, folder)
    print_images(images, total, args)
    if args.csv:
        with writing("--csv", args.csv):
            rows = [image._replace(classes=rounded(image.classes)) for image in images]
            write_atomic(args.csv, format_csv(_COLUMNS, rows))
        print(f"{counted(len(images), 'image')} listed: {args.csv}")
    if args.labels_to:
        write_labels(args, folder, [image.image_id for image in images])


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse what cannot be written, and what belongs to the run.

    Raises:
        ConfigError: as it says.
    """
    from tagclip.bulk.manifest import OWN_NAMES

    run = args.folder.resolve()
    own = [run / name for name in OWN_NAMES]
    for name in ("csv", "labels_to", "figure"):
        if not (path := getattr(args, name)):
            continue
        option, place = f"--{name.replace('_', '-')}", path.resolve()
        check_output(option, path, is_folder=name == "labels_to")
        if place == run or not {place, *place.parents}.isdisjoint(own):
            raise ConfigError(
                f"{option} {path}: found what tagclip bulk wrote into {args.folder}, expected "
                "another place; choose one"
            )


def summaries(folder: SegmentFolder) -> Iterator[ImageSummary]:
    """All images."""
    from tagclip.analysis.ranking import SUMMARY_COLUMNS, image_summary

    return map(image_summary, folder.rows(SUMMARY_COLUMNS))


def choose(args: argparse.Namespace, folder: SegmentFolder) -> tuple[list[ImageSummary], int]:
    """The images that are asked for, in order, and how many there are without --limit."""
    import numpy as np

    from tagclip.analysis.ranking import ranked

    names = folder.vocabulary.names
    if args.name and args.name not in names:
        raise ConfigError(
            f"--class: found {args.name!r}{did_you_mean(args.name, names)}, expected a class of "
            f"{folder.path / 'vocabulary.json'}"
        )
    # As rows have it: 20 % are not more than 20 %.
    total, above = 0, float(np.float32(args.above))
    # What nobody writes is not kept.
    limit = args.limit if args.limit or args.csv or args.labels_to else _SHOWN

    def chosen() -> Iterator[ImageSummary]:
        nonlocal total
        for image in summaries(folder):
            is_there = not args.name or image.classes.get(args.name, 0) > above
            if (image.error is not None) == args.errors and is_there:
                total += 1
                yield image

    if args.sort:
        images = ranked(chosen(), args.sort, limit)
        if args.sort != "id":
            refuse_empty(images, args.sort, folder)
    else:
        stream = chosen()
        images = list(itertools.islice(stream, limit))
        for _ in stream:
            pass
    return images, total


def refuse_empty(images: Sequence[ImageSummary], order: str, folder: SegmentFolder) -> None:
    """Refuse an order by what no image has.

    Raises:
        ConfigError: as it says.
    """
    if images and all(getattr(image, order) is None for image in images):
        why = " (its model has no trusty map)" if order == "unseen" else ""
        raise ConfigError(
            f"--sort {order}: found no image with it in {folder.path}{why}; sort by another"
        )


def print_images(images: Sequence[ImageSummary], total: int, args: argparse.Namespace) -> None:
    """Print the first images as a table."""
    from tabulate import tabulate

    shown = images[: args.limit or _SHOWN]
    if args.errors:
        head, rows = ("image", "error"), [(image.image_id, image.error) for image in shown]
    else:
        head = ("image", "size", "unseen %", "other %", "score", "classes, in %")
        rows = [
            (
                image.image_id,
                f"{image.width}x{image.height}",
                percent(image.unseen),
                percent(image.other),
                "" if image.score is None else f"{image.score:.3f}",
                class_texts(image, args.name),
            )
            for image in shown
        ]
    if rows:
        print(tabulate(rows, head, disable_numparse=True))
    print(counted(total, "image") + (f", {len(shown)} of them above" if len(shown) < total else ""))


def rounded(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares as other numbers of a csv are."""
    return {name: round(share, 4) for name, share in shares.items()}


def percent(share: float | None) -> str:
    """A share as a number of percent, "" for none."""
    return "" if share is None else f"{100 * share:.1f}"


def class_texts(image: ImageSummary, first: str | None) -> str:
    """Its largest classes, the one that was asked for before them."""
    pairs = sorted(image.classes.items(), key=lambda pair: (pair[0] != first, -pair[1]))
    texts = [f"{name} {percent(share)}" for name, share in pairs[:_CLASSES_SHOWN]]
    return ", ".join([*texts, *(["..."] if len(pairs) > len(texts) else [])])


def write_labels(args: argparse.Namespace, folder: SegmentFolder, ids: Sequence[str]) -> None:
    """Write label maps with the ids of the vocabulary, called as the images."""
    from tqdm import tqdm

    from tagclip.data.label_image import label_png

    files = label_files(ids)
    with writing("--labels-to", args.labels_to):
        # What their values mean. First: with it, what an earlier call left is known for label maps.
        words, path = (folder.path / "vocabulary.json").read_bytes(), Path("vocabulary.json")
        known = args.labels_to / path
        if not (known.is_file() and known.read_bytes() == words):
            refuse_files(args.labels_to, [path, *files.values()])
            write_atomic(known, words)
        for image_id in tqdm(ids, desc="Labels", unit="image", disable=None):
            content = label_png(folder.labels(image_id), folder.vocabulary)
            write_atomic(args.labels_to / files[image_id], content)
    print(f"{counted(len(ids), 'label map')} written: {args.labels_to}")


def refuse_files(folder: Path, names: Iterable[PurePath]) -> None:
    """Refuse to replace files that are no label maps of these classes: maybe the photos.

    Raises:
        ConfigError: names the first.
    """
    if there := next((name for name in names if os.path.lexists(folder / name)), None):
        raise ConfigError(
            f"--labels-to {folder}: found {there}, which would be replaced, expected a new "
            "folder, or one with label maps of the same classes; choose another"
        )


def label_files(ids: Iterable[str]) -> dict[str, PurePosixPath]:
    """Paths of label maps below a folder, by image: as the image, or with its suffix where
    another differs in the suffix alone.

    Raises:
        DatasetError: a path would lie elsewhere, two are equal, or one lies below another.
    """
    # Of lists of files: /data/a.jpg.
    paths = {image_id: PurePosixPath(image_id.lstrip("/")) for image_id in ids}
    for image_id, path in paths.items():
        if ".." in path.parts or not path.name:
            raise DatasetError(
                f"--labels-to: found the image {image_id!r}, expected a path without '..'; "
                "run tagclip bulk on a folder that holds all images, or on a tar without such names"
            )
    stems = Counter(path.with_suffix("") for path in paths.values())
    found: dict[str, PurePosixPath] = {}
    for image_id, path in paths.items():
        stem = path.with_suffix("")
        unique = stem if stems[stem] == 1 else path
        found[image_id] = unique.with_name(f"{unique.name}.png")
    if twice := [str(path) for path, n in Counter(found.values()).items() if n > 1]:
        raise DatasetError(f"--labels-to: several images would be {twice[0]}; rename one of them")
    folders = {folder for path in found.values() for folder in path.parents}
    if both := next((path for path in found.values() if path in folders), None):
        raise DatasetError(f"--labels-to: {both} would be a file and a folder; rename an image")
    return found


def find_truth(args: argparse.Namespace) -> tuple[str, Vocabulary]:
    """The dataset of --figure, and its classes with a split.

    Raises:
        ConfigError: it is not the only one, or nothing says what is unseen.
    """
    from tagclip import load_config
    from tagclip.data import Protocol
    from tagclip.projects import PROJECT_NAMES, import_projects
    from tagclip.structures.vocabulary import Vocabulary

    cfg = load_config(args.config_file)
    import_projects(cfg.PROJECTS if args.config_file else PROJECT_NAMES)
    tested = list(cfg.DATASETS.TEST) if args.config_file else []
    dataset = args.dataset or (tested[0] if len(tested) == 1 else "")
    if not dataset:
        raise ConfigError(
            f"{args.config_file}: found {len(tested)} datasets in DATASETS.TEST, expected one; "
            "name it with --dataset"
        )
    if args.config_file and not args.split:
        cfg.DATASETS.TEST = (dataset,)
        vocabulary = Protocol(cfg).dataset(dataset)
    else:
        vocabulary = Vocabulary.from_metadata(dataset, args.split)
    if vocabulary.seen is None or all(vocabulary.seen):
        raise ConfigError(
            f"{dataset}: nothing says which of its classes are unseen; name one of its splits: "
            "--split NAME"
        )
    return dataset, vocabulary


def draw(args: argparse.Namespace, folder: SegmentFolder) -> None:
    """Draw which images with unseen classes come first, and print their numbers.

    Raises:
        TagCLIPError: images of the dataset have no row, or none or all have unseen classes.
    """
    from detectron2.data import DatasetCatalog
    from tabulate import tabulate
    from tqdm import tqdm

    from tagclip.analysis.ranking import GainCurve, draw_gain, ranked, unseen_share
    from tagclip.visualization.class_charts import save_chart

    dataset, vocabulary = find_truth(args)
    labels = {s["file_name"]: s["sem_seg_file_name"] for s in DatasetCatalog.get(dataset)}
    ids = folder.match(labels)
    wanted = {
        ids[file]: unseen_share(path, vocabulary) > args.truth_above
        for file, path in tqdm(labels.items(), desc="Labels", unit="image", disable=None)
    }
    total, targets = len(wanted), sum(wanted.values())
    least = f"{100 * args.truth_above:g} % of " if args.truth_above else ""
    if not 0 < targets < total:
        raise ConfigError(
            f"--figure: {targets} of {total} images of {dataset} have more than "
            f"{100 * args.truth_above:g} % of unseen classes, expected some, but not all; change "
            "--truth-above"
        )
    images = [image for image in summaries(folder) if image.image_id in wanted]
    curves = {}
    for order in ("unseen", "other", "score"):
        # An order by equal values is one by names.
        if len({getattr(image, order) for image in images}) > 1:
            found = [wanted[image.image_id] for image in ranked(images, order)]
            curves[f"--sort {order}"] = GainCurve.of(found)
    if not curves:
        raise ConfigError(
            f"--figure: found equal rows of all images in {folder.path}, expected some to order "
            "by; segment other images"
        )
    title = f"{dataset}, split {vocabulary.split}: {targets} of {total} images have\n"
    title += f"more than {least}unseen classes" if least else "unseen classes"
    with writing("--figure", args.figure):
        save_chart(draw_gain(curves, title), args.figure)
    first = next(iter(curves.values()))
    rows = []
    for share in _FIRST:
        n = round(total * share / 100)
        mean, deviation = (values[n] for values in first.random())
        counts = [curve.found[n] for curve in curves.values()]
        rows.append((f"{share} %", n, *counts, f"{mean:.1f} +- {deviation:.1f}", first.best()[n]))
    print(" ".join(title.split()))
    print(tabulate(rows, ("first", "images", *curves, "random", "best"), disable_numparse=True))
    print(f"Written: {args.figure}")


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
