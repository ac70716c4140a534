"""A prediction as FiftyOne's ``Segmentation``.

FiftyOne keeps the value 0 for pixels without a class and does not show it. So a class has its index
plus 1, whatever its id in label files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tagclip.data.formats.labelled_image import labels_and_scores
from tagclip.errors import NotInstalledError
from tagclip.structures.vocabulary import Vocabulary

if TYPE_CHECKING:
    from fiftyone import Segmentation

__all__ = ["mask_targets", "to_fiftyone"]


def mask_targets(vocabulary: Vocabulary) -> dict[int, str]:
    """Value -> name, for ``dataset.mask_targets[field]`` or ``dataset.default_mask_targets``."""
    return dict(enumerate(vocabulary.names, 1))


def to_fiftyone(prediction: np.ndarray | Mapping[str, Any], vocabulary: Vocabulary) -> Segmentation:
    """Return a prediction, or ground truth, as the value of a field of a sample.

    Args:
        prediction: (H, W) indices of classes, negative for none, or what a `TagCLIPPredictor`
            returns for an image.
        vocabulary: the K classes.

    Returns:
        Its mask is (H, W) uint8, or uint16 with more than 255 classes: index plus 1, 0 for none.

    Raises:
        NotInstalledError: fiftyone is not installed.
    """
    try:
        from fiftyone import Segmentation
    except ImportError as error:
        raise NotInstalledError(
            "to_fiftyone needs fiftyone, which is not installed; run: pip install fiftyone"
        ) from error
    labels, _ = labels_and_scores(prediction)
    dtype = np.uint8 if len(vocabulary) <= 255 else np.uint16
    return Segmentation(mask=(np.maximum(labels.astype(np.int32), -1) + 1).astype(dtype))
