"""Checkpoints that hold what was trained and refuse what does not fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from tagclip.checkpoint.folder import (
    advise_other,
    begin_run,
    clean_folder,
    has_begun_anew,
    last_checkpoint,
    probe_room,
    serialised,
    write_durably,
)
from tagclip.checkpoint.identity import training_record
from tagclip.checkpoint.metadata import (
    changed_keys,
    check_metadata,
    checkpoint_metadata,
    metadata_differences,
    saved_provenance,
)
from tagclip.checkpoint.reading import EARLIER, LAST, find_weights, read_checkpoint
from tagclip.errors import CheckpointError
from tagclip.modeling.clip.weights import file_sha256
from tagclip.structures.provenance import Provenance, Stage
from tagclip.utils.state_dict import (
    check_finite,
    check_floating,
    kind_of_numbers,
    type_name,
)
from tagclip.utils.text import one_line

__all__ = ["TRUSTY_PARTS", "TagCLIPCheckpointer", "load_trained", "trained_state"]

# Begins the names of what a config may leave out of a checkpoint, the trusty token or the
# convolutional trusty head: MODEL.TAGCLIP.TRUSTY.ENABLED False.
TRUSTY_PARTS = "sem_seg_head.trusty_"
_LISTED = 8


class TagCLIPCheckpointer(DetectionCheckpointer):
    """Saves what was trained, atomically; loads strictly and without executing code.

    CLIP itself and the text bank are never stored: their fingerprint is.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        metadata: dict[str, Any] | None = None,
        stage: Stage | None = None,
        allow_partial: bool = False,
        save_to_disk: bool | None = None,
        before_save: Callable[[], None] | None = None,
        gather: Callable[[], None] | None = None,
        **checkpointables: Any,
    ) -> None:
        """Prepare.

        Args:
            model: the model, possibly wrapped for several processes.
            save_dir: folder of the checkpoints.
            metadata: stored with every checkpoint, see `checkpoint_metadata`.
            stage: what a training adds to the model's provenance; None does not train.
            allow_partial: load what fits and warn about the rest.
            save_to_disk: default: only in the main process.
            before_save: brings the model up to date in the process that saves it.
            gather: brings to that process what others keep; called in all of them.
            checkpointables: optimizer, trainer and so on, restored on resume. Without any, a
                checkpoint is loaded for evaluation.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.metadata, self.allow_partial = metadata or {}, allow_partial
        self._stage, self._before_save, self._gather = stage, before_save, gather
        self.logger = logging.getLogger(__name__)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth and then ``last_checkpoint``; either is complete or absent.

        Every process of a training calls this; the one that ``save_to_disk`` says writes.

        Args:
            name: file name without suffix.
            kwargs: more to store: tensors, numbers, text, and lists and dicts of them.

        Raises:
            CheckpointError: the folder cannot be written, or the disk is full.
        """
        if not self.save_dir:
            return
        if self._gather is not None:
            self._gather()
        if not self.save_to_disk:
            return
        if self._before_save is not None:
            self._before_save()
        data = {"model": trained_state(self.model), "tagclip": self._current_metadata()}
        data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        clean_folder(path.parent)
        self.logger.info("Saving checkpoint to %s", path)
        write_durably(path, serialised(data | kwargs))
        self.tag_last_checkpoint(path.name)

    def _current_metadata(self) -> dict[str, Any]:
        """With what the model has been loaded with and trained on since it was built."""
        provenance = getattr(self.model, "provenance", Provenance(is_complete=False))
        return self.metadata | {"provenance": provenance.to_json()}

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that ``--resume`` takes.

        Raises:
            CheckpointError: the folder cannot be written, or the disk is full.
        """
        write_durably(Path(self.save_dir) / LAST, last_filename_basename)

    def begin(self) -> None:
        """Begin a new run: ``--resume`` leaves the checkpoints of an earlier one alone from now on.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        if self.save_dir and self.save_to_disk and begin_run(Path(self.save_dir)):
            self.logger.info(
                "%s holds checkpoints of an earlier run: this one replaces those of the same "
                "names, and --resume goes on with this one", self.save_dir,
            )  # fmt: skip

    def probe(self) -> None:
        """Find out before a training whether a checkpoint of it can be written.

        Raises:
            CheckpointError: the folder cannot be written, or has no room for the weights and
                AdamW's two moments of each.
        """
        if self.save_dir and self.save_to_disk:
            tensors = trained_state(self.model).values()
            size = 3 * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            probe_room(Path(self.save_dir), size)

    def has_checkpoint(self) -> bool:
        """Whether there is one to continue from, see `last_checkpoint`."""
        return bool(self.save_dir and last_checkpoint(self.save_dir))

    def get_checkpoint_file(self) -> str:
        """Path of the checkpoint to continue from, see `last_checkpoint`."""
        return last_checkpoint(self.save_dir)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continue from ``last_checkpoint``, or start from ``path``.

        Args:
            path: where a new run starts from; "" is CLIP.
            resume: whether to continue. A folder without any checkpoint starts a new run, which
                is logged, so that one command serves the first start and every restart.

        Returns:
            What else the checkpoint holds.

        Raises:
            CheckpointError: see `load`; or there are checkpoints, but none of a training, and no
                ``last_checkpoint``; or that training began from another file than ``path``.
        """
        tag = Path(self.save_dir) / LAST
        if resume and self.has_checkpoint():
            if not tag.exists():
                self.logger.warning("%s: no such file: continuing from the latest iteration", tag)
            found = self.get_checkpoint_file()
            rest = self.load(found)
            self._check_start(path, found)
            return rest
        if resume:
            is_begun, advice = has_begun_anew(self.save_dir), advise_other(tag)
            if advice and not is_begun:
                raise CheckpointError(f"{tag}: no such file, expected one to resume from{advice}")
            self.logger.warning(
                "%s holds no checkpoint to resume from%s: starting a new run%s", self.save_dir,
                " of the run that began there last" * is_begun,
                f" (to go on with an earlier one, stop this, edit {tag}{advice})" * bool(advice),
            )  # fmt: skip
        return self.load(path, checkpointables=[])

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; "" starts from CLIP.

        Args:
            path: see `read_checkpoint`.
            checkpointables: names of those to restore; None restores all.

        Returns:
            What else the checkpoint holds.

        Raises:
            CheckpointError: see `read_checkpoint`; or it does not fit the model, or lacks what is
                to be restored; or there is nothing to evaluate.
        """
        restored = list(self.checkpointables) if checkpointables is None else checkpointables
        if not path:
            is_lenient = self.checkpointables or self.allow_partial
            if not is_lenient and trained_state(self.model):
                raise CheckpointError("MODEL.WEIGHTS is empty, expected a checkpoint to evaluate")
            self.logger.info("MODEL.WEIGHTS is empty: starting from CLIP")
            self._begin(Provenance())
            return {}
        path = str(find_weights(path))
        self.logger.info("Loading checkpoint %s", path)
        return self.load_content(path, read_checkpoint(path), restored)

    def load_content(
        self, path: str | Path, checkpoint: dict[str, Any], restored: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Load a checkpoint that has been read.

        Args:
            path: what messages call it.
            checkpoint: as `read_checkpoint` returns it; what is loaded is taken out.
            restored: names of the checkpointables to restore.

        Returns:
            What else the checkpoint holds.

        Raises:
            CheckpointError: it does not fit the model, or lacks what is to be restored.
        """
        saved = checkpoint.get("tagclip")
        if not isinstance(saved, dict):
            self.logger.warning(
                "%s holds no fingerprints: whether CLIP and the classes are those it was trained "
                "with cannot be checked", path,
            )  # fmt: skip
            saved = {}
        check_metadata(saved, path)
        differences = metadata_differences(
            saved, self.metadata, compare_classes=not self.checkpointables or bool(restored)
        )
        self._load_state(path, checkpoint.pop("model"), differences)
        for key in restored:
            self._restore(path, key, checkpoint)
        if restored:
            self._continue(saved_provenance(saved, path), path)
        else:
            self._begin(saved_provenance(saved, path), path)
        if not self._stage:
            self.model.training_record = _training_record(checkpoint, saved, path)
        others, free = changed_keys(saved, self.metadata) if restored else ("", "")
        if restored:
            self._record_resumed(saved, others, checkpoint.get("iteration"))
        if others:
            self.logger.warning(
                "Resuming with other keys or data, the result is that of another run, going on "
                "at image iteration x batch: %s", others,
            )  # fmt: skip
        if free:
            self.logger.info("Resuming with other keys, which change no weight: %s", free)
        return checkpoint

    def _record_resumed(self, saved: dict[str, Any], others: str, iteration: Any) -> None:
        """A training of several configs is none of the last one, whatever that says."""
        resumed = list(saved.get("resumed") or ())
        if others:
            resumed.append(f"after iteration {iteration} with {others}")
        if resumed:
            self.metadata["resumed"] = resumed
            record = training_record(self.metadata, Path(self.save_dir))
            self.model.training_record = self.model.training_record | record

    def _continue(self, provenance: Provenance, path: str | Path) -> None:
        """Its training is among the stages already, with its start, if it is the same one."""
        last = provenance.stages[-1] if provenance.stages else None
        if last and replace(last, start="", start_sha256="") == self._stage:
            self.model.provenance = provenance
        else:
            self._begin(provenance, path)

    def _check_start(self, path: str, resumed: str) -> None:
        """Refuse to go on with the training of another start than ``path``; "" may be any."""
        if not path or not os.path.exists(path) or not self.model.provenance.stages:
            return
        last = self.model.provenance.stages[-1]
        if last.start_sha256 not in map(file_sha256, (find_weights(path), Path(resumed))):
            raise CheckpointError(
                f"MODEL.WEIGHTS: found {path}, expected what the training in {self.save_dir} began "
                f"from ({last.start or 'CLIP'}), which --resume continues; leave it out, or "
                "give MODEL.WEIGHTS '' where the config names it, to go on with that training, or "
                "name another OUTPUT_DIR"
            )

    def _begin(self, provenance: Provenance, start: str | Path = "") -> None:
        """Give the model the provenance of its start, and of its own training if there is one."""
        if self._stage:
            path = Path(start)
            sha256 = file_sha256(path) if path.is_file() else ""
            stage = replace(self._stage, start=path.name, start_sha256=sha256)
            provenance = provenance.then(stage)
        self.model.provenance = provenance

    def _load_state(self, path: str, state: dict[str, Tensor], differences: list[str]) -> None:
        """Load the tensors if everything fits; what does not fit is listed in one line.

        Frozen tensors are in full copies of others only: they have to be those of the model. A
        model without trusty token drops that of the checkpoint.
        """
        own, frozen = trained_state(self.model), _frozen_parameters(self.model)
        dropped = {name for name in state if name.startswith(TRUSTY_PARTS)}
        if dropped and not any(name.startswith(TRUSTY_PARTS) for name in own):
            self.logger.warning(
                "%s: its trusty token is dropped, MODEL.TAGCLIP.TRUSTY.ENABLED is False", path
            )
            state = {name: t for name, t in state.items() if name not in dropped}
        fitting = {}
        for name in sorted(own.keys() | state.keys()):
            found, expected = state.get(name), own.get(name, frozen.get(name))
            if _size(found) != _size(expected):
                differences.append(f"{name}: found {_size(found)}, expected {_size(expected)}")
            elif kind_of_numbers(found) != kind_of_numbers(expected):
                differences.append(
                    f"{name}: found {type_name(found)}, expected {type_name(expected)}"
                )
            elif name in own:
                fitting[name] = found
            elif not torch.equal(found.to(expected), expected):
                differences.append(
                    f"{name}: found other values, expected those of the config's CLIP"
                )
        if differences:
            listed = one_line("; ".join(differences[:_LISTED]))
            text = f"{path}: does not fit the model: {listed}"
            if len(differences) > _LISTED:
                text += f"; and {len(differences) - _LISTED} more"
            if not self.allow_partial:
                raise CheckpointError(
                    f"{text}; use the config it was trained with, or evaluate what fits with "
                    "TEST.ALLOW_PARTIAL_WEIGHTS True"
                )
            self.logger.warning("%s; loading the rest", text)
        self.model.load_state_dict(fitting, strict=False)

    def _restore(self, path: str, key: str, checkpoint: dict[str, Any]) -> None:
        if key not in checkpoint:
            raise CheckpointError(
                f"{path}: found no state of the {key}, expected a checkpoint of this training to "
                "resume from; start a new run from it with MODEL.WEIGHTS and without --resume"
            )
        state = checkpoint.pop(key)
        _check_numbers(path, key, state)
        _check_iteration(path, key, state, checkpoint.get("iteration"))
        try:
            self.checkpointables[key].load_state_dict(state)
        # A damaged state ends in whatever the optimizer or detectron2 makes of it.
        except (LookupError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: the state of the {key} does not fit ({one_line(error)}); "
                "resume with the SOLVER keys of the interrupted run"
            ) from error


def _training_record(
    checkpoint: dict[str, Any], saved: dict[str, Any], path: str | Path
) -> dict[str, Any]:
    """With ``trained_iterations``; nothing of a file that no training wrote as it is."""
    iteration = checkpoint.get("iteration")
    if type(iteration) is not int:
        return {}
    return training_record(saved, Path(path).parent) | {"trained_iterations": iteration + 1}


def load_trained(
    cfg: CfgNode,
    weights: str | None = None,
    *,
    model: nn.Module | None = None,
    strict: bool = False,
    **checkpointables: Any,
) -> nn.Module:
    """Build the model of a config and load what was trained.

    Args:
        cfg: see `tagclip.config`.
        weights: path of the checkpoint; None takes MODEL.WEIGHTS.
        model: built from ``cfg`` already; None builds it.
        strict: refuse what does not fit although TEST.ALLOW_PARTIAL_WEIGHTS is True.
        checkpointables: of a training that is to start from the weights. It allows "", which is
            CLIP, and takes all of the weights or none. Without any, they are loaded to evaluate.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: see `TagCLIPCheckpointer.load`.
        TagCLIPError: what the model is built of is not in order.
    """
    model = (build_model(cfg) if model is None else model).eval()
    TagCLIPCheckpointer(
        model,
        metadata=checkpoint_metadata(cfg, model),
        allow_partial=cfg.TEST.ALLOW_PARTIAL_WEIGHTS and not (strict or checkpointables),
        save_to_disk=False,
        **checkpointables,
    ).load(cfg.MODEL.WEIGHTS if weights is None else weights, checkpointables=[])
    return model


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return name -> tensor of everything but frozen parameters."""
    frozen = _frozen_parameters(model)
    return {name: t for name, t in model.state_dict().items() if name not in frozen}


def _frozen_parameters(model: nn.Module) -> dict[str, Tensor]:
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: p.detach() for name, p in parameters if not p.requires_grad}


