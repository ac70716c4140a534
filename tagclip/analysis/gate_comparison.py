"""Several gates analysed side by side from one forward pass over a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from tqdm import tqdm

from tagclip.analysis.gate_analysis import GateAnalysis
from tagclip.data import ZeroShotDatasetMapper, read_indices
from tagclip.engine.data_stream import shared_samples
from tagclip.modeling.clip import resolve_pixels
from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.meta_arch import TagCLIP
from tagclip.structures.vocabulary import Vocabulary

__all__ = ["compare_gates", "labelled_inputs"]


@torch.no_grad()
def compare_gates(
    cfg: CfgNode,
    model: TagCLIP,
    dataset: str,
    vocabulary: Vocabulary,
    partition: Vocabulary,
    gates: Mapping[str, Gate],
) -> dict[str, GateAnalysis]:
    """Run the networks once per image and count what every gate makes of their logits.

    Args:
        cfg: config of the loader.
        model: in evaluation mode.
        dataset: registered name, whose label files are read.
        vocabulary: the K classes that are asked.
        partition: the same classes, with the split that gates and figures use.
        gates: by name.

    Returns:
        Name -> analysis; pixels of other classes than these K are not counted.

    Raises:
        DatasetError: a file is missing or damaged, or a label does not fit its image.
    """
    seen = partition.seen_mask
    found = {
        name: GateAnalysis(seen, gate.bias, gate.mode != "none") for name, gate in gates.items()
    }
    flags = torch.from_numpy(seen).to(model.device)
    for item, truth in labelled_inputs(cfg, dataset, partition):
        fusion = model.encode(item, vocabulary)
        for name, gate in gates.items():
            found[name].add(truth, replace(fusion, gate=gate, seen_mask=flags), truth.shape)
    return found


def labelled_inputs(
    cfg: CfgNode, dataset: str, classes: Vocabulary
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield what a model takes of every image, and its (H, W) labels, indices into the classes.

    Args:
        cfg: config of the loader.
        dataset: registered name, whose label files are read.
        classes: those of the dataset that count; pixels of others get an index beyond them.

    Raises:
        DatasetError: a file is missing or damaged, or a label does not fit its image.
    """
    samples = DatasetCatalog.get(dataset)
    truths = {item["file_name"]: item["sem_seg_file_name"] for item in samples}
    full = Vocabulary.from_metadata(dataset)
    loader = build_detection_test_loader(
        samples,
        mapper=ZeroShotDatasetMapper(resolve_pixels(cfg), is_train=False, dataset_name=dataset),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=shared_samples,
    )
    for (item,) in tqdm(loader, desc=dataset, disable=None, leave=False):
        size = item["height"], item["width"]
        image = item["file_name"]
        yield item, read_indices(truths[image], full, size, classes, image)
