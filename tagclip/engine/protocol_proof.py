"""Proof, on a run's own data, that training depends on nothing that the protocol hides.

The same iterations are trained from the same seed with the labels as they are, with every label
of an unseen class scrambled, and with the names of unseen classes replaced. Weights and losses
must be the same in every bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import CallbackHook, LRScheduler
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from tagclip.checkpoint.checkpointer import trained_state
from tagclip.data import Protocol
from tagclip.data.claim import Claim, question
from tagclip.data.datasets.changed_copies import (
    changed_datasets,
    rename_unseen,
    scramble_files,
    write_vocabulary,
)
from tagclip.engine.trainer import ZeroShotTrainer
from tagclip.errors import ConfigError, ProtocolError
from tagclip.structures.provenance import Provenance
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import temporary_folder

__all__ = ["ProtocolProof", "prove_protocol"]

_LABELS, _NAMES = "unseen labels scrambled", "unseen names replaced"


@dataclass(frozen=True)
class _Run:
    """A short training: its start, weights at its end, how far they moved, losses by name."""

    start: Provenance
    weights: dict[str, Tensor]
    moved: float
    losses: dict[str, list[float]]


@dataclass(frozen=True)
class _Difference:
    """How many trainable tensors and losses of two runs differ in any bit, and of how many."""

    tensors: int
    all_tensors: int
    largest: float
    losses: int
    all_losses: int

    @classmethod
    def between(cls, run: _Run, other: _Run) -> _Difference:
        """Compare; ``largest`` is the greatest difference of two weights."""
        values = [
            (value, changed)
            for name, history in run.losses.items()
            for value, changed in zip(history, other.losses[name], strict=True)
        ]
        return cls(
            tensors=sum(
                not torch.equal(_bits(weight), _bits(other.weights[name]))
                for name, weight in run.weights.items()
            ),
            all_tensors=len(run.weights),
            largest=_distance(run.weights, other.weights),
            losses=sum(value != changed for value, changed in values),
            all_losses=len(values),
        )

    def __bool__(self) -> bool:
        return bool(self.tensors or self.losses)


@dataclass(frozen=True)
class ProtocolProof:
    """What the runs have shown.

    Attributes:
        cfg: of the run.
        provenance: of what it starts from.
        iterations: trained in each run.
        files: label files that the drawn images have, each counted once.
        pixels: pixels of unseen classes in these files; each got another label.
        moved: how far a weight moved at most.
        differences: what was changed -> the difference that it made.
        repeated: the difference that the unchanged run makes when it is repeated; None if none
            of the others made any.
    """

    cfg: CfgNode
    provenance: Provenance
    iterations: int
    files: int
    pixels: int
    moved: float
    differences: dict[str, _Difference]
    repeated: _Difference | None

    @property
    def _claim(self) -> Claim:
        return Claim(Protocol(self.cfg), self.provenance)

    def report(self) -> str:
        """Return the figures as lines of text and a table."""
        rows = [
            (
                change,
                f"{found.largest:g}",
                f"{found.tensors} of {found.all_tensors}",
                f"{found.losses} of {found.all_losses}",
            )
            for change, found in self.differences.items()
        ]
        header = ("changed", "max weight difference", "tensors that differ", "losses that differ")
        images = self.iterations * self.cfg.SOLVER.IMS_PER_BATCH
        return (
            f"Protocol: {self._claim.text}\n"
            f"Starts from: {self.provenance.history}\n"
            f"{self.iterations} iterations, seed {self.cfg.SEED}: {images} images seen, of "
            f"{self.files} files; {self.pixels} pixels with unseen labels scrambled; weights moved "
            f"by up to {self.moved:.3g}\n{tabulate(rows, header, disable_numparse=True)}"
        )

    def conclusion(self) -> str:
        """Say in one sentence what is proven.

        Raises:
            ProtocolError: something differs, or the runs show nothing.
        """
        broken = [change for change, found in self.differences.items() if found]
        if broken and self.repeated:
            raise ProtocolError(
                f"--prove-protocol: found weights that differ by up to {self.repeated.largest:g} "
                "when the unchanged run is repeated, expected the same bits, or the proof says "
                "nothing; try MODEL.DEVICE cpu"
            )
        if broken:
            raise ProtocolError(self._accusation(" and with ".join(broken), broken[0]))
        if self.moved == 0:
            raise ProtocolError(
                f"--prove-protocol: found no weight that moved in {self.iterations} iterations, "
                "expected some, or the proof says nothing; take more iterations"
            )
        if trained := self._claim.trained_unseen:
            raise ProtocolError(
                f"--prove-protocol: found {self.cfg.MODEL.WEIGHTS} trained on masks of "
                f"{len(trained)} unseen classes ({', '.join(trained)}), expected none: their "
                "labels have no effect now, but had one before; start from other weights, or take "
                "another split"
            )
        text = "no label of an unseen class has an effect. Their names are used, which the "
        text += "transductive setting allows."
        if _NAMES in self.differences:
            text = "no label or name of an unseen class has an effect."
        doubts = [
            f"a training before {what} {', '.join(names)}"
            for what, names in self._claim.earlier_traces.items()
        ]
        if not self.provenance.is_complete:
            doubts.append(
                f"the ancestry of {self.cfg.MODEL.WEIGHTS} is unknown: which masks have trained it "
                "before cannot be said"
            )
        doubts += filter(None, [question(self._claim.similar_names)])
        if doubts:
            return f"For these iterations {text} But {'; '.join(doubts)}."
        return f"Proved for these iterations: {text}"

    def _accusation(self, changes: str, first: str) -> str:
        found, remedy = self.differences[first], "look for what reads them in training"
        if Protocol(self.cfg).reads_novel_masks:
            remedy = (
                "MODEL.TAGCLIP.TRUSTY.TARGET or SELF_TRAINING.REGION is 'novel', which reads where "
                "unseen pixels are: take 'seen' and 'unlabeled'"
            )
        return (
            f"--prove-protocol: with {changes}, found {found.tensors} of {found.all_tensors} "
            f"weight tensors (by up to {found.largest:g}) and {found.losses} of "
            f"{found.all_losses} losses changed, expected none; {remedy}"
        )


def prove_protocol(cfg: CfgNode, iterations: int) -> ProtocolProof:
    """Train a few iterations several times and compare; writes temporary files only.

    Args:
        cfg: of the run, see `tagclip.config`; its seed, weights and schedule count.
        iterations: of each run, at most SOLVER.MAX_ITER.

    Raises:
        ConfigError: there is nothing to prove, or the number of iterations does not suit.
        ProtocolError: no drawn label has a pixel of an unseen class.
        TagCLIPError: whatever a training raises.
    """
    vocabulary = _check(cfg, iterations)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST, cfg.TEST.EXPECTED_RESULTS, cfg.OUTPUT_DIR = (), [], ""
    with temporary_folder() as folder, _reproducible(cfg.MODEL.DEVICE):
        files = _drawn_files(cfg, iterations)
        copies, pixels = scramble_files(files, vocabulary, cfg.SEED, folder)
        if pixels == 0:
            raise ProtocolError(
                f"--prove-protocol: found 0 pixels of unseen classes in the {len(files)} labels "
                f"of {iterations} iterations, expected some, or the proof says nothing; take more "
                "iterations or another split"
            )
        changes: dict[str, dict[str, Any]] = {_LABELS: {"labels": copies}}
        if vocabulary.labels == "colors":
            # The copies hold ids.
            either = write_vocabulary(replace(vocabulary, labels=""), folder / "either.json")
            changes[_LABELS]["vocabulary"] = either
        if cfg.DATASETS.ZERO_SHOT.SETTING == "inductive":
            renamed = write_vocabulary(rename_unseen(vocabulary), folder / "renamed.json")
            changes[_NAMES] = {"vocabulary": renamed}
        with tqdm(total=iterations * (1 + len(changes)), disable=None, leave=False) as bar:
            original = _train(cfg, iterations, bar)
            differences, repeated = {}, None
            for name, change in changes.items():
                with changed_datasets(cfg, **change) as changed:
                    run = _train(changed, iterations, bar)
                differences[name] = _Difference.between(original, run)
            if any(differences.values()):
                bar.total += iterations
                repeated = _Difference.between(original, _train(cfg, iterations, bar))
    return ProtocolProof(
        cfg,
        original.start,
        iterations,
        len(files),
        pixels,
        original.moved,
        differences,
        repeated,
    )


def _check(cfg: CfgNode, iterations: int) -> Vocabulary:
    """Return the full class list of the training data, if there is anything to prove."""
    zero_shot, advice = cfg.DATASETS.ZERO_SHOT, "leave --prove-protocol out"
    if zero_shot.SETTING == "supervised":
        raise ConfigError(
            "--prove-protocol: found DATASETS.ZERO_SHOT.SETTING supervised, expected inductive or "
            f"transductive: supervised training reads all labels, nothing to prove; {advice}"
        )
    if zero_shot.SKIP_UNSEEN_IMAGES:
        raise ConfigError(
            "--prove-protocol: found DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES True, expected False: "
            "the images that are left have no unseen label to scramble; set it to False"
        )
    if not 1 <= iterations <= cfg.SOLVER.MAX_ITER:
        raise ConfigError(
            f"--prove-protocol: found {iterations} iterations, expected 1 to SOLVER.MAX_ITER "
            f"({cfg.SOLVER.MAX_ITER})"
        )
    return Protocol(cfg).full


def _drawn_files(cfg: CfgNode, iterations: int) -> list[str]:
    """Label files that so many iterations read, each once."""
    stream = ZeroShotTrainer.build_train_loader(cfg)
    drawn = (stream.source(i) for i in range(iterations * cfg.SOLVER.IMS_PER_BATCH))
    # The mapper tells which image has no label file.
    files = dict.fromkeys(sample.get("sem_seg_file_name") for sample in drawn)
    return [path for path in files if path is not None]


class _ProofTrainer(ZeroShotTrainer):
    """Learns as any run does, but evaluates and writes nothing."""

    def build_hooks(self) -> list[HookBase]:
        learning = [hook for hook in (self._trusty_training, self._trusty_fitting) if hook]
        return [*learning, LRScheduler()]


def _train(cfg: CfgNode, iterations: int, bar: tqdm) -> _Run:
    cfg = cfg.clone()
    # A relative trusty map is fitted on the first images of the stream: here on those alone whose
    # labels are scrambled.
    relative = cfg.MODEL.TAGCLIP.TRUSTY.RELATIVE
    relative.FIT_IMAGES = min(relative.FIT_IMAGES, iterations * cfg.SOLVER.IMS_PER_BATCH)
    trainer = _ProofTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.max_iter = iterations
    trainer.register_hooks([CallbackHook(after_step=lambda _: bar.update())])
    provenance = trainer.model.provenance
    # Without this training itself.
    start = replace(provenance, stages=provenance.stages[:-1])
    before = _copied(trainer.model)
    trainer.train()
    weights = _copied(trainer.model)
    losses = {
        name: [value for value, _ in history.values()]
        for name, history in trainer.storage.histories().items()
        if "loss" in name
    }
    learned = {n: before[n] for n, p in trainer.model.named_parameters() if p.requires_grad}
    return _Run(start, weights, _distance(learned, weights), losses)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint would hold of the model: what was trained, and what was fitted."""
    return {name: t.detach().cpu().clone() for name, t in trained_state(model).items()}


def _distance(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    return max(
        float((weight.double() - others[name].double()).abs().max())
        for name, weight in weights.items()
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


@contextmanager
def _reproducible(device: str) -> Iterator[None]:
    """On a GPU, ask torch for kernels that give the same bits every time."""
    if not device.startswith("cuda"):
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
