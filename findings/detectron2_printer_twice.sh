#!/usr/bin/env bash
# Expected: a training that is ended in its first steps ends with the reason for it. detectron2 writes
# the curve once more when it ends; its printer then divides by the steps since it wrote, which are 0
# where it has just written and does not know the time of a step yet: ZeroDivisionError in its place.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment detectron2==0.6 "${detectron2_needs[@]}"
cat >train.py <<'PYTHON'
import sys

import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.engine.hooks import IterationTimer, PeriodicWriter
from detectron2.utils.events import CommonMetricPrinter


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return {"loss": self.weight.square().sum()}


class Stop(HookBase):
    """As a user who presses Ctrl-C behind a step."""

    def after_step(self):
        if self.trainer.iter == int(sys.argv[2]):
            raise KeyboardInterrupt


def main(steps, start):
    model = Model()
    trainer = SimpleTrainer(model, [[{}]] * 100, torch.optim.SGD(model.parameters(), 0.1))
    # As DefaultTrainer has them: every 20 steps, and at the end.
    writer = PeriodicWriter([CommonMetricPrinter(steps)], period=20)
    trainer.register_hooks([IterationTimer(), writer, Stop()])
    trainer.train(start, steps)


try:
    main(int(sys.argv[1]), int(sys.argv[3]))
except BaseException as error:
    print(type(error).__name__)
PYTHON
found=()
found=()
# Steps of the training, the one behind which it is stopped, and the one that it is resumed at.
for numbers in "3 1 0" "2 1 0" "40 19 0" "40 19 18"; do
	read -r steps last start <<<"$numbers"
	found+=("$("$PYTHON" train.py "$steps" "$last" "$start" 2>/dev/null)")
	echo "$steps steps from $start, stopped behind step $last: ${found[-1]}"
done
[ "${found[*]}" = "KeyboardInterrupt ZeroDivisionError KeyboardInterrupt ZeroDivisionError" ]
