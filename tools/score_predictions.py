#!/usr/bin/env python
"""Score anybody's predictions as an evaluation scores ours.

tagclip score PREDICTIONS --dataset voc2012_val --classes theirs.txt
tagclip score results.json --config-file mine.yaml --merge highest-score

PREDICTIONS is a folder of label files (PNG, TIFF, BMP, GIF) or arrays (npy,
npz: labels or scores), one per image and called as the images; or a COCO json
of RLE masks; or the predictions folder of an evaluation; or the output of
tagclip bulk. Classes are matched by name. Writes below --output what a run has,
so that compare and visualize results take it: metrics.json and per_class.csv in
inference/DATASET/, a row of results.csv, and report.html with its pictures.
docs/scores.md tells more.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagclip.errors import ConfigError
from tagclip.projects import PROJECT_NAMES, import_projects
from tagclip.scoring import MERGES
from tagclip.scoring.conventions import CONVENTIONS
from tagclip.utils.cli import check_output, run_tool
from tagclip.utils.files import write_atomic
from tagclip.utils.run_lock import RunLock
from tagclip.utils.text import listed
from tagclip.utils.tool_parser import CONFIG_ROOTS, MOST_PROCESSES, NumberIn, ToolParser

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    import numpy as np
    from detectron2.config import CfgNode

    from tagclip.scoring.matching import ClassMatch
    from tagclip.scoring.predictions import PredictedLabels
    from tagclip.structures.vocabulary import Vocabulary

logger = logging.getLogger("tagclip.score")

# Of each form of predictions what it is called, and the options that are read for it.
FORMS = {
    "saved": ("predictions that an evaluation saved", ()),
    "bulk": ("the output of tagclip bulk", ("--extra-classes",)),
    "coco": (
        "a COCO json",
        ("--classes", "--values", "--extra-classes", "--merge", "--background", "--coco-images"),
    ),
    "files": (
        "label files or arrays",
        ("--classes", "--values", "--extra-classes", "--suffix"),
    ),
}
# Of the config, datasets and their split are read, and the projects that register some.
UNREAD = (
    *(root for root in CONFIG_ROOTS if root not in ("DATASETS", "PROJECTS", "CONFIG_NAME")),
    *("DATASETS.TRAIN", "DATASETS.ON_BAD_SAMPLE", "DATASETS.ZERO_SHOT.SETTING"),
    *("DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", "DATASETS.ZERO_SHOT.ALLOW_TRAINED_UNSEEN"),
    *("DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES", "DATASETS.PROPOSAL_FILES_TRAIN"),
    *("DATASETS.PROPOSAL_FILES_TEST", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN"),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
)


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument(
        "predictions", metavar="PREDICTIONS", type=Path, help="folder, or a COCO json"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", default="", help="registered dataset (default: of the config)"
    )
    parser.add_config_file(use="whose dataset and split it is")
    parser.add_argument(
        "--split", metavar="NAME", default="", help="split of the class list (default: its own)"
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        type=Path,
        help="the predictor's class list: names line by line, json or csv (default: the dataset's)",
    )
    parser.add_argument(
        "--values",
        choices=("ids", "indices"),
        default="ids",
        help="what values are: ids of the class list, or positions in it",
    )
    parser.add_argument(
        "--extra-classes",
        choices=("refuse", "other"),
        default="refuse",
        help="classes that the dataset lacks; other: their pixels are of no class",
    )
    parser.add_argument(
        "--suffix", metavar="TEXT", default="", help="_pred where 001.jpg has 001_pred.png"
    )
    parser.add_argument(
        "--merge",
        choices=MERGES,
        default="highest-score",
        help="which of several COCO masks a pixel belongs to",
    )
    parser.add_argument(
        "--background", metavar="NAME", default="", help="class of pixels without a COCO mask"
    )
    parser.add_argument(
        "--coco-images", metavar="FILE", type=Path, help="COCO json that says whose image_id it is"
    )
    parser.add_argument(
        "--convention",
        choices=CONVENTIONS,
        metavar="NAME",
        action="append",
        default=[],
        help=f"mean IoU by this definition, too: {', '.join(CONVENTIONS)}; may be given several "
        "times",
    )
    parser.add_argument("--boundary", action="store_true", help="count boundary IoU as well")
    parser.add_argument(
        "--num", type=NumberIn(int, 1, 1000000), default=6, help="worst and best images"
    )
    parser.add_argument("--output", type=Path, default=Path("output/score"), help="folder")
    parser.add_argument(
        "--workers",
        type=NumberIn(int, 0, MOST_PROCESSES),
        default=min(8, os.cpu_count() or 1),
        help="processes",
    )
    parser.add_config_keys(
        unread=UNREAD, same={"dataset": "DATASETS.TEST", "split": "DATASETS.ZERO_SHOT.SPLIT"}
    )
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if not (parsed.dataset or parsed.config_file):
        parser.error("expected --dataset or --config-file")
    of_forms = {option for _, options in FORMS.values() for option in options}
    parsed.given = parser.given(args, *(name[2:].replace("-", "_") for name in of_forms))
    return parsed


def main(args: argparse.Namespace) -> None:
    """Score.

    Raises:
        TagCLIPError: the predictions are not complete, damaged, or of other classes or images.
    """
    from detectron2.data import DatasetCatalog
    from detectron2.utils.logger import setup_logger

    from tagclip.data import Protocol
    from tagclip.evaluation.content import evaluation_content, log_content
    from tagclip.evaluation.results import CONFIG, write_result
    from tagclip.evaluation.saved_predictions import PredictionWriter
    from tagclip.scoring.conventions import CONVENTIONS
    from tagclip.scoring.scorer import Scorer

    setup_logger(name="tagclip")
    check_output("--output", args.output, is_folder=True)
    cfg, dataset = find_dataset(args)
    vocabulary = Protocol(cfg).dataset(dataset)
    samples = DatasetCatalog.get(dataset)
    predictions, match, how = open_predictions(args, dataset, vocabulary, samples)
    folder = args.output / "inference" / dataset
    check_free(args, folder)
    with RunLock(args.output, "--output"):
        writer = PredictionWriter(
            folder / PredictionWriter.kind.name,
            [sample["file_name"] for sample in samples],
            distributed=False,
            form="png",
            vocabulary=vocabulary,
        )
        scorer = Scorer(vocabulary, predictions, writer, args.boundary, args.convention)
        counts = scorer.score(samples, args.workers)
        run = record(args, how, match)
        content = evaluation_content(dataset, vocabulary, counts.confusion, counts.images, run)
        content["conventions"] = counts.convention_metrics()
        if counts.boundary is not None:
            add_boundary(content, counts.boundary.per_class(), vocabulary)
        log_content(content, vocabulary, len(samples))
        for name, means in content["conventions"].items():
            texts = [f"{key} {value:.2f}" for key, value in means.items()]
            logger.info("%s, as %s: %s", dataset, CONVENTIONS[name].source, ", ".join(texts))
        for line in notes(match, content):
            logger.warning("%s: %s", dataset, line)
        write_result(content, folder, args.output / "results.csv", cfg.dump())
        writer.finish(content)
        try:
            # Last: without it, nothing here is a run.
            write_atomic(args.output / CONFIG, cfg.dump())
            logger.info("written: %s", draw_report(args, content, match))
        except OSError as error:
            raise ConfigError(
                f"{error.filename or args.output}: cannot be written ({error.strerror}); free "
                "space, or choose another folder as --output"
            ) from error


def check_free(args: argparse.Namespace, folder: Path) -> None:
    """Refuse an output that would replace the predictions, or a run.

    Raises:
        ConfigError: ``folder``, which the results go into, holds the predictions, they hold the
            output, or the output is not that of an earlier score.
    """
    from tagclip.evaluation.results import CONFIG
    from tagclip.evaluation.run_folder import is_score, run_results

    read, output = args.predictions.resolve(), args.output.resolve()
    if folder.resolve() in (read, *read.parents) or read in (output, *output.parents):
        raise ConfigError(
            f"--output {args.output}: would write into or over the predictions "
            f"{args.predictions}; choose another folder"
        )
    results = run_results(output)
    are_scores = all(map(is_score, results))
    if (output / CONFIG).is_file() and not (results and are_scores):
        raise ConfigError(
            f"--output {args.output}: found a run that is no score, whose config and results "
            "would be replaced; choose another folder"
        )


def find_dataset(args: argparse.Namespace) -> tuple[CfgNode, str]:
    """The config with which the output is a run, and the dataset.

    Raises:
        ConfigError: the config has several datasets to test on, and none is named.
    """
    from tagclip import load_config
    from tagclip.data import Protocol
    from tagclip.structures.vocabulary import Vocabulary

    cfg = load_config(args.config_file, args.opts)
    import_projects(cfg.PROJECTS if args.config_file else PROJECT_NAMES)
    tested = list(cfg.DATASETS.TEST)
    dataset = args.dataset or (tested[0] if len(tested) == 1 else "")
    if not dataset:
        raise ConfigError(
            f"{args.config_file}: found {len(tested)} datasets in DATASETS.TEST "
            f"({', '.join(tested) or 'none'}), expected one; name it with --dataset"
        )
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (dataset,), str(args.output)
    cfg.DATASETS.ZERO_SHOT.SPLIT = args.split or cfg.DATASETS.ZERO_SHOT.SPLIT
    if not args.config_file:
        cfg.PROJECTS = list(PROJECT_NAMES)
    vocabulary = Protocol(cfg).dataset(dataset)
    if args.split:
        vocabulary = Vocabulary.from_metadata(dataset, args.split)
    # Whatever trained what made the predictions: the output shows the dataset by its split.
    has_split = vocabulary.seen is not None
    cfg.DATASETS.TRAIN, cfg.DATASETS.ZERO_SHOT.SPLIT = (dataset,), vocabulary.split
    cfg.DATASETS.ZERO_SHOT.SETTING = "inductive" if has_split else "supervised"
    return cfg, dataset


def open_predictions(
    args: argparse.Namespace,
    dataset: str,
    vocabulary: Vocabulary,
    samples: Sequence[dict[str, Any]],
) -> tuple[PredictedLabels, ClassMatch, dict[str, Any]]:
    """Find the predictions of all images before the first is read.

    Returns:
        The predictions, what their values mean, and what is recorded about how they were read.

    Raises:
        ConfigError: an option is given that this form of predictions does not read.
        TagCLIPError: see `main`.
    """
    from tagclip.data.class_tables import read_class_table
    from tagclip.data.label_notes import refuse_other_words
    from tagclip.evaluation.saved_predictions import SavedPredictions
    from tagclip.evaluation.segment_folder import SegmentFolder, is_segment_folder
    from tagclip.scoring.matching import ClassMatch, match_classes
    from tagclip.scoring.predictions import (
        BulkPredictions,
        CocoResults,
        OwnPredictions,
        PredictionFiles,
        coco_names,
        coco_rows,
        find_files,
        find_saved,
        is_part_of_saved,
        read_coco,
        refuse_missing,
    )
    from tagclip.structures.vocabulary_class import name_flags

    path, images = args.predictions, {s["file_name"]: s["image_id"] for s in samples}
    if ours := find_saved(path, args.classes):
        refuse_unread(args, "saved")
        own = {index: index for index in range(len(vocabulary))}
        saved = SavedPredictions.open(ours, vocabulary, images, dataset)
        advice = f"evaluate again with {saved.kind.save}"
        refuse_missing(ours, images, filter(saved.has, images), advice)
        return OwnPredictions(saved), ClassMatch(own), {"form": saved.index["format"]}
    if is_segment_folder(path):
        refuse_unread(args, "bulk")
        folder = SegmentFolder(path)
        names = dict(enumerate(folder.vocabulary.names))
        match = match_classes(
            names, vocabulary, str(path / "vocabulary.json"), args.extra_classes == "other"
        )
        how = {"form": "bulk", "fingerprints": folder.manifest.get("fingerprints")}
        return BulkPredictions(folder, folder.match(images), match), match, how
    if is_part_of_saved(path):
        SavedPredictions.check_dataset(path.resolve().parent, dataset, images)
    # Where labels convert wrote the files, the list of their values lies beside them.
    if not args.classes and (path / "vocabulary.json").is_file():
        args.classes = path / "vocabulary.json"
    allow_extra, where = args.extra_classes == "other", str(args.classes or path)
    theirs = read_class_table(args.classes).vocabulary if args.classes else vocabulary
    names = theirs.value_names
    content = read_coco(path) if path.is_file() else None
    if not args.classes:
        names = coco_names(content) or names
    if args.values == "indices":
        names = dict(enumerate(dict.fromkeys(names.values())))
    if content is not None:
        refuse_unread(args, "coco")
        match = match_classes(names, vocabulary, where, allow_extra)
        background = -1
        if args.background:
            flags = name_flags([args.background], vocabulary.names, "--background")
            background = flags.index(True)
        rows = coco_rows(content, path, images, args.coco_images)
        how = {
            "form": "coco",
            "values": args.values,
            "merge": args.merge,
            "background": args.background or None,
            "images_without_masks": len(images) - len(rows),
        }
        return CocoResults(path, rows, match, args.merge, background), match, how
    refuse_unread(args, "files")
    match = match_classes(names, vocabulary, where, allow_extra)
    channels = tuple(names)
    if args.values == "ids":
        channels = tuple(entry.ids[0] for entry in theirs.classes)
        none = dict.fromkeys(theirs.ignored, -1)
        match = ClassMatch({**none, **match.indices}, match.missing, match.extra)
    files = find_files(path, images, args.suffix)
    refuse_other_words(files.values(), names)
    how = {"form": "files", "values": args.values}
    return PredictionFiles(files, match, channels), match, how


def refuse_unread(args: argparse.Namespace, form: str) -> None:
    """Refuse an option that does nothing for a form of predictions, a key of `FORMS`.

    Raises:
        ConfigError: there is one.
    """
    noun, read = FORMS[form]
    unread = [option for option in args.given if option not in read]
    # What is not there has no form, which its reader says.
    if unread and args.predictions.exists():
        readers = " or ".join(of for of, options in FORMS.values() if unread[0] in options)
        raise ConfigError(
            f"{unread[0]}: found {noun} in {args.predictions}, expected {readers}, for which alone "
            f"it is read; leave {unread[0]} out"
        )


def record(args: argparse.Namespace, how: dict[str, Any], match: ClassMatch) -> dict[str, Any]:
    """What the results say about where the predictions come from."""
    name = args.predictions.name or str(args.predictions)
    return {
        "protocol": f"predictions read from {name}; ancestry unknown: nobody has recorded which "
        "masks trained what made them",
        "zero_shot": None,
        "trained_unseen": [],
        "predictions": name,
        "class_list": args.classes.name if args.classes else None,
        **how,
        "missing_classes": list(match.missing),
        "extra_classes": list(match.extra),
    }


def add_boundary(content: dict[str, Any], iou: np.ndarray, vocabulary: Vocabulary) -> None:
    """Put boundary IoUs, (K,) percent, into the content: of the classes, and their means."""
    from tagclip.evaluation.metrics import mean_ious

    for row, value in zip(content["classes"], iou.tolist(), strict=True):
        row["boundary-IoU"] = value
    averaged, seen = content["classes_averaged"], vocabulary.seen
    for name, value in mean_ious(iou, None if seen is None else vocabulary.seen_mask).items():
        content["metrics"][f"boundary-{name}"] = value
        # Each class with pixels has some at its boundary.
        averaged |= {f"boundary-{name}": averaged[name]} if name in averaged else {}


def notes(match: ClassMatch, content: dict[str, Any]) -> list[str]:
    """What a reader of the table must know."""
    found = []
    if match.missing:
        names = listed(list(map(repr, match.missing)), 10)
        found.append(f"the predictor does not know {names}: all their pixels count as missed")
    if match.extra:
        names = listed(list(map(repr, match.extra)), 10)
        found.append(f"pixels predicted as {names}, which the dataset lacks, count as no class")
    if count := content["run"].get("images_without_masks"):
        found.append(f"{count} of {content['images']} images have no mask in the json")
    other, labelled = (sum(row[key] for row in content["classes"]) for key in ("other", "pixels"))
    if other:
        share = f"{100 * other / labelled:.2f} %"
        found.append(f"{share} of the labelled pixels got no class, which counts as wrong")
    return [*found, content["run"]["protocol"]]


def draw_report(args: argparse.Namespace, content: dict[str, Any], match: ClassMatch) -> Path:
    """Draw confusions and images as for a run, and write the page that shows all."""
    from tagclip.scoring.report import report_page
    from tagclip.tools import visualize_results

    dataset = content["dataset"]
    folder = args.output / "visualize_results"
    visualize_results.main(
        argparse.Namespace(run=args.output, dataset=dataset, num=args.num, output=folder)
    )
    page = report_page(content, notes(match, content), folder / dataset)
    return write_atomic(args.output / "report.html", page)


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
