"""What MiniBench compares the relative map with: every score against one written out in numpy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.minibench_results import novelty_result
from helpers.tiny_run import exit_of, load_tool, train
from helpers.toy_dataset import forget, write_sample
from scipy import optimize, special, stats
from scipy.ndimage import uniform_filter
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn import functional as F

from tagclip import TagCLIP, load_config, register_zero_shot_sem_seg
from tagclip.analysis.gate_comparison import compare_gates, labelled_inputs
from tagclip.data import Protocol
from tagclip.modeling.heads.class_gaussians import (
    MIXED,
    ClassGaussians,
    PatchStatistics,
    with_context,
)
from tagclip.modeling.heads.relative_trusty import PatchVectors, RelativeMap
from tagclip.modeling.inference.gate import Gate
from tagclip.projects import import_projects
from tagclip.projects.minibench import VOCABULARY_JSON
from tagclip.projects.minibench.generate import scene
from tagclip.projects.minibench.novelty import (
    Score,
    figures_of,
    novelty_file,
    scores_of,
    training_patches,
)
from tagclip.projects.minibench.novelty_heads import (
    LogisticHead,
    TrainingPatches,
    episode_features,
    episode_head,
    episodes_of,
    outlier_features,
    outlier_head,
)
from tagclip.projects.minibench.novelty_scores import (
    Background,
    detection_figures,
    energy,
    entropy,
    mahalanobis,
    max_logit,
    max_softmax,
    neighbour_distance,
)
from tagclip.projects.minibench.novelty_table import ROWS, format_novelty
from tagclip.projects.minibench.table import mean_and_spread, paired_interval
from tagclip.projects.minibench.table_runs import SPLITS

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "MiniBench"
NAMES = ("red ball", "blue ball", "red flag", "blue flag", "green fence", "sand", "stone")
SEEN, DIM, GRID, IMAGES = len(NAMES), 5, (4, 6), 10


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TEXT = F.normalize(normal(0, SEEN, DIM), dim=1)
LOGITS = 3 * normal(1, IMAGES, SEEN, *GRID)


def rows(maps: Tensor) -> np.ndarray:
    """(N, C, h, w) -> (N h w, C) float64."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).double().numpy()


