#!/usr/bin/env bash
# Expected: what a hook keeps in each of several processes is there again in each when the training is
# resumed. The main process alone writes, and its own state alone: every process goes on with that.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment detectron2==0.6 "${detectron2_needs[@]}"
cat >train.py <<'PYTHON'
import os
import sys

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils import comm


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return {"loss": self.weight.square().sum()}


class LastImages(HookBase):
    """Keeps what its process has seen, such as batches to learn from once more."""

    def __init__(self):
        self.seen = []

    def after_step(self):
        self.seen.append(10 * comm.get_rank() + self.trainer.iter)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def main(rank, stop):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{os.getcwd()}/meet{stop}", rank=rank, world_size=2
    )
    model, last = Model(), LastImages()
    trainer = SimpleTrainer(model, [[{}]] * 100, torch.optim.SGD(model.parameters(), 0.1))
    checkpointer = DetectionCheckpointer(model, "run", trainer=trainer)
    # As DefaultTrainer has them.
    hooks = [PeriodicCheckpointer(checkpointer, 2)] if comm.is_main_process() else []
    trainer.register_hooks([last, *hooks])
    checkpointer.resume_or_load("", resume=True)
    start = trainer.iter + 1 if checkpointer.has_checkpoint() else 0
    comm.synchronize()
    print(f"rank {rank} from {start}: {last.seen}", flush=True)
    trainer.train(start, stop)


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (int(sys.argv[1]),), nprocs=2)
PYTHON
mkdir run
"$PYTHON" train.py 2 >/dev/null 2>&1
found=$("$PYTHON" train.py 4 2>/dev/null | grep '^rank' | sort)
echo "before: rank 0 has seen [0, 1], rank 1 [10, 11]; resumed:"
echo "$found"
[ "$found" = "rank 0 from 2: [0, 1]
rank 1 from 2: [0, 1]" ]
