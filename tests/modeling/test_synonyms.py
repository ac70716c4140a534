"""Several prompt names per class, united by the highest logit: against loops over the names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.clip_files import class_list, fails, random_clip
from helpers.tiny_run import changed
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from tagclip import TextBank, Vocabulary
from tagclip.errors import ConfigError
from tagclip.export.onnx import RUNNERS, WindowModel, to_torchscript
from tagclip.modeling.clip.text_bank import class_maximum

CLASSES = [["cat", "kitten"], ["sky"], ["dog", "puppy", "old hound"]]
SINGLE = [[name] for names in CLASSES for name in names]


@pytest.fixture(scope="module")
def clip_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP that tells words apart."""
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file(random_clip().state_dict(), path)
    return str(path)


def build(cfg: CfgNode, clip_weights: str, synonyms: str, *opts: object) -> nn.Module:
    torch.manual_seed(0)
    options = ("MODEL.CLIP.PRETRAINED", clip_weights, "MODEL.CLIP.SYNONYMS", synonyms, *opts)
    return build_model(changed(cfg, *options)).eval()


def asked(classes: list[list[str]]) -> Vocabulary:
    return class_list(*classes).with_seen([names[0] == "cat" for names in classes])


def naive_maximum(logits: Tensor, classes: list[list[str]] = CLASSES) -> Tensor:
    """(N, P, h, w) -> (N, K, h, w), one name after the other."""
    planes, start = [], 0
    for names in classes:
        plane = logits[:, start]
        for offset in range(1, len(names)):
            plane = torch.maximum(plane, logits[:, start + offset])
        planes.append(plane)
        start += len(names)
    return torch.stack(planes, dim=1)


def image(height: int = 64, width: int = 90) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("layers", ["nn", "an"])
def test_inference_takes_the_best_name(tiny_cfg: CfgNode, clip_weights: str, layers: str) -> None:
    """Against the model that is asked for every name as a class of its own."""
    options = ("MODEL.TAGCLIP.LAYERS", layers)
    maximum = build(tiny_cfg, clip_weights, "max", *options)
    mean = build(tiny_cfg, clip_weights, "mean", *options)
    mean.load_state_dict(maximum.state_dict())
    found = maximum.encode({"image": image()}, asked(CLASSES))
    alone = mean.encode({"image": image()}, asked(SINGLE))
    (found,), (alone,) = found.views, alone.views
    assert found.class_logits.shape[1] == 3 and alone.class_logits.shape[1] == 6
    assert torch.equal(found.class_logits, naive_maximum(alone.class_logits))
    assert torch.equal(found.trusty_logits, alone.trusty_logits)
    # Each of the names wins somewhere: the comparison means something.
    winners = alone.class_logits[:, 3:].argmax(1)
    assert len(winners.unique()) > 1
    assert not torch.allclose(
        found.class_logits,
        mean.encode({"image": image()}, asked(CLASSES)).views[0].class_logits,
        atol=1e-3,
    )
    result = maximum([{"image": image(), "vocabulary": asked(CLASSES)}])[0]
    assert result["sem_seg_labels"].max() <= 2


def test_training_takes_the_best_name(tiny_cfg: CfgNode, clip_weights: str) -> None:
    model = build(tiny_cfg, clip_weights, "max").train()
    classes = [["cat", "kitten"], ["grass"], ["sofa", "couch", "settee"]]
    entries = zip(model.train_vocabulary.classes, classes, strict=True)
    model.train_vocabulary = replace(
        model.train_vocabulary,
        classes=tuple(replace(entry, prompts=tuple(names)) for entry, names in entries),
    )
    logits, targets = [], []
    model.sem_seg_head.decoder.register_forward_hook(lambda _, __, output: logits.append(output))
    model.sem_seg_head.loss.register_forward_hook(lambda _, args, __: targets.append(args))
    labels = torch.randint(0, 3, (64, 64), dtype=torch.uint8)
    losses = model([{"image": image(64, 64), "sem_seg": labels}])
    assert all(torch.isfinite(loss) for loss in losses.values())
    expected = naive_maximum(logits[0][:, :-1].unflatten(2, (4, 4)), classes)
    assert torch.equal(targets[0][0], expected)
    sum(losses.values()).backward()
    trainable = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not trainable


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 9))
def test_only_the_best_name_gets_a_gradient(counts: list[int], seed: int) -> None:
    classes = [[f"word {k} {i}" for i in range(count)] for k, count in enumerate(counts)]
    bank = TextBank(source=None, templates=["{}"], synonyms="max")
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, sum(counts), 3, 2, generator=generator, requires_grad=True)
    weight = torch.randn(2, len(counts), 3, 2, generator=generator)
    found = class_maximum(logits, bank.prompt_rows(class_list(*classes)))
    expected = naive_maximum(logits, classes)
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad((x * weight).sum(), logits)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_the_mean_costs_nothing(tiny_cfg: CfgNode) -> None:
    bank, logits = TextBank(tiny_cfg), torch.zeros(1, 3, 2, 2)
    assert bank.prompt_rows(asked(CLASSES)) is None
    assert class_maximum(logits, None) is logits
    single = TextBank(changed(tiny_cfg, "MODEL.CLIP.SYNONYMS", "max"))
    assert single.prompt_rows(asked(SINGLE)) is None


