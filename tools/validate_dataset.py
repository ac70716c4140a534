#!/usr/bin/env python
"""Read every file of a dataset, say what is wrong and which command mends it.

tagclip validate voc2012_train voc2012_val
tagclip validate --config-file minibench/tagclip_minibench_supervised.yaml

Checks pairs, sizes, EXIF, channels, values, duplicates and damaged files,
counts the pixels of every class, and looks for images that two datasets share.
Writes report.json, histogram.png and contact_sheet.png below --output, one
folder per dataset. Ends with 1 if there are problems.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tagclip.errors import ConfigError, DatasetError
from tagclip.projects import PROJECT_NAMES, import_projects
from tagclip.utils.cli import check_output, run_tool
from tagclip.utils.files import write_atomic
from tagclip.utils.text import json_text, listed
from tagclip.utils.tool_parser import MOST_PROCESSES, NumberIn, ToolParser

if TYPE_CHECKING:
    from tagclip.data.validation.findings import Finding
    from tagclip.data.validation.scan import DatasetScan, Sample
    from tagclip.structures.vocabulary import Vocabulary

_MMSEG_SUFFIX = "_labelTrainIds"


class Target(NamedTuple):
    """A dataset to validate.

    Attributes:
        name: registered name.
        vocabulary: its full class list.
        samples: its files.
        refusal: why training and evaluation refuse it; "" if they do not.
        suffixes: whether that is a suffix which the config does not name.
        convert: what mends wrong label values.
        prepare_command: what makes the label files; "" if there is none.
        verified: whether a prepare script has made sure which value is which class.
    """

    name: str
    vocabulary: Vocabulary
    samples: list[Sample]
    refusal: str
    suffixes: bool
    convert: str
    prepare_command: str
    verified: bool


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered dataset")
    parser.add_config_file(use="whose datasets are validated")
    parser.add_argument(
        "--split", metavar="NAME", default="", help="split of the class list (default: its own)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/validate_dataset"), help="folder"
    )
    parser.add_argument(
        "--workers",
        type=NumberIn(int, 0, MOST_PROCESSES),
        default=min(8, os.cpu_count() or 1),
        help="processes",
    )
    parser.add_config_keys()
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser()
    parsed = parser.parse_args(args)
    if bool(parsed.names) == bool(parsed.config_file):
        parser.error("expected either dataset names or --config-file")
    return parsed


def main(args: argparse.Namespace) -> int:
    """Validate; return the exit code.

    Raises:
        TagCLIPError: a config, dataset or split does not exist, or --output cannot be written.
    """
    from tagclip.data.validation.findings import list_findings, shared_findings

    targets, pairs, max_pixels = find_targets(args)
    for target in targets:
        check_output("--output", args.output / target.name, is_folder=True)
    # What single files are like is counted, not logged.
    reader = logging.getLogger("tagclip.data.image_io")
    level = reader.level
    reader.setLevel(logging.ERROR)
    try:
        scans = {target.name: scan(target, args.workers, max_pixels) for target in targets}
    finally:
        reader.setLevel(level)
    clean = True
    for target in targets:
        found = scans[target.name][0]
        findings = list_findings(found, target.convert, target.prepare_command, target.verified)
        for first, second in pairs:
            if second == target.name:
                findings += shared_findings(scans[first][0], found)
        findings.sort(key=lambda finding: not finding.is_problem)
        clean &= not any(finding.is_problem for finding in findings)
        write_report(*scans[target.name], findings, args.output / target.name)
    return 0 if clean else 1


def find_targets(args: argparse.Namespace) -> tuple[list[Target], list[tuple[str, str]], int]:
    """Find the files of all datasets before any is read.

    Returns:
        The datasets; pairs of names that should share no image; and INPUT.MAX_PIXELS.

    Raises:
        ConfigError, DatasetError, VocabularyError: a config, dataset or split does not exist.
    """
    from tagclip import load_config
    from tagclip.data import Protocol
    from tagclip.structures.vocabulary import Vocabulary

    cfg = load_config(args.config_file, args.opts)
    refuse_twice(args, cfg.DATASETS.ZERO_SHOT.SPLIT)
    if args.names:
        import_projects(PROJECT_NAMES)
        names = list(dict.fromkeys(args.names))
        split = args.split or cfg.DATASETS.ZERO_SHOT.SPLIT
        vocabularies = [Vocabulary.from_metadata(name, split) for name in names]
        pairs = list(combinations(names, 2))
    else:
        import_projects(cfg.PROJECTS)
        cfg.DATASETS.ZERO_SHOT.SPLIT = args.split or cfg.DATASETS.ZERO_SHOT.SPLIT
        names = list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
        protocol = Protocol(cfg)
        vocabularies = [protocol.dataset(name) for name in names]
        pairs = list(product(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST))
    if not names:
        raise ConfigError(
            "DATASETS.TRAIN, DATASETS.TEST: found no dataset, expected one at least to validate; "
            "name it there, or on the command line"
        )
    targets = [find_target(name, v) for name, v in zip(names, vocabularies, strict=True)]
    return targets, pairs, cfg.INPUT.MAX_PIXELS


def refuse_twice(args: argparse.Namespace, split: str) -> None:
    """Refuse config keys of the command line that say something else than its words.

    Args:
        args: of `parse_args`.
        split: DATASETS.ZERO_SHOT.SPLIT.

    Raises:
        ConfigError: there are two splits, or dataset names and DATASETS.TRAIN or TEST.
    """
    keys = args.opts[::2]
    if "DATASETS.ZERO_SHOT.SPLIT" in keys and args.split not in ("", split):
        raise ConfigError(
            f"DATASETS.ZERO_SHOT.SPLIT: found {split!r} and --split {args.split}, expected one "
            "split; leave one of them out"
        )
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        if args.names and key in keys:
            raise ConfigError(
                f"{key}: found beside the names of datasets to validate, {listed(args.names, 3)}, "
                "expected one of both; leave the key out, or give all as names"
            )


def find_target(name: str, vocabulary: Vocabulary) -> Target:
    """List the files of a dataset, also those without a partner.

    Raises:
        DatasetError: there are no files.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from tagclip.data.validation.scan import Sample

    registered, refusal, suffixes = DatasetCatalog[name], "", False
    images, labels = registered.files_by_name()
    try:
        DatasetCatalog.get(name)
    except DatasetError as error:
        # What lacks a partner is listed file by file, unless all do or one line mends all.
        suffixes = bool(registered.advice_on_names())
        is_whole = images.keys() == labels.keys() or suffixes
        is_misnamed = not (registered.prepare_command or images.keys() & labels.keys())
        refusal = str(error) if is_whole or is_misnamed else ""
    samples = [
        Sample(key, images.get(key), labels.get(key)) for key in sorted(images.keys() | labels)
    ]
    command = registered.prepare_command
    convert = _remedy(command, MetadataCatalog.get(name).vocabulary)
    verified = bool(registered.manifest) and not refusal
    return Target(name, vocabulary, samples, refusal, suffixes, convert, command, verified)


