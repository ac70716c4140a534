#!/usr/bin/env python
"""Show what training sees: augmented crops, and the labels that are left of them.

tagclip visualize data --num 4 \\
    --config-file minibench/tagclip_minibench_noun_fence_board_convtrust.yaml

Writes one page per image below --output. 000007.png shows sample 7 of the
training stream, exactly as a training with this config and seed gets it, and
the same image in the epochs after. Above it stand the files on disk, with the
labels that training never sees. A class list without splits is shown as
supervised training would see it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tagclip.projects import import_projects
from tagclip.utils.cli import run_tool
from tagclip.utils.run_lock import RunLock
from tagclip.utils.tool_parser import OF_OPTIMIZER, NumberIn, ToolParser

# detectron2 is imported inside the functions: --help answers at once.
if TYPE_CHECKING:
    import numpy as np
    from detectron2.config import CfgNode

    from tagclip.engine import StreamLoader
    from tagclip.structures.vocabulary import Vocabulary

# Keys, and sections of keys, of what comes behind the training stream. MODEL.CLIP's weights may say
# how images are resized.
UNREAD = (
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.TAGCLIP.TEST", "MODEL.TAGCLIP.LOSS", "TEST"),
    *(f"MODEL.CLIP.{key}" for key in ("POS_EMBED_RESIZE", "DOUBLE_CLS_EMBED", "LAST_BLOCK")),
    *(f"MODEL.CLIP.{key}" for key in ("TEMPLATES", "SYNONYMS", "TEXT_BATCH", "TEXT_CACHE")),
    *("MODEL.CLIP.PROMPT", "SOLVER.OPTIMIZER", "SOLVER.AMP", "SOLVER.CHECKPOINT_PERIOD"),
    *OF_OPTIMIZER,
)
PANEL_SIZE = 320
IGNORED = ("ignored", "ignored: no label, or one that training must not see")
# Column titles and ends of the scale.
SEEN_TARGET = ("trusty target: seen-class pixels", "0: others", "1: seen")
NOVEL_TARGET = ("trusty target: unseen-class pixels", "0: others", "1: unseen")
NOVEL_MASK = ("novel mask: gets pseudo-labels", "0: others", "1: unseen")


def make_parser() -> ToolParser:
    """Make the parser of the command line."""
    parser = ToolParser(__doc__)
    parser.add_config_file(required=True)
    parser.add_argument("--num", type=NumberIn(int, 1, 1000000), default=8, help="samples")
    parser.add_argument("--draws", type=NumberIn(int, 1, 1000), default=3, help="of each image")
    parser.add_argument("--output", type=Path, default=Path("output/visualize_data"), help="folder")
    parser.add_config_keys(unread=UNREAD)
    return parser


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    return make_parser().parse_args(args)


class Setup(NamedTuple):
    """What all pages share.

    Attributes:
        cfg: the config.
        loader: the training stream.
        full: all classes of the datasets; seen are those with labels.
        trained: the classes of the labels.
        protocol: one line.
    """

    cfg: CfgNode
    loader: StreamLoader
    full: Vocabulary
    trained: Vocabulary
    protocol: str


def main(args: argparse.Namespace) -> None:
    """Draw the pages.

    Raises:
        TagCLIPError: the config or the data are not in order.
    """
    from tqdm import tqdm

    from tagclip.visualization.panels import save_png

    setup = read_setup(args.config_file, args.opts)
    with RunLock(args.output, "--output"):
        for position in tqdm(range(args.num), unit="page", disable=None):
            positions = setup.loader.positions(position, args.draws)
            save_png(args.output / f"{position:06d}.png", draw_page(setup, positions))
    print(setup.protocol)
    print(f"Written: {args.num} pages to {args.output}")


def read_setup(config_file: str, opts: Sequence[str]) -> Setup:
    """Build the training stream of a config.

    Raises:
        ConfigError: a key is wrong, the seed is not known yet, or see `check_train_sizes`.
        DatasetError, VocabularyError: see `ZeroShotTrainer.build_train_loader`.
    """
    from tagclip import ZeroShotTrainer, load_config
    from tagclip.config import check_train_sizes
    from tagclip.data import Protocol

    cfg = load_config(config_file, opts)
    check_train_sizes(cfg)
    import_projects(cfg.PROJECTS)
    protocol, note = Protocol(cfg), ""
    if cfg.DATASETS.ZERO_SHOT.SETTING != "supervised" and not protocol.has_partition:
        # Training needs to know what is unseen; a look at the data does not.
        cfg.DATASETS.ZERO_SHOT.SETTING = "supervised"
        protocol, note = Protocol(cfg), " (so shown: no split says which classes are unseen)"
    loader = ZeroShotTrainer.build_train_loader(cfg)
    trained = protocol.training
    labelled = {n for n, seen in zip(trained.names, trained.seen_mask, strict=True) if seen}
    full = protocol.full
    full = full.with_seen([name in labelled for name in full.names])
    return Setup(cfg, loader, full, trained, f"Protocol: {protocol.summary}{note}")


def draw_page(setup: Setup, positions: Sequence[int]) -> np.ndarray:
    """One image: its files, then a row for each of its positions in the stream.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    import numpy as np

    from tagclip.visualization.panels import (
        draw_heading,
        draw_legend,
        draw_panels,
        draw_trusty_bar,
        fit,
        stack_pictures,
    )
    from tagclip.visualization.segments import colorize_trusty, draw_segments

    targets = target_columns(setup.cfg)
    image, truth = read_files(setup, positions[0])
    rows = [(image, truth, [None] * len(targets))]
    titles = [f"on disk, {image.shape[1]} x {image.shape[0]} pixels, with all labels"]
    for position in positions:
        sample = setup.loader.sample(position)
        image, labels = sample_arrays(setup, sample)
        rows.append((image, labels, [make(sample, labels, setup.full) for _, make in targets]))
        titles.append(row_title(setup.cfg, position, labels))
    panels = []
    for image, labels, masks in rows:
        picture = fit(image, PANEL_SIZE)
        segments = draw_segments(picture, fit(labels, PANEL_SIZE), setup.full, alpha=0.8)
        shown = [None if m is None else colorize_trusty(fit(m, PANEL_SIZE)) for m in masks]
        panels.append([picture, segments, *shown])
    if targets:
        width = max(panel.shape[1] for row in panels[1:] for panel in row)
        bars = [draw_trusty_bar(width, *texts[1:]) for texts, _ in targets]
        panels.append([None, None, *bars])
    heads = ["image", "labels", *(texts[0] for texts, _ in targets)]
    page = draw_panels(panels, heads, titles)
    classes = np.unique(np.concatenate([np.unique(labels) for _, labels, _ in rows]))
    listed = [k for k in classes.tolist() if k >= 0]
    name = setup.loader.source(positions[0])["file_name"]
    title = f"Sample {positions[0]} of the training: {Path(name).name}"
    heading = draw_heading(title, [setup.protocol], page.shape[1])
    legend = draw_legend(setup.full, page.shape[1], listed, outside=IGNORED)
    return stack_pictures([heading, page, legend])


