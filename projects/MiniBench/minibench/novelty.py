"""What else could tell unseen pixels from seen ones, where no training image shows an unseen one.

Every score is measured on the model of one run of the table, as a detector and, with the relative
map's threshold rule, in the place of the map under the product gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from tagclip import TagCLIP, Vocabulary, ZeroShotTrainer
from tagclip.analysis.gate_comparison import labelled_inputs
from tagclip.data import Protocol
from tagclip.engine.trusty_fitting import fitting_stream, labelled_patches
from tagclip.evaluation.metrics import confusion_matrix, summarize
from tagclip.modeling.heads.class_gaussians import with_context
from tagclip.modeling.heads.relative_trusty import PatchVectors, threshold_and_scale
from tagclip.modeling.inference.fusion import ScoreFusion, resize, upsample_window
from tagclip.modeling.inference.gate import Gate
from tagclip.projects.minibench.novelty_heads import (
    TrainingPatches,
    episode_features,
    episode_head,
    outlier_features,
    outlier_head,
)
from tagclip.projects.minibench.novelty_scores import (
    Background,
    detection_figures,
    energy,
    entropy,
    mahalanobis,
    max_logit,
    max_softmax,
    neighbour_distance,
)
from tagclip.projects.minibench.table_runs import run_config, run_folder, trained_model

__all__ = [
    "RUN",
    "Patches",
    "Score",
    "figures_of",
    "measure",
    "novelty_file",
    "patches_of",
    "scores_of",
    "training_patches",
]

RUN = "relative without unseen images"
# Of the training stream; on `minibench_val` 800 make no better heads.
_HEAD_IMAGES = 200


@dataclass(frozen=True)
class Patches:
    """Patches of N images, and what the model says of them.

    Attributes:
        vectors: what the relative map is made of.
        seen: (N, S, h, w) logits where the seen classes alone are asked.
        differences: (N, 3, h, w) of the relative map of all asked classes.
    """

    vectors: PatchVectors
    seen: Tensor
    differences: Tensor


@dataclass(frozen=True)
class Score:
    """A score of patches, large means unseen.

    Attributes:
        of: patches of N images -> (N, h, w).
        usual: (M,) scores of the patches of seen classes of kept training images.
    """

    of: Callable[[Patches], Tensor]
    usual: Tensor

    def trusty_logits(self, scores: Tensor, miss_rate: float) -> Tensor:
        """Make logits of P(seen) of scores, as the relative map does."""
        threshold, scale = threshold_and_scale(self.usual, miss_rate)
        return -scale * (scores - threshold)


def patches_of(model: TagCLIP, vocabulary: Vocabulary, vectors: PatchVectors) -> Patches:
    """Decode patch vectors for the asked classes, all of the training among them, and for these."""
    asked, seen = (
        model.decoder(words)(vectors.dense, vectors.whole)
        for words in (vocabulary, model.train_vocabulary)
    )
    differences = model.relative_map(vocabulary).differences(vectors, asked)
    return Patches(vectors, seen, differences)


@torch.no_grad()
def training_patches(cfg: CfgNode, model: TagCLIP) -> TrainingPatches:
    """Patches of the first images that the relative map is fitted on."""
    vectors, labels = [], []
    stream = fitting_stream(cfg, ZeroShotTrainer.build_train_loader(cfg))
    for batch in islice(stream, math.ceil(_HEAD_IMAGES / cfg.SOLVER.IMS_PER_BATCH)):
        images, features, _, found = labelled_patches(model, batch)
        vectors.append(vars(model.patch_vectors(images, features)).values())
        labels.append(found)
    words = model.train_vocabulary
    return TrainingPatches(
        PatchVectors(*map(torch.cat, zip(*vectors, strict=True))),
        torch.cat(labels),
        model.text_bank.class_vectors(words),
        words.names,
        model.decoder(words),
    )


@torch.no_grad()
def scores_of(
    cfg: CfgNode, model: TagCLIP, vocabulary: Vocabulary, by_noun: bool
) -> dict[str, Score]:
    """Make all scores for a list of words, by name.

    Args:
        cfg: of the run.
        model: trained by it, in evaluation mode, with a relative map.
        vocabulary: the K classes that are asked, with seen and unseen decided.
        by_noun: whether seen classes play unseen ones by whole nouns.
    """
    trusty, text = model.relative_trusty, model.text_bank.class_vectors(model.train_vocabulary)
    found, densities = model.relative_map(vocabulary), trusty.gaussians.densities(text, text)
    background, training = Background.of(trusty.gaussians), training_patches(cfg, model)
    episodes = episode_head(training, by_noun, cfg.SEED)
    outliers = outlier_head(training, densities, cfg.SEED)
    own = trusty.sample_seen
    dense, plain = trusty.sample_dense.float(), trusty.sample_plain.float()
    kept = patches_of(model, vocabulary, PatchVectors(dense, plain, trusty.sample_whole))
    bank = dense.permute(0, 2, 3, 1)

    def nearest(patches: Patches) -> Tensor:
        return mahalanobis(with_context(patches.vectors.dense), densities)

    def beyond_background(patches: Patches) -> Tensor:
        return nearest(patches) - background.distance(with_context(patches.vectors.dense))

    def made(patches: Patches) -> Tensor:
        everything = torch.ones(patches.seen.shape[:2], dtype=torch.bool)
        return outliers(
            outlier_features(patches.vectors, patches.seen, text, densities, everything)
        )

    def played(patches: Patches) -> Tensor:
        return episodes(episode_features(found, patches.differences, patches.vectors))

    def difference(index: int) -> Callable[[Patches], Tensor]:
        return lambda patches: patches.differences[:, index]

    spread = float(played(kept)[own].std())
    functions: dict[str, Callable[[Patches], Tensor]] = {
        "softmax": lambda patches: max_softmax(patches.seen),
        "logit": lambda patches: max_logit(patches.seen),
        "energy": lambda patches: energy(patches.seen),
        "entropy": lambda patches: entropy(patches.seen),
        "mahalanobis": nearest,
        "relative mahalanobis": beyond_background,
        "neighbour": lambda patches: neighbour_distance(patches.vectors.dense, bank[own]),
        "outliers": made,
        "d1": difference(0),
        "d2": difference(1),
        "d3": difference(2),
        "episodes": played,
        "d1 + episodes": lambda patches: (
            difference(0)(patches) / found.deviation[0] + played(patches) / spread
        ),
        "relative": lambda patches: found.sums(patches.differences)[:, 0],
    }
    usual = {name: of(kept)[own] for name, of in functions.items() if name != "neighbour"}
    usual["neighbour"] = _neighbours_elsewhere(dense, own)
    return {name: Score(of, usual[name]) for name, of in functions.items()}


def _neighbours_elsewhere(dense: Tensor, own: Tensor) -> Tensor:
    """(M,) distances of seen patches to those of the other images: their own has its like."""
    found = []
    for index in own.flatten(1).any(1).nonzero()[:, 0].tolist():
        others = own.clone()
        others[index] = False
        bank = dense.permute(0, 2, 3, 1)[others]
        found.append(neighbour_distance(dense[index, None], bank)[0][own[index]])
    return torch.cat(found)


def novelty_file(output: Path, split: str, seed: int, subset: str) -> Path:
    """Where the result of `measure` is kept."""
    folder = run_folder(output, split, RUN, seed)
    return folder.with_name(f"{folder.name}-novelty-{subset}.json")


def measure(split: str, seed: int, subset: str, output: Path) -> dict[str, Any]:
    """Measure every score on the model of a run, which is trained unless that is done.

    Args:
        split: one of `SPLITS`.
        seed: of the run.
        subset: ``val`` or ``test``.
        output: see `run_folder`.

    Returns:
        JSON-ready dict: ``split``, ``seed``, ``subset`` and ``scores``, name -> figures of
        `detection_figures`, ``S``, ``U`` and ``hIoU`` in percent; ``no map`` has the last three.
    """
    cfg = run_config(split, RUN, seed, output)
    # The heads are fitted there, and so small a model gains nothing from a GPU.
    cfg.MODEL.DEVICE = "cpu"
    model = trained_model(cfg)
    dataset = f"minibench_{subset}"
    vocabulary = Protocol(cfg).asked(dataset)
    scores = scores_of(cfg, model, vocabulary, split.startswith("noun"))
    figures = figures_of(cfg, model, vocabulary, dataset, scores)
    return {"split": split, "seed": seed, "subset": subset, "scores": figures}


@torch.no_grad()
def figures_of(
    cfg: CfgNode,
    model: TagCLIP,
    vocabulary: Vocabulary,
    dataset: str,
    scores: dict[str, Score],
) -> dict[str, dict[str, float]]:
    """Measure scores on a dataset whose images are single windows; see `measure`."""
    seen, classes = vocabulary.seen_mask, len(vocabulary)
    confusion = {name: np.zeros((classes, classes), np.int64) for name in ("no map", *scores)}
    pixels: dict[str, list[np.ndarray]] = {name: [] for name in scores}
    unseen = []
    for item, truth in labelled_inputs(cfg, dataset, vocabulary):
        fusion = replace(model.encode(item, vocabulary), gate=Gate(bias=0.0))
        (view,) = fusion.views
        images, _ = model.preprocess_images([item])
        vectors = model.patch_vectors(images, model.backbone(images))
        patches = patches_of(model, vocabulary, vectors)
        labelled = truth < classes
        unseen.append(~seen[truth[labelled]])
        plain = replace(fusion, gate=Gate("none", bias=0.0))
        confusion["no map"] += _confusion(plain, truth, classes)
        for name, score in scores.items():
            found = score.of(patches)
            full = resize(upsample_window(view, found), truth.shape)
            pixels[name].append(full[0].numpy()[labelled])
            logits = score.trusty_logits(found, model.relative_trusty.miss_rate)
            gated = replace(fusion, views=(replace(view, trusty_logits=logits[None]),))
            confusion[name] += _confusion(gated, truth, classes)
    sides = np.concatenate(unseen)
    figures = {}
    for name, counts in confusion.items():
        means = summarize(counts, seen)
        keys = {"S": "mIoU-seen", "U": "mIoU-unseen", "hIoU": "hIoU"}
        figures[name] = {short: float(means[key]) for short, key in keys.items()}
        if name in scores:
            figures[name] |= detection_figures(np.concatenate(pixels[name]), sides)
    return figures


def _confusion(fusion: ScoreFusion, truth: np.ndarray, classes: int) -> np.ndarray:
    labels, _ = fusion.best(truth.shape)
    return confusion_matrix(truth, labels.numpy(), classes)
