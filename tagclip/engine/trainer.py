"""ZeroShotTrainer: detectron2's DefaultTrainer for zero-shot segmentation."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tagclip
from tagclip.checkpoint import (
    TagCLIPCheckpointer,
    checkpoint_metadata,
    load_trained,
    trained_state,
)
from tagclip.checkpoint.identity import tensors_sha256, training_record
from tagclip.config.checks import (
    check_config,
    check_device,
    check_registered,
    check_training,
)
from tagclip.data import Protocol, ZeroShotDatasetMapper
from tagclip.data.claim import Claim
from tagclip.data.datasets.register import check_dataset_name
from tagclip.data.datasets.selection import (
    refuse_masks,
    refuse_moved_words,
    refuse_unlabelled,
    without_unseen_images,
)
from tagclip.engine.curve_file import with_valid_json
from tagclip.engine.data_stream import (
    StreamLoader,
    files_sha256,
    leave_signals_to_main,
    seeded_step,
    shared_samples,
)
from tagclip.engine.finished_run import refuse_finished_run
from tagclip.engine.interruptions import PatientWriter, interruptible, stop_listening
from tagclip.engine.own_folder import own_folder
from tagclip.engine.run_info import (
    announce_protocol,
    announce_schedule,
    announce_shared_images,
    model_provenance,
    run_info,
    training_goes_on,
)
from tagclip.engine.training_loop import TrainingLoop
from tagclip.engine.trusty_fitting import TrustyFitting
from tagclip.engine.trusty_training import TrustyTraining
from tagclip.errors import ConfigError, DatasetError
from tagclip.evaluation import ZeroShotSemSegEvaluator
from tagclip.evaluation.evaluator import METRICS
from tagclip.evaluation.results import read_result_rows
from tagclip.evaluation.run_folder import refuse_score
from tagclip.modeling.clip import resolve_pixels
from tagclip.modeling.precision import check_training_precision
from tagclip.solver.lr_scheduler import build_lr_scheduler
from tagclip.solver.optimizer import TRUSTY_HEAD, build_optimizer
from tagclip.structures.provenance import Provenance
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.quiet import silence
from tagclip.utils.text import did_you_mean

__all__ = ["ZeroShotTrainer"]


class ZeroShotTrainer(DefaultTrainer):
    """Trains and evaluates; a config is all it needs.

    No hook picks a checkpoint by an evaluation metric: unseen classes must not choose a model.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build model, data, optimizer and hooks.

        Args:
            cfg: see `tagclip.config`; a seed below 0 must have been drawn before.
        """
        tagclip.register()
        # DefaultTrainer's own constructor would build another loop and checkpointer.
        TrainerBase.__init__(self)
        check_config(cfg)
        check_device(cfg.MODEL.DEVICE)
        _check_seed(cfg)
        cfg = resolve_pixels(cfg)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        stage = Protocol(cfg).stage()
        seeded_step(cfg.SEED, 0, -1)
        model = self.build_model(cfg)
        model.provenance = Provenance().then(stage)
        optimizer = self.build_optimizer(cfg, model)
        amp = cfg.SOLVER.AMP
        check_training_precision(amp.ENABLED, amp.DTYPE, cfg.MODEL.DEVICE)
        self._stream = self.build_train_loader(cfg)
        self._trainer = TrainingLoop(
            _distribute(model),
            self._stream,
            optimizer,
            seed=cfg.SEED,
            accumulate=cfg.SOLVER.ACCUMULATE,
            amp_dtype=getattr(torch, amp.DTYPE) if amp.ENABLED else None,
            dump_dir=cfg.OUTPUT_DIR or None,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self._trusty_training = TrustyTraining.from_config(cfg, model)
        parts = {"trusty_training": self._trusty_training} if self._trusty_training else {}
        self._trusty_fitting = TrustyFitting.from_config(cfg, model, self._stream)
        self.checkpointer = TagCLIPCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            metadata=checkpoint_metadata(cfg, model)
            | {
                "training_files": files_sha256(self._stream.samples),
                "label_colors": Protocol(cfg).full.color_fingerprint,
                "processes": comm.get_world_size(),
            },
            stage=stage,
            before_save=self._trusty_fitting.fit if self._trusty_fitting else None,
            gather=self._trusty_training.gather if self._trusty_training else None,
            optimizer=optimizer,
            scaler=self._trainer.grad_scaler,
            trainer=weakref.proxy(self),
            **parts,
        )
        model.training_record = training_record(self.checkpointer.metadata, Path(cfg.OUTPUT_DIR))
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @classmethod
    def check(cls, cfg: CfgNode, *, weights: str, train: bool, overwrite: bool = False) -> None:
        """Build every part once and drop it: mistakes come out before anything is written.

        Args:
            cfg: see `tagclip.config`.
            weights: path of the checkpoint that the run starts from; "" is CLIP.
            train: whether the run trains; it only evaluates otherwise.
            overwrite: whether a training may go on in the folder of another finished run.

        Raises:
            TagCLIPError: a key, a dataset, a vocabulary, the CLIP weights or the checkpoint are
                not in order, or OUTPUT_DIR holds another finished run or a score.
        """
        check_config(cfg)
        _check_expected(cfg)
        if train:
            check_training(cfg)
        refuse_score(cfg.OUTPUT_DIR)
        with silence():
            Protocol(cfg).check()
            check_device(cfg.MODEL.DEVICE)
            check_registered(cfg)
            amp = cfg.SOLVER.AMP
            check_training_precision(train and amp.ENABLED, amp.DTYPE, cfg.MODEL.DEVICE)
            if not train:
                _check_tested(cfg)
            read_result_rows(_results_table(cfg))
            for name in cfg.DATASETS.TEST:
                _check_evaluator_type(name)
                cls.build_test_loader(cfg, name)
            parts = {}
            if train:
                # The training itself looks for unseen classes, once.
                all_images = cfg.clone()
                all_images.DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES = False
                _check_labelled(cfg, cls.build_train_loader(all_images))
            model = cls.build_model(cfg)
            if train:
                parts["optimizer"] = cls.build_optimizer(cfg, model)
                cls.build_lr_scheduler(cfg, parts["optimizer"])
            load_trained(cfg, weights, model=model, **parts)
            Claim(Protocol(cfg), model.provenance).check(weights)
            if train and not overwrite:
                own = cls.auto_scale_workers(cfg, comm.get_world_size())
                metadata = checkpoint_metadata(own, model) | {"processes": comm.get_world_size()}
                refuse_finished_run(cfg.OUTPUT_DIR, metadata, weights)

    def build_hooks(self) -> list[HookBase]:
        """detectron2's hooks, after the trusty head's steps, ready for interruptions."""
        first = [hook for hook in (self._trusty_training, self._trusty_fitting) if hook]
        hooks = super().build_hooks()
        if not self.cfg.DATASETS.TEST:
            hooks = [hook for hook in hooks if not isinstance(hook, EvalHook)]
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        return [*first, *interruptible(hooks, self.checkpointer, period)]

    def build_writers(self) -> list[EventWriter]:
        """detectron2's writers of the training curve, whose json is valid."""
        return [PatientWriter(with_valid_json(writer)) for writer in super().build_writers()]

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue in OUTPUT_DIR, or start from MODEL.WEIGHTS, as detectron2 does.

        Args:
            resume: whether to continue.

        Raises:
            CheckpointError: see `TagCLIPCheckpointer.resume_or_load`.
            ConfigError: OUTPUT_DIR holds another finished run, which a new one would replace.
        """
        if not resume:
            cfg = self.cfg
            refuse_finished_run(cfg.OUTPUT_DIR, self.checkpointer.metadata, cfg.MODEL.WEIGHTS)
        super().resume_or_load(resume)

    def before_train(self) -> None:
        """Start the stream where training starts; say so if there is nothing to train.

        Raises:
            DatasetError: no image has a label to learn.
            ProtocolError: masks of unseen classes have trained what the run starts from.
        """
        _check_labelled(self.cfg, self._stream)
        announce_protocol(self.cfg, self.model)
        announce_schedule(self.cfg)
        announce_shared_images(self._stream.samples, self.cfg.DATASETS.TEST)
        if self.start_iter >= self.max_iter:
            logging.getLogger(__name__).info(
                "Nothing is left to train: %d iterations are done, SOLVER.MAX_ITER is %d%s",
                self.start_iter, self.max_iter, "; evaluating" if self.cfg.DATASETS.TEST else "",
            )  # fmt: skip
        self._stream.start_iter = self.start_iter
        super().before_train()

    def after_train(self) -> None:
        """Evaluate a finished run only; detectron2 does so after a failed last iteration, too."""
        # A finished run that is resumed has counted one more.
        self.iter = min(self.iter, max(self.max_iter, self.start_iter))
        if self.iter < self.max_iter:
            self._hooks = [hook for hook in self._hooks if not isinstance(hook, EvalHook)]
        super().after_train()

    def train(self) -> OrderedDict | None:
        """Train and evaluate.

        Returns:
            In the main process the results of the last evaluation, if DATASETS.TEST names any
            dataset.

        Raises:
            ConfigError: another run is at work in OUTPUT_DIR.
        """
        with own_folder(self.cfg.OUTPUT_DIR):
            try:
                super().train()
            finally:
                stop_listening(self._hooks)
        return getattr(self, "_last_eval_results", None)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See `tagclip.solver.optimizer`."""
        check_config(cfg)
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """See `tagclip.solver.lr_scheduler`."""
        check_config(cfg)
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> StreamLoader:
        """Stream over all images of DATASETS.TRAIN.

        Raises:
            ConfigError: a key makes no sense, the seed has not been drawn, or the batch cannot be
                shared among the processes.
            DatasetError: a dataset is missing or without images.
        """
        cfg = resolve_pixels(cfg)
        mapper = ZeroShotDatasetMapper(cfg, is_train=True)
        _check_seed(cfg)
        world_size, batch = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
        if batch % world_size:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH: found {batch}, expected a multiple of the {world_size} "
                "processes that share it"
            )
        if batch // world_size % cfg.SOLVER.ACCUMULATE:
            raise ConfigError(
                f"SOLVER.ACCUMULATE: found {cfg.SOLVER.ACCUMULATE}, expected a divisor of the "
                f"{batch // world_size} images that a process computes (SOLVER.IMS_PER_BATCH "
                f"{batch}, {world_size} processes)"
            )
        samples = [sample for name in cfg.DATASETS.TRAIN for sample in DatasetCatalog.get(name)]
        if not samples:
            raise DatasetError(
                f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: found 0 images, expected some; "
                "check what the datasets list"
            )
        refuse_masks(samples, mapper.source_vocabulary)
        refuse_moved_words(samples, mapper.source_vocabulary)
        if cfg.DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES:
            samples = without_unseen_images(samples, mapper.shows_unseen)
        return StreamLoader(
            samples,
            mapper,
            batch_size=batch,
            max_iter=cfg.SOLVER.MAX_ITER,
            seed=cfg.SEED,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            rank=comm.get_rank(),
            world_size=world_size,
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        """Loader whose samples carry the vocabulary of their own dataset."""
        cfg = resolve_pixels(cfg)
        samples = DatasetCatalog.get(dataset_name)
        mapper = ZeroShotDatasetMapper(cfg, is_train=False, dataset_name=dataset_name)
        refuse_moved_words(samples, mapper.source_vocabulary)
        loader = build_detection_test_loader(
            samples,
            mapper=mapper,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=shared_samples,
        )
        loader.worker_init_fn = leave_signals_to_main
        return loader

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> OrderedDict:
        """Evaluate as detectron2 does; classes count as seen if their masks trained the model.

        Raises:
            ConfigError: DATASETS.TEST names no dataset: nothing would be evaluated.
            ProtocolError: masks of unseen classes have trained the model.
        """
        _check_tested(cfg)
        provenance, plain = model_provenance(model), getattr(model, "module", model)
        state = trained_state(plain)
        sha256 = tensors_sha256(state) if state else None
        Claim(Protocol(cfg), provenance).check(cfg.MODEL.WEIGHTS)
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if isinstance(evaluator, ZeroShotSemSegEvaluator):
                evaluator.provenance, evaluator.trained_sha256 = provenance, sha256
                evaluator.training_record = plain.training_record
        return super().test(cfg, model, evaluators)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> ZeroShotSemSegEvaluator:
        """Evaluator that writes to ``OUTPUT_DIR/inference/<dataset>`` and the table of results.

        Raises:
            ConfigError: the dataset was registered for another kind of evaluation.
            DatasetError: it is not registered, or without a vocabulary.
        """
        _check_evaluator_type(dataset_name)
        protocol = Protocol(cfg)
        return ZeroShotSemSegEvaluator(
            dataset_name,
            vocabulary=protocol.dataset(dataset_name),
            protocol=protocol,
            output_dir=str(Path(cfg.OUTPUT_DIR) / "inference" / dataset_name),
            results_table=_results_table(cfg),
            run_info=run_info(cfg),
            config=cfg.dump(),
            save_predictions=cfg.TEST.SAVE_PREDICTIONS,
            files_may_fail=training_goes_on(cfg),
            save_logits=cfg.TEST.SAVE_LOGITS,
        )


def _check_seed(cfg: CfgNode) -> None:
    if cfg.SEED < 0:
        raise ConfigError(
            f"SEED: found {cfg.SEED}, expected 0 to 2**32 - 1; a seed that training draws is in "
            "config.yaml of its OUTPUT_DIR: give that file, or SEED NUMBER"
        )


def _check_labelled(cfg: CfgNode, stream: StreamLoader) -> None:
    refuse_unlabelled(stream.samples, ZeroShotDatasetMapper(cfg, is_train=True).shows_seen)


def _check_tested(cfg: CfgNode) -> None:
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST: found no dataset, expected one at least to evaluate")


def _check_expected(cfg: CfgNode) -> None:
    """Refuse metrics that there are not, which would fail after all the work."""
    for _, name, *_ in cfg.TEST.EXPECTED_RESULTS:
        if name not in METRICS:
            raise ConfigError(
                f"TEST.EXPECTED_RESULTS: found the metric {name!r:.80}, expected one of "
                f"{', '.join(METRICS)}{did_you_mean(name, METRICS)}"
            )


def _results_table(cfg: CfgNode) -> Path:
    """One row for every evaluation of a run."""
    return Path(cfg.OUTPUT_DIR) / "results.csv"


def _check_evaluator_type(dataset_name: str) -> None:
    check_dataset_name(dataset_name)
    Vocabulary.from_metadata(dataset_name)
    found = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if found != "zero_shot_sem_seg":
        raise ConfigError(
            f"dataset {dataset_name}: found evaluator_type {found!r}, expected "
            "'zero_shot_sem_seg'; check DATASETS.TEST, or register the dataset with "
            "register_zero_shot_sem_seg"
        )


def _distribute(model: nn.Module) -> nn.Module:
    """Wrap for several processes; every trainable parameter gets a gradient in every step."""
    # A convolutional trusty head averages its own gradients.
    own = [name for name, _ in model.named_parameters() if name.startswith(TRUSTY_HEAD)]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if comm.get_world_size() == 1 or trained <= set(own):
        return model
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, own)
    on_gpu = next(model.parameters()).device.type == "cuda"
    return DistributedDataParallel(
        model,
        device_ids=[comm.get_local_rank()] if on_gpu else None,
        broadcast_buffers=False,
    )
