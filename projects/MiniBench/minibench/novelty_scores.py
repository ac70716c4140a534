"""Scores of how unfamiliar a patch is that know the seen classes alone, and what they detect.

Large means unseen. Each is what its source says, on patches in the place of images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tagclip.evaluation.detection import detection
from tagclip.modeling.heads.class_gaussians import (
    SHRINKAGE,
    ClassGaussians,
    Densities,
    shrunk,
    whitening_of,
)

__all__ = [
    "NEIGHBOUR",
    "Background",
    "detection_figures",
    "energy",
    "entropy",
    "mahalanobis",
    "max_logit",
    "max_softmax",
    "neighbour_distance",
]

# The k of `neighbour_distance`: the source's for its smallest data set (CIFAR-10).
NEIGHBOUR = 50


def max_softmax(logits: Tensor) -> Tensor:
    """One minus the largest probability of a seen class (arXiv 1610.02136).

    Args:
        logits: (N, S, h, w) of the seen classes.

    Returns:
        (N, h, w).
    """
    return 1 - logits.softmax(1).amax(1)


def max_logit(logits: Tensor) -> Tensor:
    """Negative largest logit of a seen class (arXiv 1911.11132): (N, S, h, w) -> (N, h, w)."""
    return -logits.amax(1)


def energy(logits: Tensor) -> Tensor:
    """Free energy at temperature 1 (arXiv 2010.03759): (N, S, h, w) -> (N, h, w)."""
    return -logits.logsumexp(1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax in nats (arXiv 2012.06575): (N, S, h, w) -> (N, h, w)."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def mahalanobis(vectors: Tensor, densities: Densities) -> Tensor:
    """Squared Mahalanobis distance to the nearest mean of a seen class (arXiv 1807.03888).

    Args:
        vectors: (N, C, h, w).
        densities: of the S seen classes alone, all of them measured.

    Returns:
        (N, h, w).
    """
    everything = torch.ones(1, len(densities.seen), dtype=torch.bool)
    return 2 * (densities.constants[0] - densities.best(vectors, everything)[:, 0])


class Background(NamedTuple):
    """One Gaussian of all patches of seen classes, whatever their class.

    Attributes:
        mean: (C,).
        whitening: (C, C), see `whitening_of`.
    """

    mean: Tensor
    whitening: Tensor

    @classmethod
    def of(cls, gaussians: ClassGaussians) -> Background:
        """Pool the classes: covariance within them plus that of their means."""
        shares = gaussians.counts.double() / gaussians.counts.double().sum()
        means = gaussians.means.double()
        mean = shares @ means
        offsets = means - mean
        covariance = gaussians.covariance.double() + (shares[:, None] * offsets).T @ offsets
        return cls(mean.float(), whitening_of(shrunk(covariance, SHRINKAGE))[0])

    def distance(self, vectors: Tensor) -> Tensor:
        """Squared Mahalanobis distance, (N, C, h, w) -> (N, h, w).

        The distance to the nearest class minus this one is the relative distance of arXiv
        2106.09022.
        """
        points = (_flat(vectors) - self.mean) @ self.whitening.T
        return points.square().sum(1).view(len(vectors), *vectors.shape[-2:])


def neighbour_distance(vectors: Tensor, kept: Tensor, k: int = NEIGHBOUR) -> Tensor:
    """Distance to the k-th nearest of seen training patches, at unit length (arXiv 2204.06507).

    Args:
        vectors: (N, D, h, w).
        kept: (M, D) of seen training patches.
        k: from 1; at most M is taken.

    Returns:
        (N, h, w).
    """
    points, kept = F.normalize(_flat(vectors), dim=1), F.normalize(kept, dim=1)
    distance = torch.cdist(points, kept).kthvalue(min(k, len(kept)), dim=1).values
    return distance.view(len(vectors), *vectors.shape[-2:])


def _flat(vectors: Tensor) -> Tensor:
    """(N, C, h, w) -> (N h w, C)."""
    return vectors.permute(0, 2, 3, 1).reshape(-1, vectors.shape[1])


def detection_figures(scores: np.ndarray, unseen: np.ndarray) -> dict[str, float]:
    """Say how well scores tell unseen pixels, the positives, from seen ones; exactly, with ties.

    Args:
        scores: (P,) large means unseen.
        unseen: (P,) bool, some of each side.

    Returns:
        In percent ``AUROC``, ``AUPR`` and ``FPR95``, see `tagclip.evaluation.detection`.
    """
    values, where = np.unique(scores, return_inverse=True)
    positive = np.bincount(where[unseen], minlength=len(values))
    negative = np.bincount(where[~unseen], minlength=len(values))
    return detection(positive, negative)
