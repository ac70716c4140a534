"""Gaussian densities of classes on patch vectors: measured for seen ones, foretold for others.

docs/method.md, section 9: seen classes have means of their own and one covariance (linear
discriminant analysis). Where a class without masks lies is read off its name, by a ridge regression
from class vectors to means; how wrong that is, seen classes tell that are left out of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "MAJORITY",
    "MIXED",
    "SHRINKAGE",
    "ClassGaussians",
    "Densities",
    "Foretelling",
    "PatchStatistics",
    "local_mean",
    "namesakes",
    "patch_labels",
    "patch_share",
    "same_classes",
    "shrunk",
    "whitening_of",
    "with_context",
]

MIXED = -1
# A patch belongs to the class of so many of its pixels.
MAJORITY = 0.6
# Share of the mean variance in the covariance, and in that of the errors, of which there are few.
SHRINKAGE, _ERROR_SHRINKAGE = 0.1, 0.5
# Of the regression from class vectors of unit length.
_RIDGE = 0.1
# Cosine from which on two class vectors are of one text.
_SAME_TEXT = 1 - 1e-5
# Of a cosine, which another shape of the same product changes.
_ROUNDING = 1e-6


class PatchStatistics(NamedTuple):
    """What the densities of S classes are made of; sums of parts of the data add up.

    Attributes:
        counts: (S,) float64 patches of each class.
        sums: (S, C) float64 sums of their vectors.
        products: (C, C) float64 sum over all of them of v v^T.
    """

    counts: Tensor
    sums: Tensor
    products: Tensor

    @classmethod
    def of(cls, vectors: Tensor, labels: Tensor, num_classes: int) -> PatchStatistics:
        """Count patches.

        Args:
            vectors: (N, C, h, w).
            labels: (N, h, w) class of each patch, in [0, S), `MIXED` where it has none.
            num_classes: S.
        """
        own = labels >= 0
        vectors, labels = vectors.permute(0, 2, 3, 1)[own].double(), labels[own].long()
        members = F.one_hot(labels, num_classes).double()
        return cls(members.sum(0), members.T @ vectors, vectors.T @ vectors)

    def plus(self, other: PatchStatistics) -> PatchStatistics:
        """Statistics of the patches of both."""
        return PatchStatistics(*(a + b for a, b in zip(self, other, strict=True)))


class Densities(NamedTuple):
    """Gaussians of K classes under two covariances, ready for any number of patches.

    Attributes:
        seen: (K,) bool, which classes have measured means.
        centres: (K, C) means, whitened as their class is.
        whitening: of measured and of foretold classes, (C, C) lower triangles that multiply.
        constants: of the two, -1/2 log det of the covariance.
    """

    seen: Tensor
    centres: Tensor
    whitening: tuple[Tensor, Tensor]
    constants: tuple[Tensor, Tensor]

    def best(self, vectors: Tensor, groups: Tensor) -> Tensor:
        """Find the likeliest class of each group at every patch.

        Args:
            vectors: (N, C, h, w) float32.
            groups: (G, K) bool, the classes of each.

        Returns:
            (N, G, h, w) log densities, -inf for a group without classes.
        """
        flat = vectors.permute(0, 2, 3, 1).reshape(-1, vectors.shape[1])
        best = flat.new_full((len(flat), len(groups)), -torch.inf)
        for measured, matrix, constant in zip(
            (True, False), self.whitening, self.constants, strict=True
        ):
            classes = self.seen == measured
            if not classes.any():
                continue
            distances = torch.cdist(flat @ matrix.T, self.centres[classes]).square()
            for index, members in enumerate(groups[:, classes]):
                if members.any():
                    found = constant - distances[:, members].amin(1) / 2
                    best[:, index] = torch.maximum(best[:, index], found)
        return best.T.reshape(len(groups), len(vectors), *vectors.shape[-2:]).transpose(0, 1)


class ClassGaussians(nn.Module):
    """Means and covariance of patch vectors of S seen classes."""

    counts: Tensor
    means: Tensor
    covariance: Tensor

    def __init__(self, num_classes: int, channels: int) -> None:
        """Begin with nothing measured.

        Args:
            num_classes: S.
            channels: C.
        """
        super().__init__()
        self.register_buffer("counts", torch.zeros(num_classes))
        self.register_buffer("means", torch.zeros(num_classes, channels))
        self.register_buffer("covariance", torch.zeros(channels, channels))

    @property
    def is_fitted(self) -> bool:
        """Whether two classes at least have been measured: a regression needs as many."""
        return int((self.counts > 0).sum()) > 1

    def fit(self, statistics: PatchStatistics) -> None:
        """Take over means and the pooled covariance within classes."""
        counts, sums, products = statistics
        means = sums / counts.clamp(min=1)[:, None]
        within = products - sums.T @ means
        self.counts.copy_(counts)
        self.means.copy_(means)
        self.covariance.copy_(within / counts.sum().clamp(min=1))

    def measured(self) -> Densities:
        """Return the Gaussians of the S classes themselves."""
        matrix, constant = whitening_of(shrunk(self.covariance.double(), SHRINKAGE))
        known = torch.ones_like(self.counts, dtype=torch.bool)
        return Densities(known, self.means @ matrix.T, (matrix, matrix), (constant, constant))

    def foretelling(self, trained: Tensor) -> Foretelling:
        """Find out how well means can be foretold from names.

        Args:
            trained: (S, D) unit class vectors of the seen classes.
        """
        known = self.counts > 0
        text, means = trained[known].double(), self.means[known].double()
        errors = _left_out_errors(text, means)
        spread = shrunk(errors.T @ errors / len(errors), _ERROR_SHRINKAGE)
        within = shrunk(self.covariance.double(), SHRINKAGE)
        whitening, constants = zip(*map(whitening_of, (within, within + spread)), strict=True)
        return Foretelling(text, means, whitening, constants)

    def densities(self, trained: Tensor, asked: Tensor) -> Densities:
        """Find the Gaussians of classes that are asked, see `Foretelling.densities`.

        Args:
            trained: (S, D) unit class vectors of the seen classes.
            asked: (K, D) unit class vectors.
        """
        return self.foretelling(trained).densities(asked)


class Foretelling(NamedTuple):
    """What gives any list of classes its Gaussians; the same for all of them.

    Attributes:
        text: (S, D) float64 unit class vectors of the measured classes.
        means: (S, C) float64.
        whitening: see `Densities`.
        constants: see `Densities`.
    """

    text: Tensor
    means: Tensor
    whitening: tuple[Tensor, Tensor]
    constants: tuple[Tensor, Tensor]

    def densities(self, asked: Tensor) -> Densities:
        """Find the Gaussians of classes that are asked.

        A class that has the vector of a measured one is that class, whatever it is called.

        Args:
            asked: (K, D) unit class vectors.
        """
        text, means, whitening, constants = self
        asked = asked.double()
        likeness, same = (asked @ text.T).max(1)
        measured = likeness > _SAME_TEXT
        foretold = _foretold(text, means, asked).float()
        centres = torch.where(
            measured[:, None], means[same].float() @ whitening[0].T, foretold @ whitening[1].T
        )
        return Densities(measured, centres, whitening, constants)


def _foretold(text: Tensor, means: Tensor, asked: Tensor) -> Tensor:
    """(K, C) means of the asked classes, by ridge regression of what names alone leave over.

    Without classes to learn from, a mean lies where CLIP was trained to put it: where the name is.
    In the dual form, as there are fewer classes than channels.
    """
    centre, middle = text.mean(0), means.mean(0)
    x, y, offset = text - centre, means - middle, asked - centre
    copies = y.shape[1] // x.shape[1]
    base = x.repeat(1, copies)
    scale = (base * y).sum() / base.square().sum().clamp(min=1e-12)
    shares = torch.linalg.solve(_ridged(x @ x.T), x @ offset.T).T
    return middle + scale * offset.repeat(1, copies) + shares @ (y - scale * base)


def _ridged(gram: Tensor) -> Tensor:
    return gram + _RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def _left_out_errors(text: Tensor, means: Tensor) -> Tensor:
    """(S, C) by how much each mean is missed that the other classes foretell.

    Without a regression for each of them: leaving row i out of a ridge regression with a free
    intercept divides its residual by 1 - 1/S - H_ii, H the hat matrix of the centred rows (PRESS,
    Allen, Technometrics 1974), and takes S / (S - 1) times its product out of a centred sum. The
    regression is linear in its targets, so the scale of each row may differ.
    """
    count = len(text)
    x, y = text - text.mean(0), means - means.mean(0)
    base = x.repeat(1, y.shape[1] // x.shape[1])
    gram = x @ x.T
    hat = torch.linalg.solve(_ridged(gram), gram)
    left = (1 - 1 / count - hat.diagonal())[:, None]
    products, squares = (base * y).sum(1), base.square().sum(1)
    weight = count / (count - 1)
    rest = (squares.sum() - weight * squares).clamp(min=1e-12)
    scale = ((products.sum() - weight * products) / rest)[:, None]
    return (scale * (base - hat @ base) - (y - hat @ y)) / left


def shrunk(covariance: Tensor, share: float) -> Tensor:
    """Mix a covariance with the mean variance in all directions."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    variance = covariance.diagonal().mean().clamp(min=1e-12)
    return (1 - share) * covariance + share * variance * identity