def labelled(seed: int) -> tuple[PatchVectors, Tensor]:
    """Vectors that lie around the names of their classes, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(-1, SEEN, (IMAGES, 2, 2), generator=generator)
    labels = coarse.repeat_interleave(2, 1).repeat_interleave(3, 2)
    centres = TEXT[labels.clamp(min=0)].permute(0, 3, 1, 2)
    dense, plain = (
        F.normalize(centres + 0.3 * normal(seed + k, *centres.shape), dim=1) for k in (1, 2)
    )
    return PatchVectors(dense, plain, F.normalize(normal(seed + 3, IMAGES, DIM), dim=1)), labels


VECTORS, LABELS = labelled(10)


def decode(dense: Tensor, whole: Tensor) -> Tensor:
    return torch.einsum("ndhw,kd->nkhw", 6 * dense + whole[:, :, None, None], TEXT)


def fitted() -> ClassGaussians:
    gaussians = ClassGaussians(SEEN, 2 * DIM)
    gaussians.fit(PatchStatistics.of(with_context(VECTORS.dense), LABELS, SEEN))
    return gaussians


def shrunk(covariance: np.ndarray) -> np.ndarray:
    return 0.9 * covariance + 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


def test_scores_of_logits() -> None:
    x = LOGITS.double().numpy()
    share = special.softmax(x, axis=1)
    for found, expected in (
        (max_softmax(LOGITS), 1 - share.max(1)),
        (max_logit(LOGITS), -x.max(1)),
        (energy(LOGITS), -special.logsumexp(x, axis=1)),
        (entropy(LOGITS), stats.entropy(share, axis=1)),
    ):
        assert found.shape == (IMAGES, *GRID)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_distances_to_gaussians() -> None:
    gaussians, context = fitted(), with_context(VECTORS.dense)
    x, classes = rows(context), LABELS.flatten().numpy()
    own, known = x[classes >= 0], classes[classes >= 0]
    means = np.stack([own[known == k].mean(0) for k in range(SEEN)])
    within = shrunk(np.cov((own - means[known]).T, bias=True))
    nearest = cdist(x, means, "mahalanobis", VI=np.linalg.inv(within)).min(1) ** 2
    found = mahalanobis(context, gaussians.densities(TEXT, TEXT))
    np.testing.assert_allclose(found.flatten(), nearest, rtol=1e-3)
    total = shrunk(np.cov(own.T, bias=True))
    everything = cdist(x, own.mean(0)[None], "mahalanobis", VI=np.linalg.inv(total))[:, 0] ** 2
    found = Background.of(gaussians).distance(context)
    np.testing.assert_allclose(found.flatten(), everything, rtol=1e-3)


@pytest.mark.parametrize("k", [1, 4, 1000])
def test_the_distance_to_a_neighbour(k: int) -> None:
    kept = normal(30, 20, DIM)
    x, bank = rows(VECTORS.dense), kept.double().numpy()
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    expected = np.sort(cdist(x, bank), axis=1)[:, min(k, 20) - 1]
    # The length of neither side matters.
    found = neighbour_distance(3 * VECTORS.dense, kept, k)
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-3, atol=1e-4)


def naive_figures(scores: np.ndarray, unseen: np.ndarray) -> dict[str, float]:
    """Every threshold tried."""
    better = scores[unseen][:, None] - scores[~unseen][None]
    points = []
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        recall, precision = chosen[unseen].mean(), unseen[chosen].mean()
        points.append((recall, precision, chosen[~unseen].mean()))
    recalls = [0.0, *(recall for recall, _, _ in points)]
    steps = zip(points, recalls, strict=False)
    return {
        "AUROC": 100 * ((better > 0) + 0.5 * (better == 0)).mean(),
        "AUPR": 100 * sum((recall - last) * precision for (recall, precision, _), last in steps),
        "FPR95": 100 * next(false for recall, _, false in points if recall >= 0.95),
    }


@pytest.mark.parametrize("levels", [5, 40, 10_000])
def test_figures_of_a_detector(levels: int) -> None:
    generator = np.random.default_rng(levels)
    unseen = generator.random(300) < 0.3
    scores = np.round((generator.normal(size=300) + unseen) * levels) / levels
    found = detection_figures(scores, unseen)
    assert found == pytest.approx(naive_figures(scores, unseen))


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_the_threshold_lets_so_many_seen_patches_beyond(rate: float) -> None:
    usual = 5 * normal(40, 2000) - 3
    logits = Score(lambda patches: usual, usual).trusty_logits(usual, rate)
    assert (logits < 0).float().mean().item() == pytest.approx(rate, abs=1 / 1000)
    slopes = np.polyfit(usual.double(), logits.double(), 1)
    assert slopes[0] == pytest.approx(-4 / usual.std().item(), rel=1e-4)


def test_the_logistic_regression_is_scipys() -> None:
    x = normal(50, 400, 3)
    positive = (x[:, 0] - 0.5 * x[:, 1] + normal(51, 400)) > 1
    head = LogisticHead.fit(x, positive)
    y = positive.numpy()

    def loss(w: np.ndarray) -> float:
        logits = x.double().numpy() @ w[:3] + w[3]
        sides = np.logaddexp(0, -logits)[y].mean(), np.logaddexp(0, logits)[~y].mean()
        return sum(sides) / 2 + 1e-3 * (w[:3] ** 2).sum()

    expected = optimize.minimize(loss, np.zeros(4), tol=1e-10).x
    np.testing.assert_allclose([*head.weight, head.bias], expected, rtol=1e-3, atol=1e-3)
    maps = x.view(2, 10, 20, 3).permute(0, 3, 1, 2)
    np.testing.assert_allclose(head(maps).flatten(), x @ head.weight + head.bias, atol=1e-5)


def test_episodes_hold_out_nouns_or_pairs() -> None:
    assert episodes_of(NAMES, True, 0) == [[0, 1], [2, 3], [4]]
    drawn = episodes_of(NAMES, False, 3)
    assert drawn == episodes_of(NAMES, False, 3) != episodes_of(NAMES, False, 4)
    for held_out in drawn:
        # Stuff always stays, and one thing at least.
        assert len(set(held_out)) == 4 and set(held_out) < set(range(5))


def training() -> TrainingPatches:
    return TrainingPatches(VECTORS, LABELS, TEXT, NAMES, decode)


def naive_mean(maps: np.ndarray) -> np.ndarray:
    return uniform_filter(maps, (1, 1, 3, 3), mode="nearest")


def cosines() -> np.ndarray:
    plain = naive_mean(VECTORS.plain.double().numpy())
    return 20 * np.einsum("ndhw,kd->nkhw", plain, TEXT.double().numpy())


def test_features_of_episodes() -> None:
    mean, deviation = normal(60, 3), normal(61, 3).abs() + 0.5
    found = RelativeMap(TEXT, torch.arange(SEEN) < 2, SEEN, None, mean, deviation)
    differences = normal(62, IMAGES, 3, *GRID)
    features = episode_features(found, differences, VECTORS).numpy()
    offsets = differences.double().numpy() - mean.double().numpy()[:, None, None]
    standard = (offsets / deviation.double().numpy()[:, None, None])[:, 1:]
    np.testing.assert_allclose(features[:, :2], standard, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features[:, 2:4], naive_mean(standard), rtol=1e-4, atol=1e-5)
    expected = stats.entropy(special.softmax(cosines(), axis=1), axis=1)
    np.testing.assert_allclose(features[:, 4], expected, rtol=1e-3, atol=1e-5)


def test_episodes_teach_that_foretold_classes_are_unseen() -> None:
    head = episode_head(training(), True, 0)
    assert torch.equal(head.weight, episode_head(training(), True, 1).weight)
    assert not torch.equal(head.weight, episode_head(training(), False, 0).weight)
    # The differences say how far unseen classes are ahead.
    assert (head.weight[:4] > 0).sum() >= 3


def test_features_of_outliers() -> None:
    gaussians = fitted()
    densities = gaussians.densities(TEXT, TEXT)
    asked = torch.ones(IMAGES, SEEN, dtype=torch.bool)
    asked[2, 3] = asked[5, 0] = False
    features = outlier_features(VECTORS, LOGITS, TEXT, densities, asked).numpy()
    covariance = shrunk(gaussians.covariance.double().numpy())
    distance = cdist(
        rows(with_context(VECTORS.dense)),
        gaussians.means.double().numpy(),
        "mahalanobis",
        VI=np.linalg.inv(covariance),
    )
    density = -(distance.reshape(IMAGES, *GRID, SEEN).transpose(0, 3, 1, 2) ** 2) / 2
    density -= np.linalg.slogdet(covariance)[1] / 2
    logits, plain = LOGITS.double().numpy(), cosines()
    for image in range(IMAGES):
        own = asked[image].numpy()
        part = [maps[image][own] for maps in (logits, plain, density)]
        largest = np.stack([part[0].max(0), special.logsumexp(part[1], axis=0), part[2].max(0)])
        uncertain = [stats.entropy(special.softmax(p, axis=0), axis=0) for p in part[:2]]
        expected = np.concatenate([largest, naive_mean(largest[None])[0], uncertain])
        np.testing.assert_allclose(features[image], expected, rtol=2e-3, atol=1e-4)


def test_made_outliers_are_further_off_than_seen_patches() -> None:
    densities = fitted().densities(TEXT, TEXT)
    head = outlier_head(training(), densities, 0)
    assert torch.equal(head.head.weight, outlier_head(training(), densities, 0).head.weight)
    everything = torch.ones(IMAGES, SEEN, dtype=torch.bool)

    def scores(vectors: PatchVectors) -> Tensor:
        logits = decode(vectors.dense, vectors.whole)
        return head(outlier_features(vectors, logits, TEXT, densities, everything))

    other = PatchVectors(*(part.flip(0) for part in vars(VECTORS).values()))
    pairs = zip(vars(VECTORS).values(), vars(other).values(), strict=True)
    blend = PatchVectors(*((a + b) / 2 for a, b in pairs))
    own = LABELS != MIXED
    differ = own & own.flip(0) & (LABELS.flip(0) != LABELS)
    assert scores(blend)[differ].mean() > scores(VECTORS)[own].mean() + 0.5


DATASET = "minibench_novelty"


@pytest.fixture
def cfg(tmp_path: Path) -> Iterator[CfgNode]:
    """Two steps on a few scenes, which are also those to measure on."""
    for index in range(16):
        drawn = scene("train", index)
        write_sample(tmp_path, f"{index:06d}", drawn.image, drawn.label)
    folders = tmp_path / "images", tmp_path / "labels"
    register_zero_shot_sem_seg(DATASET, *folders, VOCABULARY_JSON, image_ext="png")
    opts: list[Any] = [
        *("DATASETS.TRAIN", f"('{DATASET}',)", "DATASETS.TEST", "()"),
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", str(tmp_path / "out")),
        *("MODEL.TAGCLIP.TRUSTY.RELATIVE.FIT_IMAGES", 8, "MODEL.DEVICE", "cpu", "SEED", 0),
        *("MODEL.TAGCLIP.TRUSTY.RELATIVE.SAMPLE_IMAGES", 4, "DATALOADER.NUM_WORKERS", 0),
    ]
    found = load_config(PROJECT / "configs/tagclip_minibench_noun_dice_board_relative.yaml", opts)
    import_projects(found.PROJECTS)
    yield found
    forget(DATASET)


def test_the_scores_of_a_run(cfg: CfgNode) -> None:
    model: TagCLIP = train(cfg).model.eval()
    vocabulary = Protocol(cfg).asked(DATASET)
    scores = scores_of(cfg, model, vocabulary, by_noun=True)
    figures = figures_of(cfg, model, vocabulary, DATASET, scores)
    assert figures.keys() == ROWS.keys()
    gates = {"product": Gate(bias=0.0), "no map": Gate("none", bias=0.0)}
    found = compare_gates(cfg, model, DATASET, vocabulary, vocabulary, gates)
    for name, gate in (("relative", "product"), ("no map", "no map")):
        curve = found[gate].curves["own"]
        assert figures[name]["hIoU"] == pytest.approx(curve.hiou[curve.at(0.0)], abs=1e-3)
    maps, truths = [], []
    for item, truth in labelled_inputs(cfg, DATASET, vocabulary):
        (view,) = model.encode(item, vocabulary).views
        full = F.interpolate(view.trusty_logits, truth.shape, mode="bilinear")[0, 0].numpy()
        labelled = truth < len(vocabulary)
        maps.append(full[labelled])
        truths.append(vocabulary.seen_mask[truth[labelled]])
    logits, seen = np.concatenate(maps), np.concatenate(truths)
    pairs = stats.mannwhitneyu(logits[seen], logits[~seen]).statistic
    expected = 100 * pairs / (float(seen.sum()) * float((~seen).sum()))
    assert figures["relative"]["AUROC"] == pytest.approx(expected, abs=0.01)
    # Where the threshold is, no image that is measured has a say.
    usual = {name: score.usual for name, score in scores.items()}
    count = int(model.relative_trusty.sample_seen.sum())
    assert all(len(values) == count for values in usual.values())
    # A patch has its neighbours in other images.
    trusty = model.relative_trusty
    unit = F.normalize(trusty.sample_dense.double(), dim=1).permute(0, 2, 3, 1).numpy()
    own = trusty.sample_seen.numpy()
    expected = []
    for index in range(len(own)):
        others = np.delete(unit, index, 0)[np.delete(own, index, 0)]
        expected.append(np.sort(cdist(unit[index][own[index]], others), axis=1)[:, 49])
    np.testing.assert_allclose(usual["neighbour"], np.concatenate(expected), rtol=1e-2, atol=1e-3)


def test_heads_read_no_word_of_unseen_classes(cfg: CfgNode) -> None:
    model: TagCLIP = train(cfg).model.eval()
    vocabulary = Protocol(cfg).asked(DATASET)
    patches = training_patches(cfg, model)
    assert list(patches.names) == [
        name for name, seen in zip(vocabulary.names, vocabulary.seen_mask, strict=True) if seen
    ]
    unseen = ~torch.from_numpy(vocabulary.seen_mask)
    words = tuple(
        replace(entry, prompts=vocabulary.classes[0].prompts) if flag else entry
        for entry, flag in zip(vocabulary.classes, unseen.tolist(), strict=True)
    )
    before, after = (
        scores_of(cfg, model, asked, by_noun=True)
        for asked in (vocabulary, replace(vocabulary, classes=words))
    )
    for name, (_, knows) in ROWS.items():
        if knows:
            same = torch.equal(before[name].usual, after[name].usual)
            assert same == (knows == "no"), name


def test_the_table_has_means_over_seeds() -> None:
    text = format_novelty([novelty_result("composition", seed, "val") for seed in (3, 5)])
    assert text.startswith("**composition**, `minibench_val`, seeds 3, 5:\n\n| score |")
    lines = text.splitlines()
    for row, (name, (label, knows)) in enumerate(ROWS.items()):
        cell = mean_and_spread([(10 + row) * 3, (10 + row) * 5])
        cells = ["" if name == "no map" else cell] * 3 + [cell] * 3
        behind = row - len(ROWS) + 1
        cells.append("" if name == "relative" else paired_interval([behind * 3, behind * 5]))
        assert f"| {' | '.join([label, knows, *cells])} |" in lines
    assert len({line.count("|") for line in lines if "|" in line}) == 1


def test_the_command_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tool = load_tool(PROJECT / "compare_novelty.py")
    done = []

    def measured(output: Path, subset: str, key: tuple[str, int]) -> None:
        done.append(key)
        novelty_file(output, *key, subset).write_text(json.dumps(novelty_result(*key, subset)))

    monkeypatch.setattr(tool, "run_as_process", measured)
    words = ["compare_novelty.py", "--output", str(tmp_path), "--subset", "val"]
    for first, count, expected in ((100, 1, [100]), (100, 2, [101]), (100, 2, [])):
        done.clear()
        options = ["--first-seed", str(first), "--seeds", str(count)]
        monkeypatch.setattr("sys.argv", [*words, *options])
        tool.invoke_main()
        assert sorted(done) == sorted((split, seed) for split in SPLITS for seed in expected)
    # A damaged one is named before the others are done; without it, it is done again.
    path = novelty_file(tmp_path, SPLITS[0], 101, "val")
    path.write_text(path.read_text()[:-9])
    monkeypatch.setattr("sys.argv", [*words, "--first-seed", "101", "--seeds", "2"])
    line = exit_of(tool.invoke_main)
    expected = f"expected that of split {SPLITS[0]}, seed 101, subset val; remove it, and the same"
    assert f"{path}: found no result in it" in line and expected in line and not done
    path.unlink()
    monkeypatch.setattr("sys.argv", [*words, "--first-seed", "100", "--seeds", "2"])
    tool.invoke_main()
    assert done == [(SPLITS[0], 101)]
    shown = capsys.readouterr().out
    assert shown.endswith((tmp_path / "novelty-val.md").read_text() + "\n")
    assert shown.count("`minibench_val`, seeds 100, 101:") == 3 * len(SPLITS)


def test_documents_show_the_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool(PROJECT / "compare_novelty.py")
    monkeypatch.setattr("sys.argv", ["compare_novelty.py", "--docs", "--subset", "val"])
    assert exit_of(tool.invoke_main).startswith("--docs: found --subset val, expected test")
    text = (PROJECT / "README.md").read_text()
    table = text.split("<!-- novelty: begin -->\n")[1].split("<!-- novelty: end -->\n")[0]
    for label, _ in ROWS.values():
        assert table.count(f"| {label} |") == 3
