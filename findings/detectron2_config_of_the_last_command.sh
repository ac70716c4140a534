#!/usr/bin/env bash
# Expected: an evaluation into the folder of a training, as detectron2's --eval-only does by default,
# leaves the config.yaml of that training. It is replaced: MODEL.WEIGHTS is what was evaluated, and a
# training that is begun with this file starts from there, not where the first one did.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment detectron2==0.6 "${detectron2_needs[@]}"
cat >setup.py <<'PYTHON'
import logging

from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser, default_setup

logging.disable(logging.CRITICAL)


def command(*words):
    args = default_argument_parser().parse_args(list(words))
    cfg = get_cfg()
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


command("OUTPUT_DIR", "run", "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", "9")
trained = open("run/config.yaml").read()
command("--eval-only", "--config-file", "run/config.yaml", "MODEL.WEIGHTS", "run/model_final.pth")
evaluated = open("run/config.yaml").read()
again = command("--config-file", "run/config.yaml", "OUTPUT_DIR", "other")
weights = [[line for line in text.splitlines() if "WEIGHTS: " in line and "model" in line]
           for text in (trained, evaluated)]
print("in config.yaml after the training:", weights[0], "after the evaluation:", weights[1])
print("a training with that file begins with:", again.MODEL.WEIGHTS)
assert not weights[0] and again.MODEL.WEIGHTS == "run/model_final.pth"
PYTHON
"$PYTHON" setup.py