def _check_numbers(path: str, key: str, state: Any) -> None:
    """Refuse an optimizer's state of integers or of what is not finite.

    torch would round the former to the type of the weights; the latter would make the loss nan.

    Args:
        path: of the checkpoint.
        key: what the state is of.
        state: an optimizer's, or with one under ``optimizer``, or of something else. In it
            ``state`` is number of a weight -> name -> tensor.

    Raises:
        CheckpointError: names the tensors.
    """
    if not isinstance(state, dict):
        return
    if "optimizer" in state:
        _check_numbers(path, f"{key}.optimizer", state["optimizer"])
    moments = state.get("state")
    tensors = {
        f"{key}.state.{number}.{name}": value
        for number, names in (moments.items() if isinstance(moments, dict) else ())
        if isinstance(names, dict)
        for name, value in names.items()
        if isinstance(value, Tensor)
    }
    check_floating(tensors, path)
    check_finite(tensors, path, EARLIER)


def _check_iteration(path: str, key: str, state: Any, expected: Any) -> None:
    """Refuse an iteration that is none, or not that of the file: the schedule would go by it.

    Args:
        path: of the checkpoint.
        key: what the state is of; a trainer's has an ``iteration``.
        state: of it.
        expected: iteration that the file says beside it; None: it says none.

    Raises:
        CheckpointError: names both.
    """
    if not isinstance(state, dict) or "iteration" not in state:
        return
    found = state["iteration"]
    is_one = type(found) is int and found >= 0
    if not is_one or (expected is not None and found != expected):
        wanted = "0 or more" if expected is None else f"{expected!r:.40} as in the file itself"
        raise CheckpointError(
            f"{path}: found {key}.iteration {found!r:.40}, expected {wanted}; the file is damaged: "
            f"{EARLIER}"
        )


def _size(tensor: Tensor | None) -> str:
    if tensor is None:
        return "nothing"
    return "x".join(map(str, tensor.shape)) or "a scalar"
