"""What a run depends on: the checkpoint and the seed it starts from, the record in its results."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from tagclip.data import protocol_summary, training_vocabulary
from tagclip.engine.checkpoint import TRUSTY_TOKEN, TagCLIPCheckpointer, read_checkpoint
from tagclip.modeling.backbone import CLIPSource

__all__ = ["resolve_weights_and_seed", "run_info"]


def resolve_weights_and_seed(cfg: CfgNode, *, eval_only: bool, resume: bool) -> str:
    """Decide which checkpoint a run starts from and which seed it has; writes them into ``cfg``.

    With ``resume``, the last checkpoint in OUTPUT_DIR goes before MODEL.WEIGHTS, as everywhere in
    detectron2, and a SEED of -1 becomes that run's. Evaluation takes the seed of its checkpoint.
    Every other SEED of -1 is drawn, the same one in all processes.

    Args:
        cfg: not frozen.
        eval_only: whether only to evaluate; MODEL.WEIGHTS becomes the checkpoint.
        resume: whether to continue in OUTPUT_DIR.

    Returns:
        Path of the checkpoint; "" is CLIP.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or unsafe.
    """
    folder = TagCLIPCheckpointer(nn.Identity(), cfg.OUTPUT_DIR, save_to_disk=False)
    continues = resume and folder.has_checkpoint()
    path = folder.get_checkpoint_file() if continues else cfg.MODEL.WEIGHTS
    trained = read_checkpoint(path).get("tagclip", {}) if path else {}
    if eval_only:
        cfg.MODEL.WEIGHTS = path
    if "seed" in trained and (eval_only or (continues and cfg.SEED < 0)):
        cfg.SEED = trained["seed"]
    elif cfg.SEED == -1:
        cfg.SEED = comm.all_gather(secrets.randbelow(2**31))[0]
    return path


def run_info(cfg: CfgNode) -> dict[str, Any]:
    """Say what a result depends on: protocol, seed, fingerprints. Holds no paths.

    ``weights`` is the file that MODEL.WEIGHTS names: what is evaluated with --eval-only, what
    training started from otherwise ("" for CLIP). ``weights_dropped`` lists what the config
    leaves out of it.
    """
    weights = Path(cfg.MODEL.WEIGHTS)
    tagclip = cfg.MODEL.TAGCLIP
    return {
        "protocol": protocol_summary(cfg),
        "setting": cfg.DATASETS.ZERO_SHOT.SETTING,
        "seed": cfg.SEED,
        "weights": weights.name,
        "weights_sha256": _sha256(weights) if weights.is_file() else None,
        "weights_dropped": _dropped(cfg, weights),
        "clip": Path(cfg.MODEL.CLIP.NAME).stem,
        "clip_sha256": CLIPSource.from_config(cfg).sha256,
        "templates": cfg.MODEL.CLIP.TEMPLATES,
        "training_vocabulary": training_vocabulary(cfg).fingerprint,
        "trusty_target": tagclip.TRUSTY.TARGET if tagclip.TRUSTY.ENABLED else None,
        "gate": tagclip.TEST.GATE,
        "seen_bias": tagclip.TEST.SEEN_BIAS,
        "git_commit": _git_commit(),
    }


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
    return [TRUSTY_TOKEN] if TRUSTY_TOKEN in read_checkpoint(weights)["model"] else []


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
