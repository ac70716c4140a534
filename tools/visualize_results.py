#!/usr/bin/env python
"""Show where a run fails: worst and best images, and classes that it confuses.

tagclip evaluate --config-file CONFIG --weights FILE \\
    OUTPUT_DIR output/run TEST.SAVE_PREDICTIONS png
tagclip visualize results output/run --num 8

Writes below --output, for each dataset: worst.png and best.png (image, ground
truth, prediction, trusty map), confusions.png (the largest confusions of seen
and unseen classes), confusions.md (more of them, with numbers) and
confusion_map.png (true and predicted classes).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagclip.errors import ConfigError
from tagclip.utils.cli import run_tool
from tagclip.utils.files import write_atomic
from tagclip.utils.run_lock import RunLock
from tagclip.utils.tool_parser import NumberIn, ToolParser

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    import numpy as np
    from detectron2.config import CfgNode

    from tagclip.analysis.result_images import Predicted, Ranked
    from tagclip.evaluation.saved_predictions import SavedPredictions
    from tagclip.structures.vocabulary import Vocabulary

PANEL_SIZE = 384
# Confusions of a kind: drawn, and listed.
BARS, ROWS = 12, 50
MAP_CLASSES = 24


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="OUTPUT_DIR of the run")
    parser.add_argument(
        "--dataset", metavar="NAME", default="", help="only this one (default: all evaluated)"
    )
    parser.add_argument(
        "--num", type=NumberIn(int, 1, 1000000), default=6, help="worst and best images"
    )
    parser.add_argument("--output", type=Path, help="folder (default: visualize_results in RUN)")
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return make_parser().parse_args(args)


def main(args: argparse.Namespace) -> None:
    """Draw all datasets.

    Raises:
        TagCLIPError: the folder holds no evaluated run, its parts do not belong together, or
            predictions were not saved.
    """
    from tagclip.analysis.comparison import load_results
    from tagclip.data import Protocol
    from tagclip.evaluation.run_folder import run_config

    for dataset, (result,) in load_results([str(args.run)], args.dataset).items():
        cfg = run_config(args.run, dataset)
        vocabulary = as_evaluated(Protocol(cfg).asked(dataset), result.content)
        counts = stored_counts(args.run, result.content, vocabulary)
        output = (args.output or args.run / "visualize_results") / dataset
        with RunLock(output, "--output"):
            draw_confusions(counts, vocabulary, dataset, output)
            draw_images(args, cfg, result.content, counts, vocabulary, output)


def as_evaluated(vocabulary: Vocabulary, content: Mapping[str, Any]) -> Vocabulary:
    """Call those classes seen that metrics.json does: the split may be another one by now."""
    flags = {entry["name"]: entry["seen"] for entry in content["classes"]}
    if None in flags.values() or flags.keys() != set(vocabulary.names):
        return vocabulary
    return vocabulary.with_seen([flags[name] for name in vocabulary.names])


def stored_counts(run: Path, content: Mapping[str, Any], vocabulary: Vocabulary) -> np.ndarray:
    """(K, K + 1) counts of ``metrics.json``; the last column is pixels without a class.

    Raises:
        ConfigError: there are none, or they are of other classes.
    """
    import numpy as np

    path = run / "inference" / content["dataset"] / "metrics.json"
    found = str(content.get("vocabulary_fingerprint"))
    if found != vocabulary.fingerprint:
        raise ConfigError(
            f"{path}: found the class list {found[:12]}, expected {vocabulary.fingerprint[:12]} "
            f"of {vocabulary.name}, which has changed; evaluate the run again"
        )
    confusion = np.array(content.get("confusion"), dtype=object)
    if confusion.shape != (len(vocabulary),) * 2:
        raise ConfigError(
            f"{path}: found a confusion of shape {confusion.shape}, expected "
            f"{len(vocabulary)} x {len(vocabulary)}; evaluate the run again"
        )
    other = [entry.get("other", 0) for entry in content["classes"]]
    return np.column_stack([confusion, other]).astype(np.int64)


def draw_confusions(counts: np.ndarray, vocabulary: Vocabulary, dataset: str, output: Path) -> None:
    """Write table, bars and map of the confusions, and print the largest."""
    from tagclip.analysis.confusion_charts import draw_confusion_bars, draw_confusion_map
    from tagclip.analysis.confusions import (
        confused_classes,
        format_confusions,
        group_confusions,
        kind_share,
        list_confusions,
        share_text,
    )
    from tagclip.visualization.class_charts import save_chart

    confusion, pixels, seen = counts[:, :-1], counts.sum(axis=1), vocabulary.seen_mask
    pairs = list_confusions(confusion, pixels)
    if not pairs:
        print(f"{dataset}: no pixel has a wrong class")
        return
    groups = group_confusions(pairs, seen, ROWS)
    shares = {kind: kind_share(counts, seen, kind) for kind in groups}
    # With both kinds of classes, confusions between the two are what zero-shot is about.
    crossing = [kind for kind in groups if kind.split()[0] != kind.split()[-1]]
    drawn = {kind: groups[kind][:BARS] for kind in crossing or groups}
    text = format_confusions(groups, shares, vocabulary.names, f"{dataset}: confusions")
    files = [write_atomic(output / "confusions.md", text)]
    if any(drawn.values()):
        bars = draw_confusion_bars(drawn, shares, vocabulary, f"{dataset}: largest confusions")
        files.append(save_chart(bars, output / "confusions.png"))
    classes = confused_classes(groups, seen, MAP_CLASSES)
    title = f"{dataset}: {len(classes)} of {len(vocabulary)} classes, the most confused ones"
    if len(classes) == len(vocabulary):
        title = f"{dataset}: true and predicted classes"
    heat_map = draw_confusion_map(confusion, pixels, classes, vocabulary, title)
    files.append(save_chart(heat_map, output / "confusion_map.png"))
    for kind, found in drawn.items():
        print(f"{dataset}, {kind}: {share_text(kind, f'{shares[kind]:.1f}')}")
        for pair in found[:3]:
            print(f"  {pair.text(vocabulary.names)}")
    print(f"Written: {', '.join(map(str, files))}")


def draw_images(
    args: argparse.Namespace,
    cfg: CfgNode,
    content: Mapping[str, Any],
    counts: np.ndarray,
    vocabulary: Vocabulary,
    output: Path,
) -> None:
    """Rank the images by their own mIoU and draw the worst and the best.

    Raises:
        ConfigError: predictions were not saved, or are not those of ``metrics.json``.
    """
    from detectron2.data import DatasetCatalog
    from tqdm import tqdm

    from tagclip.analysis.result_images import rank_images
    from tagclip.evaluation.run_folder import evaluation_command
    from tagclip.evaluation.saved_predictions import SavedPredictions
    from tagclip.visualization.panels import save_png

    dataset = content["dataset"]
    samples = DatasetCatalog.get(dataset)
    images = [sample["file_name"] for sample in samples]
    saved = SavedPredictions.of_run(args.run, cfg, dataset, vocabulary, images)
    read = partial(read_sample, saved=saved, vocabulary=vocabulary)
    evaluated = set(saved.evaluated(images))
    chosen = [sample for sample in samples if sample["file_name"] in evaluated]
    progress = tqdm(chosen, desc=f"Ranking {dataset}", unit="image", disable=None)
    ranking, total = rank_images(progress, read, vocabulary.seen_mask)
    if (total != counts).any():
        command = evaluation_command(args.run, cfg, dataset, saved.kind.save)
        raise ConfigError(
            f"{saved.folder}: found predictions that do not add up to the metrics.json beside "
            f"them, expected those of one evaluation; save them again with: {command}"
        )
    count = min(args.num, len(ranking) // 2)
    parts = {"worst": ranking[::-1][:count], "best": ranking[: max(count, 1)]}
    for part, chosen in parts.items():
        if chosen:
            images = [titled(image, ranking, read(image.sample), vocabulary) for image in chosen]
            page = draw_page(images, f"{len(chosen)} {part} of {len(ranking)}", content, vocabulary)
            print(f"Written: {save_png(output / f'{part}.png', page)}")


def read_sample(
    sample: Mapping[str, Any], saved: SavedPredictions, vocabulary: Vocabulary
) -> Predicted:
    """Image, labels and saved prediction of one image.

    Raises:
        TagCLIPError: a file is missing or damaged, or its size has changed.
    """
    from tagclip.analysis.result_images import Predicted
    from tagclip.data import read_image, read_indices

    image = sample["file_name"]
    labels, trusty = saved.read(image)
    truth = read_indices(sample["sem_seg_file_name"], vocabulary, labels.shape, image=image)
    return Predicted("", read_image(image), truth, labels, trusty)


def titled(
    image: Ranked, ranking: Sequence[Ranked], shown: Predicted, vocabulary: Vocabulary
) -> Predicted:
    """Give an image its place, file, mIoU and largest confusion as title."""
    import numpy as np

    from tagclip.analysis.result_images import count_pixels
    from tagclip.visualization.segments import marked_names

    place = ranking.index(image) + 1
    name = Path(image.sample["file_name"]).name
    title = f"rank {place} of {len(ranking)}: {name}, mIoU {image.score:.1f}"
    wrong = count_pixels(shown.truth, shown.labels, len(vocabulary))
    labelled = wrong.sum()
    np.fill_diagonal(wrong, 0)
    if wrong.any():
        true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
        names = [*marked_names(vocabulary), "no class"]
        title += f"; {100 * wrong.max() / labelled:.0f} % of its pixels are "
        title += f"{names[true]} taken for {names[predicted]}"
    return replace(shown, title=title)


def draw_page(
    images: Sequence[Predicted], which: str, content: Mapping[str, Any], vocabulary: Vocabulary
) -> np.ndarray:
    """Images below each other, with a heading and a legend of the classes on them."""
    from tagclip.analysis.result_images import classes_on, draw_gallery
    from tagclip.visualization.panels import draw_heading, stack_pictures

    gallery = draw_gallery(images, vocabulary, PANEL_SIZE, classes_on(images, vocabulary))
    found = content["metrics"] | (content.get("metrics_by_split") or {})
    metrics = [
        f"{name} {found[name]:.1f}"
        for name in ("mIoU-seen", "mIoU-unseen", "hIoU", "mIoU")
        if found.get(name) is not None
    ]
    title = f"{content['dataset']}: {which} images by mIoU over the classes on them"
    lines = [f"Protocol: {content['run'].get('protocol')}", f"All images: {', '.join(metrics)}"]
    return stack_pictures([draw_heading(title, lines, gallery.shape[1]), gallery])


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