def test_every_name_has_its_own_vector_in_memory_and_on_disk(
    tiny_cfg: CfgNode, clip_weights: str, tmp_path: Path
) -> None:
    options = ("MODEL.CLIP.PRETRAINED", clip_weights, "MODEL.CLIP.TEXT_CACHE", str(tmp_path / "t"))
    mean = TextBank(changed(tiny_cfg, *options))
    banks = [TextBank(changed(tiny_cfg, *options, "MODEL.CLIP.SYNONYMS", "max")) for _ in range(2)]
    several, single = class_list(*CLASSES), class_list(*SINGLE)
    prints = {mean.fingerprint(several), banks[0].fingerprint(several)}
    assert len(prints) == 2
    # The same rows are the same entry of the cache.
    assert banks[0].fingerprint(several) == mean.fingerprint(single) == banks[0].fingerprint(single)
    vectors = banks[0](several)
    assert vectors.shape == (6, 32)
    assert torch.equal(banks[1](several), vectors) and banks[1].num_text_forwards == 0
    assert torch.equal(mean(single), vectors) and mean.num_text_forwards == 0
    assert mean(several).shape == (3, 32)


@pytest.mark.parametrize("synonyms", ["mean", "max"])
@pytest.mark.parametrize("part", [[], [0], [1, 2], [0, 1, 2]])
def test_a_list_with_a_part_of_another_is_their_union(
    tiny_cfg: CfgNode, clip_weights: str, synonyms: str, part: list[int]
) -> None:
    """As if it were encoded as one, but for rounding."""
    options = ("MODEL.CLIP.PRETRAINED", clip_weights, "MODEL.CLIP.SYNONYMS", synonyms)
    bank = TextBank(changed(tiny_cfg, *options))
    own, known = asked([["bus", "a red bus"], ["tree"]]), asked(CLASSES)
    vectors, rows = bank.with_part(own, known, torch.tensor([k in part for k in range(3)]))
    union = asked([["bus", "a red bus"], ["tree"], *(CLASSES[k] for k in part)])
    torch.testing.assert_close(vectors, bank(union), atol=1e-5, rtol=0)
    expected = bank.prompt_rows(union)
    assert (rows is None) == (expected is None) and (rows is None or torch.equal(rows, expected))


def test_an_exported_model_takes_the_best_name(tiny_cfg: CfgNode, clip_weights: str) -> None:
    model = build(tiny_cfg, clip_weights, "max", "MODEL.TAGCLIP.TEST.MODE", "whole")
    vocabulary = asked(CLASSES)
    run = RUNNERS["torchscript"](to_torchscript(WindowModel(model, vocabulary, (64, 90))))
    expected = model.encode({"image": image()}, vocabulary).scores((64, 90))["sem_seg"]
    scores = torch.from_numpy(run(image()[None].numpy())[0][0])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


def test_another_rule_is_refused(tiny_cfg: CfgNode) -> None:
    cfg = changed(tiny_cfg, "MODEL.CLIP.SYNONYMS", "median")
    fails(ConfigError, lambda: TextBank(cfg), "MODEL.CLIP.SYNONYMS", "'median'", "'max'")
