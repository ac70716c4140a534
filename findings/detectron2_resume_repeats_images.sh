#!/usr/bin/env bash
# Expected: a run that is resumed half-way goes on with images that it has not seen. With a fixed SEED
# the order begins anew: the second half trains on the first half's images, the others are never seen.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment detectron2==0.6 "${detectron2_needs[@]}"
cat >train.py <<'PYTHON'
import logging
import sys

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils.env import seed_all_rng

SEEN = []


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        SEEN.extend(item["image_id"] for item in batch)
        return {"loss": self.weight.square().sum()}


class Trainer(DefaultTrainer):
    @classmethod
    def build_model(cls, cfg):
        return Model()

    @classmethod
    def build_train_loader(cls, cfg):
        from detectron2.data.samplers import TrainingSampler

        items = [{"image_id": k} for k in range(40)]
        return build_detection_train_loader(
            items, mapper=lambda item: item, sampler=TrainingSampler(40), total_batch_size=2,
            num_workers=0, aspect_ratio_grouping=False,
        )


cfg = get_cfg()
cfg.SEED, cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = 1, "run", "cpu"
cfg.DATASETS.TEST = ()
cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 20, 10
stop = int(sys.argv[1])
seed_all_rng(cfg.SEED)  # as default_setup does
trainer = Trainer(cfg)
trainer.resume_or_load(resume=True)
trainer.max_iter = stop
trainer.train()
print("images", *SEEN)
PYTHON
mkdir run
first=$("$PYTHON" train.py 10 2>/dev/null | sed -n 's/^images //p')
second=$("$PYTHON" train.py 20 2>/dev/null | sed -n 's/^images //p')
rm -r run && mkdir run
whole=$("$PYTHON" train.py 20 2>/dev/null | sed -n 's/^images //p')
echo "iterations 1 to 10:          $first"
echo "resumed, 11 to 20:           $second"
echo "uninterrupted, 1 to 20:      $whole"
[ -n "$first" ] && [ "$first" = "$second" ] && [ "$whole" != "$first $second" ]
[ "${whole#"$first" }" != "$whole" ]
