#!/usr/bin/env python
"""Make label files of class ids from masks or annotations of other tools.

tagclip labels convert masks --scan > classes.csv   # fill in names, then
tagclip labels convert masks --classes classes.csv --output labels
tagclip labels convert masks --classes labelmap.txt --output labels
tagclip labels convert cracks --threshold 128 --output labels
tagclip labels convert coco.json --from coco --images images --output labels

Writes PNGs of 8 bits with the colours of the classes (of 16 bits where ids need
them), index.json with what was converted, and vocabulary.json. Files that are
there already, with the same labels, are kept: an interrupted run goes on where
it stopped. So is a vocabulary.json by which all labels mean the same.
docs/own_data.md tells more.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from tagclip.data.formats import READERS, reader
from tagclip.errors import ConfigError, DatasetError, VocabularyError
from tagclip.utils.cli import check_output, run_tool, writing
from tagclip.utils.files import files_atomic, remove_leftovers
from tagclip.utils.run_lock import RunLock
from tagclip.utils.stopping import explained
from tagclip.utils.text import counted, did_you_mean, format_csv, listed, one_line
from tagclip.utils.tool_parser import MOST_PROCESSES, NumberIn, ToolParser

if TYPE_CHECKING:
    from tagclip.data.class_tables import ClassTable
    from tagclip.data.formats.annotation import AnnotatedImage
    from tagclip.data.label_colors import Pixel
    from tagclip.data.label_conversion import Conversion, ImageToPaint, MaskFile, Painting
    from tagclip.data.label_notes import OtherWords
    from tagclip.structures.vocabulary import Vocabulary

_EXTENSIONS = {".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jpg", ".jpeg"}
_LOSSY = (".jpg", ".jpeg")
# Class lists as other tools call them, beside the masks or above.
_CLASS_FILES = ("vocabulary.json", "labelmap.txt", "class_dict.csv", "label_colors.txt")
# What the summary says of a class list that was there.
_FATES = {
    "new": "",
    "same": "",
    "kept": "; vocabulary.json, by which they mean the same, stays as it is",
    "extended": "; vocabulary.json stays and has got new classes",
    "replaced": "; vocabulary.json is replaced",
}
# Rows that --scan prints; photos have more.
_ROWS = 256


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument(
        "source", metavar="SOURCE", type=Path, help="folder of masks; with --from, the export"
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="folder of the label files")
    parser.add_argument(
        "--from", dest="form", metavar="TOOL", choices=READERS, help=", ".join(READERS)
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        type=Path,
        help="with --from: their folder, where the export is elsewhere",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        type=Path,
        help="names, ids, colours: vocabulary json, csv, mmsegmentation's json or py, labelmap.txt "
        f"or labels.py (default: {', '.join(_CLASS_FILES)} in the folder of masks or above)",
    )
    parser.add_argument("--dataset", metavar="NAME", help="the classes of a registered dataset")
    parser.add_argument(
        "--labels",
        choices=("ids", "colors"),
        help="what the pixels are (default: as the vocabulary json says, else judged by the file)",
    )
    parser.add_argument(
        "--ids", metavar="FILE", type=Path, help="csv value,id: what the values in masks become"
    )
    parser.add_argument(
        "--threshold",
        type=NumberIn(int, 1, 65535),
        help="masks of two values: this and brighter is the second class",
    )
    parser.add_argument(
        "--unknown",
        choices=("error", "ignore"),
        default="error",
        help="colours, values and names that no class has",
    )
    parser.add_argument(
        "--unlabelled",
        metavar="NAME",
        help="with --from: class of pixels without annotation, or ignore (default: background if "
        "there is such a class, else ignore)",
    )
    parser.add_argument("--scan", action="store_true", help="print what occurs in the masks as csv")
    parser.add_argument("--overwrite", action="store_true", help="write over other label files")
    parser.add_argument(
        "--workers",
        type=NumberIn(int, 0, MOST_PROCESSES),
        default=min(8, os.cpu_count() or 1),
        help="processes",
    )
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if bool(parsed.output) == parsed.scan:
        parser.error("expected either --output or --scan")
    if parsed.classes and parsed.dataset:
        parser.error("expected --classes or --dataset, not both")
    if parsed.scan:
        unread = ("labels", "ids", "threshold", "unknown", "overwrite")
        if given := parser.given(args, *unread):
            parser.error(f"{given[0]}: does nothing with --scan, leave it out")
    for option in (
        ("scan", "labels", "ids", "threshold") if parsed.form else ("images", "unlabelled")
    ):
        if getattr(parsed, option) not in (None, False):
            parser.error(f"--{option}: not {'with' if parsed.form else 'without'} --from")
    if (parsed.ids or parsed.labels) and parsed.threshold is not None:
        parser.error("expected --threshold without --ids and --labels")
    if parsed.ids and parsed.labels == "colors":
        parser.error("expected --ids or --labels colors, not both")
    return parsed


def main(args: argparse.Namespace) -> None:
    """Scan or convert.

    Raises:
        ConfigError: an option does not make sense.
        DatasetError: a file is missing or damaged, or holds what no class has.
        VocabularyError: a class list contradicts itself.
    """
    if args.scan:
        scan(args)
        return
    check_output("--output", args.output, is_folder=True)
    if args.form:
        convert_annotations(args)
    else:
        convert_masks(args)


def scan(args: argparse.Namespace) -> None:
    """Print the colours or values of all masks, those of known classes with their names."""
    from tagclip.data.datasets.walk import map_files
    from tagclip.data.label_conversion import count_mask

    files = find_masks(args.source)
    counts: dict[str, Counter[Pixel]] = {"colors": Counter(), "ids": Counter()}
    for kind, found in map_files(count_mask, files, "scan", args.workers):
        counts[kind].update(found)
    kind = max(counts, key=lambda kind: counts[kind].total())
    table = find_classes(args)
    total = counts[kind].total()
    head = ["name", *("rgb" if kind == "colors" else ["id"]), "pixels", "share"]
    rows = counts[kind].most_common(_ROWS) if kind == "colors" else sorted(counts[kind].items())
    names = _names(table) if table else {}
    print(
        format_csv(
            head,
            (
                [names.get(pixel, ""), *_cells(pixel), number, f"{number / total:.4%}"]
                for pixel, number in rows
                if pixel != "transparent"
            ),
        ),
        end="",
    )
    _note(f"{len(files)} masks, {len(counts[kind])} {'colours' if kind == 'colors' else 'values'}")
    if len(counts[kind]) > _ROWS:
        _note(
            f"the {_ROWS} most frequent are shown; so many mean that photos lie among the masks "
            "(move them to another folder), or that the masks were compressed as JPEG or "
            "interpolated: --threshold serves two classes, else export them again as PNG"
        )
    other = counts["ids" if kind == "colors" else "colors"]
    if other:
        _note(f"{other.total()} pixels lie in masks of the other kind, colours or gray values")
    _note("write the name of each class, or ignore, into the table and pass it with --classes")


def _cells(pixel: Pixel) -> Iterable[int | str]:
    return pixel if isinstance(pixel, tuple) else [pixel]


def _names(table: ClassTable) -> dict[Pixel, str]:
    """Class name by colour and by value."""
    vocabulary = table.vocabulary
    by_id = {value: entry.name for value, entry in vocabulary.by_value.items()}
    by_id |= dict.fromkeys(vocabulary.ignored, "ignore")
    return by_id | {color: by_id[value] for color, value in table.colors.items()}


def find_masks(folder: Path) -> list[Path]:
    """The mask files of a folder and below it, sorted.

    Raises:
        DatasetError: there are none.
    """
    from tagclip.data.datasets.walk import files_below

    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; name the folder of the masks")
    files = sorted(path for path in files_below(folder) if path.suffix.lower() in _EXTENSIONS)
    if not files:
        raise DatasetError(
            f"{folder}: found no mask files, expected {' '.join(sorted(_EXTENSIONS))}; annotations "
            f"are read with --from {', '.join(READERS)}"
        )
    return files


def find_classes(args: argparse.Namespace) -> ClassTable | None:
    """The class list that the options name, or that lies beside the masks; None without one."""
    from detectron2.data import MetadataCatalog

    from tagclip.data.class_tables import read_class_table
    from tagclip.projects import PROJECT_NAMES, import_projects
    from tagclip.structures.vocabulary import Vocabulary

    path = args.classes
    if args.dataset:
        import_projects(PROJECT_NAMES)
        Vocabulary.from_metadata(args.dataset)
        path = MetadataCatalog.get(args.dataset).vocabulary
    elif path is None and not args.form:
        places = [args.source / name for name in _CLASS_FILES]
        places += [args.source.resolve().parent / name for name in _CLASS_FILES]
        path = next((place for place in places if place.is_file()), None)
        if path:
            _note(f"classes: {path}")
    return read_class_table(path) if path else None


def convert_masks(args: argparse.Namespace) -> None:
    """Make label files of mask files."""
    from tagclip.data.label_conversion import Conversion, MaskFile
    from tagclip.data.label_image import value_colors
    from tagclip.data.label_notes import OtherWords, common_words

    table = find_classes(args) or _default_classes(args)
    vocabulary = table.vocabulary
    values = {value: entry.id for value, entry in vocabulary.by_value.items()}
    values |= dict.fromkeys(vocabulary.ignored, vocabulary.ignore_label)
    if args.ids:
        values = _mapped_values(args.ids, vocabulary)
    if args.threshold is not None:
        if len(vocabulary) != 2:
            raise ConfigError(
                f"--threshold: found {len(vocabulary)} classes in {vocabulary.name}, expected two, "
                "that below it first; leave --classes out for background and foreground"
            )
        values = {index: entry.id for index, entry in enumerate(vocabulary.classes)}
    kind = args.labels or ("ids" if args.ids else vocabulary.labels)
    if kind == "colors" and not table.colors:
        raise VocabularyError(
            f"{args.classes or args.dataset or vocabulary.name}: found no colours in this class "
            "list, expected those of masks whose pixels are colours; add them (tagclip labels "
            f"convert {args.source} --scan lists those of the masks), or pass --labels ids if the "
            "pixels are ids"
        )
    conversion = Conversion(
        # Again those of the classes: two may have one.
        (*table.colors.items(), *((e.color, e.id) for e in vocabulary.classes if e.color)),
        values,
        kind,
        args.threshold,
        vocabulary.ignore_label,
        args.unknown == "ignore",
        value_colors(vocabulary),
        args.overwrite,
    )
    _refuse_inside(args)
    masks = find_masks(args.source)
    words = common_words(masks)
    # Else the values are no ids of this list.
    if args.threshold is None and not args.ids and kind != "colors":
        _compare_words(args, OtherWords(words, vocabulary.value_names))
    tasks = [MaskFile(path, _output(args.output, path.relative_to(args.source))) for path in masks]
    _convert(args, conversion, tasks, table)


def _default_classes(args: argparse.Namespace) -> ClassTable:
    from tagclip.data.class_tables import ClassTable
    from tagclip.structures.vocabulary import Vocabulary

    if args.threshold is None:
        raise ConfigError(
            f"--classes: found no class list in {args.source} or above it, expected one; write the "
            f"names into the table of tagclip labels convert {args.source} --scan > classes.csv, "
            "then pass --classes classes.csv"
        )
    return ClassTable.of(Vocabulary.from_names(["background", "foreground"]))


def _mapped_values(path: Path, vocabulary: Vocabulary) -> dict[int, int]:
    """What the csv of --ids says, with the ids checked."""
    from tagclip.data.class_tables import read_value_table

    ids = {entry.id for entry in vocabulary.classes}
    values = {}
    for old, new in read_value_table(path).items():
        if new is not None and new not in ids:
            raise DatasetError(
                f"{path}: found the id {new} for the value {old}, expected one of "
                f"{vocabulary.name}: {listed([str(i) for i in sorted(ids)], 10)}, or ignore"
            )
        values[old] = vocabulary.ignore_label if new is None else new
    return values


def convert_annotations(args: argparse.Namespace) -> None:
    """Make label files of the annotations of another tool."""
    from tagclip.data.class_tables import ClassTable
    from tagclip.data.label_conversion import ImageToPaint, Painting
    from tagclip.data.label_image import value_colors
    from tagclip.structures.vocabulary import Vocabulary
    from tagclip.utils.class_names import name_key

    module, table = reader(args.form), find_classes(args)
    unlabelled = args.unlabelled
    if table is None:
        names = module.class_names(args.source)
        is_listed = unlabelled is None or name_key(unlabelled) in map(name_key, ("ignore", *names))
        if not is_listed:
            _note(
                f"--unlabelled: {args.source} has no class {unlabelled!r}"
                f"{did_you_mean(unlabelled, names)}; it becomes a new one, with id 0"
            )
            names = (unlabelled, *names)
        try:
            # Of the folder one stands in, too, whose path is a dot.
            vocabulary = Vocabulary.from_names(names, name=args.source.resolve().stem)
        except VocabularyError as error:
            raise VocabularyError(
                f"{args.source}: {error}; or pass a class list with --classes"
            ) from error
        table = ClassTable.of(vocabulary)
    vocabulary = table.vocabulary
    ids = {name_key(entry.name): entry.id for entry in vocabulary.classes}
    if unlabelled is None and "background" in ids:
        unlabelled = "background"
    rest = vocabulary.ignore_label
    if unlabelled is not None and name_key(unlabelled) != "ignore":
        if name_key(unlabelled) not in ids:
            raise ConfigError(
                f"--unlabelled: found {unlabelled!r}{did_you_mean(unlabelled, vocabulary.names)}, "
                f"expected ignore or a class of {vocabulary.name}"
            )
        rest = ids[name_key(unlabelled)]
    _refuse_inside(args)
    images: list[AnnotatedImage] = list(module.read(args.source, args.images))
    if not images:
        raise DatasetError(f"{args.source}: found no image, expected some; export it again")
    tasks = [ImageToPaint(image, _output(args.output, Path(image.file))) for image in images]
    if args.images:
        _refuse_missing(args.images, images)
    found = Counter(each.name for image in images for each in image.segments if not each.is_ignored)
    values = {name: ids.get(name_key(name), vocabulary.ignore_label) for name in found}
    unknown = Counter({name: n for name, n in found.items() if name_key(name) not in ids})
    if unknown and args.unknown == "error":
        texts = [
            f"{name!r} ({number} segments){did_you_mean(name, vocabulary.names)}"
            for name, number in unknown.most_common()
        ]
        raise DatasetError(
            f"{args.source}: found classes that {vocabulary.name} lacks: {listed(texts, 5)}; mend "
            "the class list, or pass --unknown ignore"
        )
    painting = Painting(
        values,
        vocabulary.ignore_label,
        rest,
        args.images,
        value_colors(vocabulary),
        args.overwrite,
    )
    _convert(args, painting, tasks, table, unknown)


def _compare_words(args: argparse.Namespace, other: OtherWords) -> None:
    """Refuse a class list that moves the words of our own labels; other words may be new names.

    Raises:
        DatasetError: names some.
    """
    found = f"{args.source}: found label files that were made with other words, {other}"
    if other.has_moved:
        raise DatasetError(
            f"{found}, expected the class list that they were made with; pass it with --classes, "
            "or what each value is to become with --ids, or --labels colors if the list has theirs"
        )
    if other:
        _note(f"{found}; these are taken as new names of the same classes")


def _refuse_inside(args: argparse.Namespace) -> None:
    """Refuse to write where the next run would look for masks, images or json files."""
    folders = [args.source]
    if args.form == "yolo-seg" and args.source.is_file():
        folders.append(args.source.parent)
    if args.form == "yolo-seg" and args.images:
        folders.append(args.images)
    for folder in folders:
        if args.output.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"--output {args.output}: lies in {folder}, which is read, expected a folder "
                "beside it; choose another"
            )


def _refuse_missing(folder: Path, images: Sequence[AnnotatedImage]) -> None:
    missing = [each.file for each in images if not os.path.isfile(folder / each.file)]
    if missing:
        raise DatasetError(
            f"{folder}: lacks {len(missing)} of {len(images)} annotated images: "
            f"{listed(missing, 3)}; name their folder with --images, or leave it out"
        )


def _output(folder: Path, relative: Path) -> Path:
    if relative.is_absolute() or ".." in relative.parts:
        raise DatasetError(
            f"{relative}: found an image outside its folder, expected a path below it; mend the "
            "file names in the annotations"
        )
    try:
        output = folder / relative.with_suffix(".png")
        with suppress(FileNotFoundError, NotADirectoryError):
            output.stat()
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{str(relative)!r}: found this name of an image, which no file can have "
            f"({one_line(error)}), expected a path; mend it in the annotations"
        ) from error
    return output


def _convert(
    args: argparse.Namespace,
    function: Conversion | Painting,
    tasks: Sequence[MaskFile | ImageToPaint],
    table: ClassTable,
    unknown_names: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Run all tasks; write the index and the class list when all have succeeded.

    What --overwrite replaces is replaced then, too: labels of two class lists never lie together.
    Those of an earlier run keep their meaning (`LabelFolder`).
    """
    from tagclip.data.datasets.walk import map_files
    from tagclip.data.label_folder import LabelFolder

    _refuse_equal(args, tasks)
    files = {task.output: task.name for task in tasks}
    beside = LabelFolder(args.output, files, filter(None, (args.source, args.images)))
    with RunLock(args.output, "--output"):
        classes = beside.classes(table, args.overwrite)
        earlier = [] if classes.fate == "replaced" else beside.earlier_runs()
        for folder in {task.output.parent for task in tasks}:
            remove_leftovers(folder, "*.png")
        unknown: Counter[Pixel] = Counter()
        bad, num_new, has_class = 0, 0, False
        ranges = []
        with _staged(args, function, partial(beside.forget, classes)) as function:
            for done in map_files(function, tasks, "convert", args.workers):
                unknown.update(done.unknown)
                bad += bool(done.unknown)
                num_new += done.is_new
                has_class |= done.has_class
                ranges += [done.brightness] if done.brightness else []
            if unknown and args.unknown == "error":
                is_lossy = any(task.name.lower().endswith(_LOSSY) for task in tasks)
                message = _unknown_message(args.source, unknown, bad, len(tasks), table, is_lossy)
                rest = "nothing is replaced" if args.overwrite else "the other masks are converted"
                raise DatasetError(f"{message}; {rest}")
            if not has_class:
                raise DatasetError(_nothing_message(args, len(tasks)))
        counts = list({**unknown, **unknown_names}.items())[:_ROWS]
        run = {
            "from": args.form or "masks",
            "source": str(args.source),
            "unknown": {_text(pixel): number for pixel, number in counts},
        }
        with writing("--output", args.output):
            beside.write(classes, table.vocabulary.ignore_label, run, files, earlier)
    if ranges:
        _warn_of_one_class(args.threshold, ranges, table.vocabulary)
    line = f"{len(tasks)} label files in {args.output}: {num_new} written, "
    line += f"{len(tasks) - num_new} kept"
    if unknown:
        line += f"; {unknown.total()} pixels of {len(unknown)} unknown colours or values ignored"
    if unknown_names:
        line += f"; {sum(unknown_names.values())} segments of {len(unknown_names)} classes ignored"
    print(line + _FATES[classes.fate])