def _remedy(prepare_command: str, vocabulary_json: str) -> str:
    """What mends label values: the dataset's own command, or a benchmark's with these classes."""
    from tagclip.data.datasets.builtin import read_benchmarks
    from tagclip.data.datasets.builtin import vocabulary_json as json_of

    if prepare_command:
        return f"run: {prepare_command}"
    for benchmark in read_benchmarks().values():
        names = (benchmark.vocabulary, benchmark.readable)
        if any(name and Path(vocabulary_json) == json_of(name) for name in names):
            return f"convert the labels, as tagclip prepare {benchmark.prepare} does"
    return f"convert the labels to the ids of {vocabulary_json} (tagclip labels convert)"


def scan(target: Target, workers: int, max_pixels: int) -> tuple[DatasetScan, list[Sample]]:
    """Read all files of a dataset.

    Returns:
        What was found, and the samples whose image and label fit together.
    """
    from tagclip.data.datasets.walk import map_files
    from tagclip.data.validation.scan import DatasetScan, scan_sample

    found, usable = DatasetScan(target.name, target.vocabulary), []
    if target.refusal:
        found.note("refused", target.refusal)
    images = {sample.key for sample in target.samples if sample.image}
    # Own labels of that name need no conversion, but a label_suffix.
    for sample in target.samples if target.prepare_command else ():
        key = sample.key.removesuffix(_MMSEG_SUFFIX)
        if sample.image is None and key != sample.key and key in images:
            found.note("naming", sample.label)
    read = partial(scan_sample, vocabulary=target.vocabulary, max_pixels=max_pixels)
    for each in map_files(read, target.samples, target.name, workers):
        found.add(each)
        if each.image_size and each.image_size == each.label_size:
            usable.append(each.sample)
    if target.suffixes:
        # One line pairs them: none of them is to be added or left out.
        for kind in ("lonely_image", "lonely_label"):
            found.found.pop(kind, None)
    return found, usable


def write_report(
    found: DatasetScan, usable: Sequence[Sample], findings: Sequence[Finding], folder: Path
) -> None:
    """Print the report of a dataset, write it and its pictures."""
    from tagclip.data.validation.report import (
        draw_contact_sheet,
        draw_histogram,
        format_report,
        report_content,
    )

    content, sheet = report_content(found, findings), folder / "contact_sheet.png"
    written = [
        write_atomic(folder / "report.json", json_text(content, indent=1) + "\n"),
        draw_histogram(found, folder / "histogram.png"),
        draw_contact_sheet(found, usable, sheet),
    ]
    if not usable:
        # That of an earlier report.
        sheet.unlink(missing_ok=True)
    print(format_report(content))
    print(f"Written: {', '.join(str(path) for path in written if path)}\n")


def run(args: argparse.Namespace) -> None:
    """Validate and end with the exit code."""
    sys.exit(main(args))


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(run, parse_args())


if __name__ == "__main__":
    invoke_main()