def row_title(cfg: CfgNode, position: int, labels: np.ndarray) -> str:
    """Where a sample comes in the training, and what it is."""
    iteration = position // cfg.SOLVER.IMS_PER_BATCH
    place = f"iteration {iteration}"
    if iteration >= cfg.SOLVER.MAX_ITER:
        place = f"never: training ends before iteration {cfg.SOLVER.MAX_ITER}"
    size = f"{labels.shape[1]} x {labels.shape[0]} pixels"
    return f"sample {position} ({place}): {size}, {100 * (labels < 0).mean():.0f} % ignored"


def read_files(setup: Setup, position: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 RGB image and (H, W) indices of all its labels, -1 where there are none."""
    import numpy as np

    from tagclip.data import read_image, read_label

    source = setup.loader.source(position)
    truth = setup.full.label_lut()[read_label(source["sem_seg_file_name"], setup.full)]
    image = read_image(source["file_name"], max_pixels=setup.cfg.INPUT.MAX_PIXELS)
    return image, np.where(truth < len(setup.full), truth, -1)


def sample_arrays(setup: Setup, sample: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(h, w, 3) uint8 RGB crop and (h, w) indices into the full class list, -1 where ignored."""
    import numpy as np

    image = sample["image"].numpy().transpose(1, 2, 0)
    if setup.cfg.INPUT.FORMAT == "BGR":
        image = image[..., ::-1]
    names = setup.full.names
    places = np.full(setup.trained.ignore_index + 1, -1, dtype=np.int32)
    places[: len(setup.trained)] = [names.index(name) for name in setup.trained.names]
    return np.ascontiguousarray(image), places[sample["sem_seg"].numpy()]


def target_columns(cfg: CfgNode) -> list[tuple[tuple[str, str, str], Any]]:
    """Texts of each further column, and (sample, labels, vocabulary) -> (h, w) float32 0 or 1."""
    trusty, columns = cfg.MODEL.TAGCLIP.TRUSTY, []
    if trusty.ENABLED:
        novel = trusty.TARGET == "novel"
        columns.append((NOVEL_TARGET, novel_mask) if novel else (SEEN_TARGET, seen_pixels))
    rule = cfg.MODEL.TAGCLIP.SELF_TRAINING
    if cfg.DATASETS.ZERO_SHOT.SETTING == "transductive" and rule.REGION == "novel":
        columns.append((NOVEL_MASK, novel_mask))
    return columns


def seen_pixels(sample: Mapping[str, Any], labels: np.ndarray, full: Vocabulary) -> np.ndarray:
    """1 on pixels whose label is a seen class."""
    import numpy as np

    return ((labels >= 0) & full.seen_mask[labels]).astype(np.float32)


def novel_mask(sample: Mapping[str, Any], labels: np.ndarray, full: Vocabulary) -> np.ndarray:
    """1 where the mapper, which the config allows to, says that an unseen class is."""
    import numpy as np

    return sample["novel_mask"].numpy().astype(np.float32)


def invoke_main() -> None:
    """Parse the command line and run."""
    run_tool(main, parse_args())


if __name__ == "__main__":
    invoke_main()
