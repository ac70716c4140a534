"""Trainings with the relative trusty map: when it is fitted, on what, and that nothing else is."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from helpers.tiny_run import (
    UNSEEN,
    VOID,
    changed,
    equal,
    maskclip_parts,
    short_run,
    train,
    train_in_two,
    train_labels,
    weights,
)
from PIL import Image

from tagclip import TagCLIPPredictor, Vocabulary, ZeroShotTrainer
from tagclip.analysis.model_cost import ModelAnalysis
from tagclip.analysis.report import write_run
from tagclip.analysis.run_analysis import analyze_run
from tagclip.checkpoint import load_trained
from tagclip.data import Protocol, read_indices
from tagclip.errors import CheckpointError, ConfigError
from tagclip.export.onnx import WindowModel
from tagclip.modeling.backbone import CLIPViT
from tagclip.modeling.inference.windows import ViewLogits
from tagclip.projects import import_projects

PREFIX = "sem_seg_head.trusty_relative."
WORDS = ["cat", "dog", "a red bus"]


@pytest.fixture
def cfg(tiny_cfg: CfgNode, tmp_path: Path) -> CfgNode:
    return short_run(
        tiny_cfg, tmp_path,
        "SOLVER.MAX_ITER", 6,
        "SOLVER.BASE_LR", 0.01,
        "MODEL.TAGCLIP.TRUSTY.KIND", "relative",
        "MODEL.TAGCLIP.TRUSTY.RELATIVE.FIT_IMAGES", 12,
        "MODEL.TAGCLIP.TRUSTY.RELATIVE.SAMPLE_IMAGES", 5,
    )  # fmt: skip


def fit_of(trainer: ZeroShotTrainer) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in trainer.model.state_dict().items() if n.startswith(PREFIX)}


def test_the_class_path_ends_as_without_it(cfg: CfgNode) -> None:
    plain = train(cfg, "MODEL.TAGCLIP.TRUSTY.ENABLED", False)
    trainer = train(cfg)
    assert equal(weights(trainer.model), weights(plain.model))
    found = fit_of(trainer)
    assert found[f"{PREFIX}gaussians.counts"].sum() > 0
    assert found[f"{PREFIX}sample_seen"].flatten(1).any(1).all()


def test_workers_do_not_matter(cfg: CfgNode) -> None:
    assert equal(fit_of(train(cfg)), fit_of(train(cfg, "DATALOADER.NUM_WORKERS", 2)))


def test_resume_is_exact(cfg: CfgNode) -> None:
    whole, resumed = train(cfg), train_in_two(cfg, 3)
    assert equal(weights(resumed.model), weights(whole.model))
    assert equal(fit_of(resumed), fit_of(whole))


def test_it_is_blind_to_unseen_labels(cfg: CfgNode, tmp_path: Path) -> None:
    before = fit_of(train(cfg))
    generator = np.random.default_rng(5)
    for path in train_labels(tmp_path):
        label = np.array(Image.open(path))
        hidden = np.isin(label, UNSEEN)
        assert hidden.any()
        label[hidden] = generator.choice([*UNSEEN, VOID], hidden.sum())
        Image.fromarray(label).save(path)
    assert equal(fit_of(train(cfg)), before)


def test_every_checkpoint_has_the_fit_of_its_own_weights(cfg: CfgNode) -> None:
    trainer = train(cfg, "SOLVER.CHECKPOINT_PERIOD", 3)
    folder = Path(cfg.OUTPUT_DIR)
    first, last = (
        torch.load(folder / name, weights_only=True)["model"]
        for name in ("model_0000002.pth", "model_final.pth")
    )
    name = f"{PREFIX}gaussians.means"
    assert first[name].abs().sum() > 0
    assert not torch.equal(first[name], last[name])
    assert torch.equal(last[name], trainer.model.state_dict()[name])


def test_a_predictor_of_the_checkpoint_asks_any_words(
    cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = train(cfg)
    path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    predictor = TagCLIPPredictor.from_checkpoint(path)
    image = next((tmp_path / "images" / "val").iterdir())
    found = predictor(str(image))
    trainer.model.eval()
    predictor.model = trainer.model
    again = predictor(str(image))
    assert torch.equal(found["trusty"], again["trusty"])
    predictor.set_vocabulary(WORDS, seen=["cat"])
    words = predictor(str(image))["trusty"]
    assert not torch.equal(words, found["trusty"])
    assert ((words >= 0) & (words <= 1)).all()
    # Nothing is to be compared: the tower runs once.
    predictor.set_vocabulary(WORDS, seen=WORDS)
    monkeypatch.delattr(CLIPViT, "plain")
    assert (predictor(str(image))["trusty"] > 0.99).all()


def test_a_list_without_classes_of_the_training_has_the_same_map(
    cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Patches of these are among those by which the map knows what is usual.

    They are not encoded anew for every list.
    """
    trainer = train(cfg)
    predictor = TagCLIPPredictor.from_checkpoint(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    image = next((tmp_path / "images" / "val").iterdir())
    known = trainer.model.train_vocabulary.names
    assert len(known) > 1

    def view(words: list[str]) -> ViewLogits:
        (found,) = predictor.encode(str(image), predictor.resolve(words)).views
        return found

    everything, two = view(["zebra", *known]), view(["zebra", known[-1]])
    torch.testing.assert_close(two.trusty_logits, everything.trusty_logits, rtol=1e-4, atol=1e-4)
    assert two.class_logits.shape[1] == 2
    expected = everything.class_logits[:, [0, -1]]
    torch.testing.assert_close(two.class_logits, expected, rtol=1e-4, atol=1e-4)
    # It depends on the unseen words.
    with caplog.at_level(logging.INFO, "tagclip"):
        other = view(["a red bus", known[0]]).trusty_logits
    assert [text[:16] for text in caplog.messages if "templates" in text] == ["Encoding 2 names"]
    assert not torch.allclose(other, everything.trusty_logits, atol=0.1)


@pytest.fixture
def auto(cfg: CfgNode) -> TagCLIPPredictor:
    """Trained, and asked for a test that loses much."""
    keys = "MODEL.TAGCLIP.TRUSTY.RELATIVE."
    trainer = train(cfg, f"{keys}FIT_IMAGES", 24, f"{keys}KEPT_PATCHES", 16)
    opts = ["MODEL.TAGCLIP.TEST.BACKGROUND", "auto", "MODEL.TAGCLIP.TEST.BACKGROUND_MISS_RATE", 0.3]
    path = Path(trainer.cfg.OUTPUT_DIR) / "model_final.pth"
    return TagCLIPPredictor.from_checkpoint(path, list(map(str, opts)))


def test_kept_patches_are_those_of_the_training_images(cfg: CfgNode) -> None:
    """Not more of them than FIT_IMAGES, though 12 is no multiple of the batch here."""
    trainer = train(cfg, "SOLVER.IMS_PER_BATCH", 5)
    none = trainer.model.relative_trusty.none_of_these
    assert none.vectors.shape[:2] == (12, 10) and (none.seen.sum(1) > 0).any()
    assert none.vectors.flatten(0, 1).abs().sum(1).all()
    assert none.unlabelled.counts > 0
    # Six images twice over.
    assert none.images.unique().tolist() == [0, 1, 2, 3, 4, 5]
    # Unlabelled pixels of all images, and none of seen classes, as patches.
    assert 0 < none.seen.mean() < 1


def test_words_that_are_not_there_are_other(auto: TagCLIPPredictor, tmp_path: Path) -> None:
    image = next((tmp_path / "images" / "val").iterdir())
    names = auto.model.train_vocabulary.names
    known = list(names)
    auto.set_vocabulary(["zebra"])
    assert auto.can_be_other and auto.asked.shown.names == ["zebra"]
    assert auto.asked.all.names == ["zebra", *known]
    assert auto.asked.all.seen == (False, *[True] * len(known))
    fusion = auto.encode(str(image), auto.asked)
    size = auto.read_image(image).shape[:2]
    best = fusion.best(size)[0].long()
    expected = torch.where((best == 0) & (fusion.margin(size) >= 0), 0, -1)
    found = auto(str(image), top_k=1)
    assert torch.equal(found["sem_seg_labels"].long(), expected)
    assert 0 < (fusion.margin(size) < 0).float().mean() < 1


def test_all_other_classes_of_the_training_compete(
    auto: TagCLIPPredictor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word that may be another name of one of them is named, whose pixels it would not get."""
    caplog.set_level(logging.INFO)
    bank, known = auto.model.text_bank, auto.model.train_vocabulary
    vectors = bank.class_vectors(known).detach()
    alike = vectors @ vectors.T
    alike.fill_diagonal_(-1)
    alikes = [f"{known.names[0]}{mark}" for mark in (".", ",", "!", ";", ":", "s", " .")]
    nearest = (bank.class_vectors(Vocabulary.from_names(alikes)).detach() @ vectors.T).amax(1)
    near = alikes[int(nearest.argmax())]
    assert nearest.max() > alike.max()
    for words in (["zebra"], known.names[:2], [near], ["zebra", near], known.names):
        monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
        asked = auto.resolve(words)
        assert asked.all.names[len(words) :] == [n for n in known.names if n not in words]
        own = (bank.class_vectors(asked.shown).detach() @ vectors.T).tolist()
        pairs = [
            f"{word!r} ({name!r})"
            for word, row in zip(words, own, strict=True)
            for name, value in zip(known.names, row, strict=True)
            if word not in known.names and value > alike.max()
        ]
        said = [text for text in caplog.messages if text.startswith("These words count as un")]
        assert [f": {', '.join(pairs)}; where" in text for text in said] == [True] * bool(pairs)
        caplog.clear()
    context = auto.resolve(["zebra"], context=known.names[:1])
    assert sorted(context.all.names) == sorted(["zebra", *known.names])


def test_an_evaluation_counts_what_is_other(
    auto: TagCLIPPredictor, tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    folder, (dataset,) = tmp_path / "evaluated", tiny_cfg.DATASETS.TEST
    opts = ("DATASETS.TEST", (dataset,), "OUTPUT_DIR", str(folder), "TEST.SAVE_LOGITS", True)
    cfg = changed(auto.cfg, *opts)
    model = load_trained(cfg)
    found = ZeroShotTrainer.test(cfg, model)["sem_seg"]
    (metrics,) = folder.glob("inference/*/metrics.json")
    run = analyze_run(folder, cfg, json.loads(metrics.read_text()), "auto")
    page = write_run(run, tmp_path / "analysis", 1).read_text(encoding="utf-8")
    assert "BACKGROUND auto: what it rejects is in the figures" in page
    rejected = run.analysis.figures()["rejected"]
    counts = {"seen": [0, 0], "unseen": [0, 0]}
    auto.set_vocabulary(dataset)
    vocabulary, right, labelled = Protocol(cfg).asked(dataset), 0, 0
    for sample in DatasetCatalog.get(dataset):
        labels = auto(sample["file_name"])["sem_seg_labels"].numpy()
        truth = read_indices(sample["sem_seg_file_name"], vocabulary, labels.shape)
        known = truth < len(vocabulary)
        right, labelled = right + (labels == truth)[known].sum(), labelled + known.sum()
        for side, mask in (("seen", vocabulary.seen_mask), ("unseen", ~vocabulary.seen_mask)):
            own = known & np.append(mask, [False] * 300)[truth]
            counts[side][0] += own.sum()
            counts[side][1] += (labels[own] == -1).sum()
    for side, (every, lost) in counts.items():
        assert rejected[f"{side} pixels lost"] == pytest.approx(100 * lost / every, abs=0.5)
        assert 0 < lost < every
    assert found["pAcc"] == pytest.approx(100 * right / labelled, abs=1e-6)
    # The logits of an evaluation before do not pass for those of this one.
    content = json.loads(metrics.read_text())
    content["metrics"]["mIoU"] += 1
    with pytest.raises(ConfigError, match="^[^\n]*logits that reach mIoU"):
        analyze_run(folder, cfg, content, "auto")


@pytest.mark.parametrize("kind", ["token", "conv"])
def test_auto_without_such_a_map_is_refused_when_the_model_is_built(
    cfg: CfgNode, kind: str
) -> None:
    opts = ["MODEL.TAGCLIP.TRUSTY.KIND", kind, "MODEL.TAGCLIP.TEST.BACKGROUND", "auto"]
    with pytest.raises(ConfigError, match="^MODEL.TAGCLIP.TEST.BACKGROUND: found auto [^\n]*rel"):
        ZeroShotTrainer.build_model(changed(cfg, *opts))


def test_a_promise_that_cannot_be_kept_is_refused_when_the_model_is_built(cfg: CfgNode) -> None:
    with pytest.raises(ConfigError, match="^MODEL.TAGCLIP.TEST.BACKGROUND: .* 12 training images"):
        ZeroShotTrainer.build_model(changed(cfg, "MODEL.TAGCLIP.TEST.BACKGROUND", "auto"))


def test_a_promise_that_the_images_cannot_keep_is_refused_before_the_first_image(
    auto: TagCLIPPredictor,
) -> None:
    """24 inputs are enough, the 6 images that they are crops of are not."""
    test, weights = "MODEL.TAGCLIP.TEST.BACKGROUND", auto.cfg.MODEL.WEIGHTS
    TagCLIPPredictor.from_checkpoint(weights, [test, "threshold", f"{test}_MISS_RATE", "0.05"])
    with pytest.raises(CheckpointError, match="^[^\n]*auto with 6 images[^\n]*least 20 for"):
        TagCLIPPredictor.from_checkpoint(weights, [test, "auto", f"{test}_MISS_RATE", "0.05"])


def test_classes_of_the_training_that_are_called_unseen_are_named(
    auto: TagCLIPPredictor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = auto.model.train_vocabulary.restrict("seen").names[:2]
    for seen, named in ((both[:1], both[1:]), (both, []), ([], both)):
        monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
        caplog.clear()
        auto.resolve([*both, "zebra"], seen=seen)
        said = [text for text in caplog.messages if text.startswith("These classes are called un")]
        listed = f"trained the model: {', '.join(map(repr, named))};"
        assert [listed in text for text in said] == [True] * bool(named)


def test_images_without_unlabelled_pixels_are_refused_before_the_training(
    cfg: CfgNode, tmp_path: Path
) -> None:
    """The first evaluation would refuse them after hours. With such pixels nothing changes."""
    asked = ["MODEL.TAGCLIP.TEST.BACKGROUND", "auto"]
    asked += ["MODEL.TAGCLIP.TEST.BACKGROUND_MISS_RATE", 0.3]
    asked += ["MODEL.TAGCLIP.TRUSTY.RELATIVE.FIT_IMAGES", 24]
    plain = train(cfg, *asked[-2:])
    assert equal(fit_of(train(cfg, *asked)), fit_of(plain))
    for path in train_labels(tmp_path):
        label = np.array(Image.open(path))
        label[np.isin(label, [*UNSEEN, VOID])] = 0
        Image.fromarray(label).save(path)
    other = changed(cfg, *asked, "OUTPUT_DIR", str(tmp_path / "other"))
    with pytest.raises(CheckpointError, match="^[^\n]*found auto with 0 unlabelled patches"):
        train(other)
    assert not list((tmp_path / "other").glob("*.pth"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.TAGCLIP.TRUSTY.TARGET", "novel"),
        ("DATASETS.ZERO_SHOT.SETTING", "transductive"),
        ("INPUT.CROP.ENABLED", False),
    ],
)
def test_what_it_is_not_made_for_is_named(cfg: CfgNode, key: str, value: object) -> None:
    opts = [key, value, "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", True]
    with pytest.raises(ConfigError, match=rf"^{key}: [^\n]*relative"):
        ZeroShotTrainer.build_model(changed(cfg, *opts))


def test_training_free_heads_have_no_such_map(cfg: CfgNode, maskclip_cfg: CfgNode) -> None:
    on = ("MODEL.TAGCLIP.TRUSTY.ENABLED", True, "MODEL.TAGCLIP.TRUSTY.KIND", "relative")
    import_projects(maskclip_cfg.PROJECTS)
    with pytest.raises(ConfigError, match="TRUSTY.KIND: found 'relative'"):
        ZeroShotTrainer.build_model(changed(maskclip_cfg, *on))


def test_a_tower_without_plain_patches_is_refused_when_it_is_built(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(CLIPViT, "plain")
    with pytest.raises(ConfigError, match="TRUSTY.KIND: found relative with the image tower"):
        ZeroShotTrainer.build_model(cfg)


def test_the_second_pass_of_the_tower_is_counted(cfg: CfgNode) -> None:
    size = (64, 64)
    found = ModelAnalysis(cfg).forward_macs(3, size)
    opts = [*maskclip_parts(), "MODEL.CLIP.DOUBLE_CLS_EMBED", False]
    import_projects(["training_free"])
    free = ModelAnalysis(changed(cfg, "MODEL.TAGCLIP.TRUSTY.KIND", "token", *opts))
    parts = free.forward_macs(3, size)
    # MaskCLIP projects the class token, too: 64 channels to 32.
    expected = sum(macs for name, macs in parts.items() if name.startswith("backbone")) - 64 * 32
    assert found["backbone.plain"] == expected


def test_it_is_not_exported(cfg: CfgNode) -> None:
    model = ZeroShotTrainer.build_model(cfg)
    with pytest.raises(ConfigError, match="^MODEL.TAGCLIP.TRUSTY.KIND: found relative"):
        WindowModel(model, model.vocabulary)