@contextmanager
def _staged(
    args: argparse.Namespace, function: Conversion | Painting, forget: Callable[[], None]
) -> Iterator[Conversion | Painting]:
    """With --overwrite, give a function whose files take their places when all are there."""
    if not args.overwrite:
        yield function
        return
    from tagclip.data.label_conversion import Staging

    remove_leftovers(args.output, "files")
    with (
        explained("the labels that were there stay"),
        writing("--output", args.output),
        files_atomic(args.output) as folder,
    ):
        yield replace(function, staging=Staging(args.output, folder))
        # First: what a kill leaves from here on is not complete.
        forget()


def _warn_of_one_class(
    threshold: int, ranges: Sequence[tuple[int, int]], vocabulary: Vocabulary
) -> None:
    """Say if all pixels lie on one side of the threshold: lowest and highest value by mask."""
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if low < threshold <= high:
        return
    reach = "no pixel reaches" if high < threshold else "all pixels reach"
    value = f"largest value is {high}" if high < threshold else f"smallest value is {low}"
    absent, masks = vocabulary.names[high < threshold], counted(len(ranges), "mask")
    _note(
        f"--threshold {threshold}: {reach} it in {masks}; the {value}, so that {absent!r} is "
        "nowhere; pass a threshold between the two values of the masks (--scan lists them)"
    )


