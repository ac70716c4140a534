#!/usr/bin/env bash
# Expected: the mask that MAPIE's SemanticSegmentationController gives an image, calibrated on logits,
# depends on that image. Whether numbers are logits or probabilities is decided for all images of a
# call together, by whether any lies outside of 0 to 1: an image whose logits all lie inside is taken
# for probabilities where it is asked for alone, and has another mask than beside other images.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment mapie==1.6.0 numpy==2.4.6 scikit-learn==1.9.1
"$PYTHON" - <<'PYTHON'
import numpy as np
from mapie.risk_control import SemanticSegmentationController

random = np.random.default_rng(0)
logits = random.normal(0, 2, (20, 1, 8, 8))
labels = (logits + random.normal(0, 1, logits.shape) > 0).astype(int)
image = random.uniform(0, 0.4, (1, 1, 8, 8))  # logits of an image where nothing is sure

controller = SemanticSegmentationController(lambda given: given, risk="recall", target_level=0.9)
controller.calibrate(logits, labels)
threshold = float(controller.best_predict_param[0])
alone = controller.predict(image)[0].mean()
beside = controller.predict(np.concatenate([image, logits[:1]]))[0].mean()
print(f"threshold {threshold:.2f} of a probability; part of the image that is in its mask:")
print(f"asked for alone {alone:.2f}, beside another image {beside:.2f}")
right = (1 / (1 + np.exp(-image)) > threshold).mean()
assert (round(float(alone), 2), beside, right) == (0.22, 1, 1)
PYTHON