def whitening_of(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """(C, C) matrix W with W^T W the inverse of a covariance, and -1/2 log det of it; float32."""
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse.float(), -factor.diagonal().log().sum().float()


def same_classes(ones: Tensor, others: Tensor) -> Tensor:
    """(K, D) and (S, D) unit class vectors -> (K, S) bool, whether they are of one text."""
    return ones.double() @ others.double().T > _SAME_TEXT


def namesakes(trained: Tensor, asked: Tensor) -> Tensor:
    """Find the trained classes that an asked one may be another name of.

    A name may be another one if it is nearer to a class than any two of them are to each other.

    Args:
        trained: (S, D) unit class vectors.
        asked: (K, D) unit class vectors.

    Returns:
        (K, S) bool.
    """
    among = (trained @ trained.T).fill_diagonal_(-1).max() + _ROUNDING
    return asked @ trained.T > among.clamp(max=_SAME_TEXT)


def patch_labels(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Label patches by the class of most of their pixels.

    Args:
        labels: (N, H, W) integers, below 0 without class; H and W are multiples of h and w.
        grid: (h, w).

    Returns:
        (N, h, w) int64; `MIXED` where no class has 60 % of the pixels.
    """
    height, width = (full // part for full, part in zip(labels.shape[-2:], grid, strict=True))
    pixels = labels.unfold(1, height, height).unfold(2, width, width).flatten(3).long()
    found = pixels.mode(dim=-1).values
    share = (pixels == found[..., None]).float().mean(-1)
    return torch.where((share >= MAJORITY) & (found >= 0), found, MIXED)


def patch_share(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, H, W) bool -> (N, h, w) float32, the share of each patch's pixels."""
    return F.adaptive_avg_pool2d(pixels[:, None].float(), grid)[:, 0]


def with_context(vectors: Tensor) -> Tensor:
    """(N, D, h, w) -> (N, 2D, h, w): each patch and the mean of the 3 x 3 around it."""
    return torch.cat([vectors, local_mean(vectors)], dim=1)


def local_mean(vectors: Tensor) -> Tensor:
    """(N, D, h, w): mean of the 3 x 3 patches around each, borders replicated."""
    return F.avg_pool2d(F.pad(vectors, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