def _refuse_equal(args: argparse.Namespace, tasks: Sequence[MaskFile | ImageToPaint]) -> None:
    first: dict[Path, MaskFile | ImageToPaint] = {}
    for task in tasks:
        other = first.setdefault(task.output, task)
        if other is not task and other.name == task.name:
            raise DatasetError(
                f"{args.source}: found annotations of the image {task.name} twice, expected them "
                "once; keep one of them, or export each subset or task alone and convert it into "
                "a folder of its own"
            )
        if other is not task:
            raise DatasetError(
                f"{task.name}: found the same name as that of {other.name}, expected names of "
                f"their own, for both would become {task.output}; rename one"
            )


def _nothing_message(args: argparse.Namespace, number: int) -> str:
    """What to say where every pixel of all label files is ignored."""
    remedy = "annotate some, or export them again with their annotations"
    if not args.form:
        remedy = "name the folder of masks, or their colours or values with --classes (--scan)"
    what = counted(number, "image" if args.form else "mask")
    return f"{args.source}: found no pixel with a class in {what}, expected some; {remedy}"


def _unknown_message(
    source: Path,
    unknown: Counter[Pixel],
    bad: int,
    files: int,
    table: ClassTable,
    is_lossy: bool,
) -> str:
    name = table.vocabulary.name
    texts = [
        f"{_text(pixel)} ({number} pixels{_nearest(pixel, table)})"
        for pixel, number in unknown.most_common()
    ]
    remedy = "add them to the class list (--scan prints a table to fill in)"
    if unknown.keys() == {"transparent"}:
        remedy = "fill what is transparent with the colour or value of a class, save without alpha"
    elif is_lossy or len(unknown) > _ROWS:
        remedy = (
            "they are photos (move those to another folder), or masks that compression with loss "
            "or resizing has changed: pass --threshold 128 if there are two classes, else export "
            "the masks again as PNG"
        )
    return (
        f"{source}: {bad} of {files} masks have colours or values that the class list {name!r} "
        "lacks: "
        f"{listed(texts, 5, ', ')}; {remedy}, or pass --unknown ignore"
    )


def _text(pixel: Pixel) -> str:
    return f"[{', '.join(map(str, pixel))}]" if isinstance(pixel, tuple) else str(pixel)


def _nearest(pixel: Pixel, table: ClassTable) -> str:
    if not isinstance(pixel, tuple) or not table.colors:
        return ""
    near = min(table.colors, key=lambda c: sum((a - b) ** 2 for a, b in zip(c, pixel, strict=True)))
    return f", nearest {_text(near)} {_names(table)[near]}"


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
