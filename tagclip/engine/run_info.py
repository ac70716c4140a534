"""What a run depends on: the checkpoint and the seed it starts from, the record in its results."""

from __future__ import annotations

import logging
import secrets
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from tagclip.checkpoint import find_weights, last_checkpoint, read_checkpoint
from tagclip.checkpoint.checkpointer import TRUSTY_PARTS
from tagclip.checkpoint.identity import config_hash
from tagclip.data import Protocol
from tagclip.data.claim import Claim, question
from tagclip.data.datasets.shared_images import shared_images
from tagclip.errors import CheckpointError
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.clip.weights import file_sha256
from tagclip.modeling.heads.none_of_these import describe_background
from tagclip.modeling.precision import inference_dtype
from tagclip.structures.provenance import Provenance

__all__ = [
    "announce_protocol",
    "announce_schedule",
    "announce_shared_images",
    "model_provenance",
    "resolve_weights_and_seed",
    "run_info",
    "training_goes_on",
]

logger = logging.getLogger(__name__)


def resolve_weights_and_seed(cfg: CfgNode, *, eval_only: bool, resume: bool) -> str:
    """Decide which checkpoint a run starts from and which seed it has; writes them into ``cfg``.

    With ``resume``, the last checkpoint in OUTPUT_DIR goes before MODEL.WEIGHTS, as everywhere in
    detectron2, and a SEED of -1 becomes that run's. Evaluation takes the seed of its checkpoint.
    Every other SEED of -1 is drawn, the same one in all processes.

    Args:
        cfg: not frozen.
        eval_only: whether only to evaluate; MODEL.WEIGHTS becomes the checkpoint. What names a
            folder or a model of the hub becomes the file in it in any case.
        resume: whether to continue in OUTPUT_DIR; an evaluation needs a checkpoint there.

    Returns:
        Path of the checkpoint; "" is CLIP.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or unsafe.
    """
    last = last_checkpoint(cfg.OUTPUT_DIR) if resume else ""
    if resume and eval_only and not last:
        raise CheckpointError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR}: found no checkpoint of a training, expected one, which "
            "--resume evaluates; mend OUTPUT_DIR, or give --weights in the place of --resume"
        )
    if not last and cfg.MODEL.WEIGHTS:
        cfg.MODEL.WEIGHTS = str(find_weights(cfg.MODEL.WEIGHTS))
    path = last or cfg.MODEL.WEIGHTS
    trained = read_checkpoint(path).get("tagclip") if path else None
    trained = trained if isinstance(trained, dict) else {}
    if eval_only:
        cfg.MODEL.WEIGHTS = path
    if "seed" in trained and (eval_only or (last and cfg.SEED < 0)):
        cfg.SEED = trained["seed"]
    elif cfg.SEED == -1:
        cfg.SEED = comm.all_gather(secrets.randbelow(2**31))[0]
    return path


def model_provenance(model: nn.Module) -> Provenance:
    """Whose masks a model has learned from; it may be wrapped for several processes."""
    return getattr(model, "module", model).provenance


def announce_protocol(cfg: CfgNode, model: nn.Module) -> None:
    """Log the protocol of a run that begins, and what in its model's provenance needs an answer.

    Raises:
        ProtocolError: see `Claim.check`.
    """
    protocol = Protocol(cfg)
    claim = Claim(protocol, model_provenance(model))
    claim.check(cfg.MODEL.WEIGHTS)
    logger.info("Protocol: %s", claim.text)
    logger.info("Trained on masks: %s", claim.provenance.history)
    tested = (replace(claim, tested=protocol.dataset(name)) for name in cfg.DATASETS.TEST)
    pairs = {pair for each in (claim, *tested) for pair in each.similar_names}
    if text := question(sorted(pairs)):
        logger.warning("%s: %s", cfg.MODEL.WEIGHTS, text)


def announce_schedule(cfg: CfgNode) -> None:
    """Warn of a warm-up that never ends and of images that come several times in a round."""
    solver, names = cfg.SOLVER, cfg.DATASETS.TRAIN
    if solver.WARMUP_ITERS >= solver.MAX_ITER > 0:
        logger.warning(
            "SOLVER.WARMUP_ITERS: found %d with SOLVER.MAX_ITER %d, expected fewer: the learning "
            "rate rises to the end", solver.WARMUP_ITERS, solver.MAX_ITER,
        )  # fmt: skip
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            logger.warning(
                "DATASETS.TRAIN: found %s %d times: so often come its images in each round",
                name, names.count(name),
            )  # fmt: skip


