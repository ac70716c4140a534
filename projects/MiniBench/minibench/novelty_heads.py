"""Small heads that learn what unseen patches look like, from training images of seen ones alone.

`episode_head`: some seen classes play unseen ones. `outlier_head`: mixtures of images, and classes
that are not asked for, are outliers. Both are logistic regressions on a handful of figures of a
patch; nothing is random but what the seed draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tagclip.modeling.heads.class_gaussians import (
    MIXED,
    ClassGaussians,
    Densities,
    PatchStatistics,
    local_mean,
    with_context,
)
from tagclip.modeling.heads.relative_trusty import Decoder, PatchVectors, RelativeMap, likeness
from tagclip.projects.minibench.novelty_scores import entropy
from tagclip.projects.minibench.textures import NOUNS

__all__ = [
    "LogisticHead",
    "TrainingPatches",
    "episode_features",
    "episode_head",
    "episodes_of",
    "outlier_features",
    "outlier_head",
]

# Of the squared weights, in the mean over the patches of the logistic loss.
_DECAY = 1e-3
_STEPS = 200
# Of colour-noun pairs, and how many of these an episode holds out: about the share that
# `composition` does.
_EPISODES, _PAIRS = 12, 4


@dataclass(frozen=True)
class TrainingPatches:
    """Patches of N training images.

    Attributes:
        vectors: what the relative map is made of.
        labels: (N, h, w) int64 of the S seen classes, `MIXED` where there is none.
        text: (S, D) unit class vectors of the seen classes.
        names: S names.
        decode: patch and image vectors -> (N, S, h, w) logits of the seen classes.
    """

    vectors: PatchVectors
    labels: Tensor
    text: Tensor
    names: Sequence[str]
    decode: Decoder


class LogisticHead(NamedTuple):
    """Logistic regression of unseen against seen.

    Attributes:
        weight: (F,).
        bias: ().
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, features: Tensor, positive: Tensor) -> LogisticHead:
        """Fit with both sides weighing the same, by L-BFGS.

        Args:
            features: (M, F), each of a spread of about 1.
            positive: (M,) bool, some of each side.
        """
        x, target = features.double(), positive.double()
        share = target.mean()
        weights = torch.where(positive, 0.5 / share, 0.5 / (1 - share))
        found = x.new_zeros(x.shape[1] + 1, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [found], max_iter=_STEPS, history_size=20, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = x @ found[:-1] + found[-1]
            value = F.binary_cross_entropy_with_logits(logits, target, weights)
            value = value + _DECAY * found[:-1].square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        return cls(found[:-1].detach().float(), found[-1].detach().float())

    def __call__(self, features: Tensor) -> Tensor:
        """(N, F, h, w) -> (N, h, w), large means unseen."""
        return torch.einsum("nfhw,f->nhw", features, self.weight) + self.bias


def episodes_of(names: Sequence[str], by_noun: bool, seed: int) -> list[list[int]]:
    """Return the seen classes that each episode holds out.

    Args:
        names: of the S seen classes.
        by_noun: every class of a noun, each noun once; else `_EPISODES` draws of `_PAIRS`
            colour-noun pairs.
        seed: of the draws.
    """
    things = [index for index, name in enumerate(names) if name.split()[-1] in NOUNS]
    if by_noun:
        nouns = dict.fromkeys(names[index].split()[-1] for index in things)
        return [[i for i in things if names[i].split()[-1] == noun] for noun in nouns]
    generator = torch.Generator().manual_seed(seed)
    count = min(_PAIRS, len(things) - 1)
    return [
        sorted(things[i] for i in torch.randperm(len(things), generator=generator)[:count])
        for _ in range(_EPISODES)
    ]


def episode_features(found: RelativeMap, differences: Tensor, vectors: PatchVectors) -> Tensor:
    """(N, 5, h, w): what is known of a patch for classes without masks.

    The differences d_2 and d_3 in standard deviations, both in the mean of 3 x 3 patches, and the
    entropy of plain CLIP over the asked classes. The model's own logits have learned from masks of
    the classes that only play unseen ones, so they are left out.

    Args:
        found: map of the asked classes.
        differences: (N, 3, h, w), see `RelativeMap.differences`.
        vectors: of the N images.
    """
    offsets = differences[:, 1:] - found.mean[1:, None, None]
    standard = offsets / found.deviation[1:, None, None]
    uncertain = entropy(likeness(vectors, found.class_embed))[:, None]
    return torch.cat([standard, local_mean(standard), uncertain], dim=1)


def episode_head(patches: TrainingPatches, by_noun: bool, seed: int) -> LogisticHead:
    """Learn from episodes in which seen classes play unseen ones (arXiv 1606.04080 has the idea).

    Gaussians are those of the other classes alone, and those of the players are foretold.

    Args:
        patches: of training images.
        by_noun: see `episodes_of`.
        seed: of the episodes.
    """
    vectors, labels, text, names = patches.vectors, patches.labels, patches.text, patches.names
    context, own = with_context(vectors.dense), labels != MIXED
    features, positive = [], []
    for held_out in episodes_of(names, by_noun, seed):
        unseen = torch.zeros(len(names), dtype=torch.bool)
        unseen[held_out] = True
        plays = own & unseen[labels]
        gaussians = ClassGaussians(len(names), context.shape[1])
        others = labels.masked_fill(plays, MIXED)
        gaussians.fit(PatchStatistics.of(context, others, len(names)))
        densities, nothing = gaussians.densities(text, text), torch.zeros(3)
        draft = RelativeMap(text, unseen, len(names), densities, nothing, nothing + 1)
        # In the place of own logits, which do not matter here.
        differences = draft.differences(vectors, likeness(vectors, text))
        usual = differences.permute(0, 2, 3, 1)[others != MIXED]
        found = replace(draft, mean=usual.mean(0), deviation=usual.std(0))
        features.append(episode_features(found, differences, vectors).permute(0, 2, 3, 1)[own])
        positive.append(plays[own])
    return LogisticHead.fit(torch.cat(features), torch.cat(positive))


def outlier_features(
    vectors: PatchVectors, logits: Tensor, text: Tensor, densities: Densities, asked: Tensor
) -> Tensor:
    """(N, 8, h, w): how far a patch is from the seen classes.

    The largest logit, likeness and density of a class, the first three in the mean of 3 x 3
    patches, and the entropies of logits and likeness.

    Args:
        vectors: of N images.
        logits: (N, S, h, w) of the seen classes.
        text: (S, D) unit class vectors.
        densities: of the S classes, all of them measured.
        asked: (N, S) bool, the classes that are asked for in each image.
    """
    asked = asked[:, :, None, None]
    context = with_context(vectors.dense)
    density = densities.best(context, torch.eye(len(text), dtype=torch.bool))
    own, plain, density = (
        values.masked_fill(~asked, -1e4) for values in (logits, likeness(vectors, text), density)
    )
    largest = torch.stack([own.amax(1), plain.logsumexp(1), density.amax(1)], dim=1)
    entropies = torch.stack([entropy(own), entropy(plain)], dim=1)
    return torch.cat([largest, local_mean(largest), entropies], dim=1)


class OutlierHead(NamedTuple):
    """A `LogisticHead` on standardised `outlier_features`."""

    head: LogisticHead
    mean: Tensor
    deviation: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """(N, F, h, w) -> (N, h, w), large means unseen."""
        return self.head((features - self.mean[:, None, None]) / self.deviation[:, None, None])


def outlier_head(patches: TrainingPatches, densities: Densities, seed: int) -> OutlierHead:
    """Learn from outliers that no image of an outlier is needed for (cf. arXiv 1812.04606).

    Outliers are patches of the mean of two images where these show different seen classes (mixup,
    arXiv 1710.09412), and patches of a seen class that is not asked for, one in each image.

    Args:
        patches: of training images.
        densities: of the seen classes.
        seed: which images are mixed, and which classes are not asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    count, classes = len(patches.labels), len(patches.names)
    vectors, labels = patches.vectors, patches.labels
    own = labels != MIXED
    everything = torch.ones(count, classes, dtype=torch.bool)
    partner = torch.arange(count).roll(1 + int(torch.randint(count - 1, (), generator=generator)))
    blend = PatchVectors(*((part + part[partner]) / 2 for part in vars(vectors).values()))
    is_blend = own & own[partner] & (labels != labels[partner])
    asked = everything.clone()
    dropped = torch.full((count,), MIXED - 1)
    for index in range(count):
        shown = labels[index][own[index]].unique()
        if len(shown):
            dropped[index] = shown[torch.randint(len(shown), (), generator=generator)]
            asked[index, dropped[index]] = False
    features, positive = [], []
    logits = patches.decode(vectors.dense, vectors.whole)
    for part, part_logits, words, where, side in (
        (vectors, logits, everything, own, False),
        (blend, patches.decode(blend.dense, blend.whole), everything, is_blend, True),
        (vectors, logits, asked, labels == dropped[:, None, None], True),
    ):
        found = outlier_features(part, part_logits, patches.text, densities, words)
        features.append(found.permute(0, 2, 3, 1)[where])
        positive.append(torch.full((len(features[-1]),), side))
    mean, deviation = features[0].mean(0), features[0].std(0).clamp(min=1e-6)
    x = (torch.cat(features) - mean) / deviation
    return OutlierHead(LogisticHead.fit(x, torch.cat(positive)), mean, deviation)
