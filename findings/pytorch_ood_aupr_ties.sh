#!/usr/bin/env bash
# Expected: the AUPR of pytorch-ood is that of scikit-learn's average_precision_score, and the share
# of positives for a score that tells nothing, as its documentation says. Where scores are tied, as
# in masks and in maps of few levels, it is much higher: the curve is joined by straight lines that
# begin at a precision of 1.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment pytorch-ood==0.4.0 torch==2.14.1 numpy==2.4.6 scikit-learn==1.9.1
"$PYTHON" - <<'PYTHON'
import torch
from pytorch_ood.metrics import AUPR
from sklearn.metrics import average_precision_score

labels = torch.tensor([-1] * 10 + [0] * 90)  # below 0: out of distribution, the positives
mask = (labels < 0).float()
mask[:3], mask[10:20] = 0, 1  # three missed, ten false ones
cases = {
    "the same score for all": torch.ones(100),
    "a mask": mask,
    "no ties": torch.rand(100, generator=torch.Generator().manual_seed(0)),
}
found = {}
for name, scores in cases.items():
    theirs = AUPR().update(scores, labels).compute()["AUPR-OUT"]
    steps = average_precision_score(labels < 0, scores)
    found[name] = round(float(theirs), 2), round(float(steps), 2)
    print(f"{name}: AUPR of pytorch-ood {found[name][0]}, average precision {found[name][1]}")
assert found["the same score for all"] == (0.55, 0.1)
assert found["a mask"] == (0.57, 0.32)
assert abs(found["no ties"][0] - found["no ties"][1]) < 0.05
PYTHON