def announce_shared_images(
    known: Sequence[dict[str, Any]],
    datasets: Iterable[str],
    what: str = "training images",
    harm: str = "its results are no measure of new images",
) -> None:
    """Warn of images that a run is trained and evaluated on, in the main process.

    Args:
        known: dataset dicts of the training, or of others that shall share no image.
        datasets: registered names of the test sets.
        what: the former are called in the warning.
        harm: what comes of it.
    """
    if not comm.is_main_process():
        return
    for name in datasets:
        own = DatasetCatalog.get(name)
        if shared := shared_images(known, own):
            theirs, ours = shared[0]
            logger.warning(
                "%s: %d of its %d images are %s, too (%s is %s); %s",
                name, len(shared), len(own), what, ours, theirs, harm,
            )  # fmt: skip


def run_info(cfg: CfgNode) -> dict[str, Any]:
    """Say what a result depends on: config, seed, fingerprints. Holds no paths.

    What the trainings before did to the protocol is in `Claim.record`; ``trained_sha256``, the
    `tensors_sha256` of what was evaluated, comes from `ZeroShotTrainer.test`, which has the model;
    so does the `training_record` of its weights.

    ``weights`` is the file that MODEL.WEIGHTS names: what is evaluated with --eval-only; what a
    training started from is the ``start`` of `Claim.record`. ``weights_dropped`` lists what the
    config leaves out of it. ``iterations`` is how long a run has trained that evaluates in between
    or at its end; None with --eval-only. ``test_augmentation`` is TEST.AUG, None if it is off.
    ``background`` is what may leave pixels without a class, None where nothing does.
    ``reduced_jpeg`` is INPUT.REDUCED_JPEG, which changes pixels, ``dtype`` what TEST.DTYPE means on
    the device.
    """
    weights = Path(cfg.MODEL.WEIGHTS)
    tagclip, protocol = cfg.MODEL.TAGCLIP, Protocol(cfg)
    clip = CLIPSource.from_config(cfg)
    return {
        "config": cfg.CONFIG_NAME,
        "config_hash": config_hash(cfg),
        "protocol": protocol.summary,
        "setting": protocol.setting,
        "seed": cfg.SEED,
        "iterations": _iterations(cfg),
        "weights": weights.name,
        "weights_sha256": file_sha256(weights) if weights.is_file() else None,
        "weights_dropped": _dropped(cfg, weights),
        "clip": Path(clip.name).stem,
        "clip_sha256": clip.sha256,
        "clip_pixel_statistics": clip.pixel_statistics,
        "templates": cfg.MODEL.CLIP.TEMPLATES,
        "synonyms": cfg.MODEL.CLIP.SYNONYMS,
        "training_vocabulary": protocol.training.fingerprint,
        "trusty_kind": tagclip.TRUSTY.KIND if tagclip.TRUSTY.ENABLED else None,
        "trusty_target": tagclip.TRUSTY.TARGET if tagclip.TRUSTY.ENABLED else None,
        "gate": tagclip.TEST.GATE,
        "gate_form": tagclip.TEST.GATE_FORM,
        "seen_bias": tagclip.TEST.SEEN_BIAS,
        "background": describe_background(tagclip.TEST) or None,
        "test_augmentation": dict(cfg.TEST.AUG) if cfg.TEST.AUG.ENABLED else None,
        "dtype": str(inference_dtype(cfg.TEST.DTYPE, cfg.MODEL.DEVICE)).removeprefix("torch."),
        "reduced_jpeg": cfg.INPUT.REDUCED_JPEG,
        "git_commit": _git_commit(),
    }


def _iterations(cfg: CfgNode) -> int | None:
    try:
        last = get_event_storage().iter
    except AssertionError:
        return None
    # A finished run that is resumed counts from the iteration that it would begin with; it may have
    # more of them than it is asked for now.
    return last if last >= cfg.SOLVER.MAX_ITER else last + 1


def training_goes_on(cfg: CfgNode) -> bool:
    """Whether an evaluation that begins now is one between two steps of a training."""
    iterations = _iterations(cfg)
    return iterations is not None and iterations < cfg.SOLVER.MAX_ITER


def _git_commit() -> str | None:
    """Commit of the checkout that this package is part of; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None


def _dropped(cfg: CfgNode, weights: Path) -> list[str]:
    """Tensors of a checkpoint that the model has no place for, as `TagCLIPCheckpointer` drops."""
    if cfg.MODEL.TAGCLIP.TRUSTY.ENABLED or not weights.is_file():
        return []
    return [name for name in read_checkpoint(weights)["model"] if name.startswith(TRUSTY_PARTS)]
