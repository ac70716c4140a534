"""A prediction as ``supervision.Detections``, one row per class on the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tagclip.data.formats.labelled_image import class_masks, labels_and_scores
from tagclip.errors import NotInstalledError
from tagclip.structures.vocabulary import Vocabulary

if TYPE_CHECKING:
    from supervision import Detections

__all__ = ["to_supervision"]


def to_supervision(
    prediction: np.ndarray | Mapping[str, Any], vocabulary: Vocabulary
) -> Detections:
    """Return a prediction as supervision has it.

    Args:
        prediction: (H, W) indices of classes, negative for none, or what a `TagCLIPPredictor`
            returns for an image.
        vocabulary: the K classes.

    Returns:
        ``mask`` (N, H, W), ``class_id``, an index of the vocabulary, ``data["class_name"]``,
        ``confidence``, the mean score of the pixels if there are scores, and ``xyxy``.

    Raises:
        NotInstalledError: supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise NotInstalledError(
            "to_supervision needs supervision, which is not installed; run: pip install supervision"
        ) from error
    labels, scores = labels_and_scores(prediction)
    found = dict(class_masks(labels))
    masks = np.array(list(found.values()), dtype=bool).reshape(len(found), *labels.shape)
    indices = np.array(list(found), dtype=int)
    means = None if scores is None else np.array([scores[mask].mean() for mask in masks])
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks).astype(float).reshape(-1, 4),
        mask=masks,
        class_id=indices,
        confidence=means,
        data={"class_name": np.array(vocabulary.names)[indices]},
    )
