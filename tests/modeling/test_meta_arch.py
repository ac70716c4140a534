"""The model as a whole: losses, gradients, result forms, and what must not change a result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.nn import functional as F

from tagclip import Vocabulary
from tagclip.errors import DatasetError, VocabularyError
from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.losses.seg_loss import SegTargets


@pytest.fixture
def model(tiny_cfg: CfgNode) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(tiny_cfg)


def training_inputs(*sizes: tuple[int, int]) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for height, width in sizes:
        labels = torch.randint(0, 4, (height, width), generator=generator, dtype=torch.uint8)
        labels[labels == 3] = 255
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "sem_seg": labels, "file_name": "a.png"})
    return inputs


def test_every_trainable_parameter_gets_a_gradient_and_frozen_ones_none(
    model: torch.nn.Module,
) -> None:
    losses = model(training_inputs((64, 64), (64, 64)))
    assert set(losses) == {"loss_mask", "loss_dice", "loss_trusty"}
    sum(losses.values()).backward()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable
    assert {name.split(".")[0] for name in trainable} == {"backbone", "sem_seg_head"}
    assert all("prompts" in name for name in trainable if name.startswith("backbone"))
    # The key bias of an attention layer moves every logit alike: its gradient is rounding noise.
    zero = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert all("bias" in name for name in zero), zero


def test_text_bank_is_in_neither_checkpoint_nor_optimizer(model: torch.nn.Module) -> None:
    model(training_inputs((64, 64)))
    assert not [name for name in model.state_dict() if name.startswith("text_bank")]
    # Nor what the config says.
    assert not {"pixel_mean", "pixel_std", "trusted_labels"} & model.state_dict().keys()
    assert not list(model.text_bank.parameters())


def test_targets_are_padded_and_the_trusty_target_is_seen_pixels(model: torch.nn.Module) -> None:
    inputs = training_inputs((40, 64), (64, 30))
    images, sizes = model.preprocess_images(inputs)
    assert images.shape == (2, 3, 64, 64)
    assert not images[0, :, 40:].any() and not images[1, :, :, 30:].any()
    targets = model.preprocess_targets(inputs, images.shape[-2:], sizes)
    assert isinstance(targets, SegTargets)
    assert (targets.labels[0, 40:] == 255).all() and (targets.labels[1, :, 30:] == 255).all()
    assert targets.valid.sum().item() == 40 * 64 + 64 * 30
    assert torch.equal(targets.trusty, targets.labels != 255)


def test_batches_are_as_large_as_the_crop_or_as_their_largest_image(tiny_cfg: CfgNode) -> None:
    """Whole patches of 16 pixels; or larger, as a part of a batch is told to be."""
    tiny_cfg.INPUT.CROP.SIZE = [64, 80]
    inputs = training_inputs((20, 40), (30, 20))
    for enabled, size in ((True, (64, 80)), (False, (32, 48))):
        tiny_cfg.INPUT.CROP.ENABLED = enabled
        model = build_model(tiny_cfg)
        images, sizes = model.preprocess_images(inputs)
        assert images.shape[-2:] == size and sizes == [(20, 40), (30, 20)]
        told = [{**item, "padded_size": (70, 41)} for item in inputs]
        expected = (80, max(48, size[1]))
        assert model.preprocess_images(told)[0].shape[-2:] == expected


def test_novel_target_needs_the_mask(model: torch.nn.Module) -> None:
    model.trusty_target = "novel"
    inputs = training_inputs((64, 64))
    with pytest.raises(DatasetError, match=r"a\.png: found no novel_mask"):
        model(inputs)
    inputs[0]["novel_mask"] = torch.zeros(64, 64, dtype=torch.bool)
    assert torch.isfinite(model(inputs)["loss_trusty"])


def test_result_forms_agree(model: torch.nn.Module) -> None:
    model.eval()
    item = {"image": torch.randint(0, 256, (3, 70, 133), dtype=torch.uint8)}
    item |= {"height": 50, "width": 101}
    labels = model([item])[0]
    assert labels["sem_seg_labels"].shape == (50, 101)
    assert labels["trusty"].dtype == torch.half
    model.inference_settings = replace(model.inference_settings, output="scores")
    scores = model([item])[0]
    assert scores["sem_seg"].shape == (5, 50, 101)
    assert torch.equal(scores["sem_seg"].argmax(0), labels["sem_seg_labels"].long())


def test_an_image_that_fits_is_one_plain_forward(model: torch.nn.Module) -> None:
    """Window, padding and gate against the written-out sequence on the padded image."""
    model.eval()
    model.inference_settings = replace(model.inference_settings, output="scores")
    image = torch.randint(0, 256, (3, 50, 61), dtype=torch.uint8)
    padded = F.pad((image - model.pixel_mean) / model.pixel_std, (0, 3, 0, 14))
    vocabulary = model.vocabulary
    with torch.no_grad():
        features = model.backbone(padded[None])
        (logits, trusty), _ = model.sem_seg_head(features, model.text_bank(vocabulary))
        full = F.interpolate(torch.cat([logits, trusty], 1), (64, 64), mode="bilinear").sigmoid()
    gate, seen = Gate("both", bias=0.1), torch.from_numpy(vocabulary.seen_mask)
    expected = gate(full[0, :-1], full[0, -1:], seen)[:, :50, :61]
    torch.testing.assert_close(model([{"image": image}])[0]["sem_seg"], expected)


@pytest.mark.parametrize("change", [{"window_batch": 1}, {"window_batch": 3}, {"workspace_mib": 1}])
def test_memory_settings_never_change_a_result(model: torch.nn.Module, change: dict) -> None:
    model.eval()
    model.inference_settings = replace(model.inference_settings, output="scores")
    item = {"image": torch.randint(0, 256, (3, 99, 133), dtype=torch.uint8)}
    before = model([item])[0]
    model.inference_settings = replace(model.inference_settings, **change)
    after = model([item])[0]
    assert torch.equal(before["sem_seg"], after["sem_seg"])
    assert torch.equal(before["trusty"], after["trusty"])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (33, 17)])
def test_any_image_size_works(model: torch.nn.Module, size: tuple[int, int]) -> None:
    model.eval()
    result = model([{"image": torch.zeros(3, *size, dtype=torch.uint8)}])[0]
    assert result["sem_seg_labels"].shape == size


def test_a_vocabulary_of_its_own_per_call(model: torch.nn.Module) -> None:
    model.eval()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    vocabulary = Vocabulary.from_names(["cat", "zebra"])
    labels = model([{"image": image, "vocabulary": vocabulary}])[0]["sem_seg_labels"]
    assert labels.max() < 2
    resolved = model.resolve_vocabulary([{"image": image, "vocabulary": vocabulary}])
    assert resolved.seen_mask.tolist() == [True, False]
    with pytest.raises(VocabularyError, match="found several vocabularies"):
        model([{"image": image, "vocabulary": vocabulary}, {"image": image}])
