"""Relation descriptor against its formula."""

from __future__ import annotations

import pytest
import torch

from tagclip.errors import ConfigError
from tagclip.modeling.heads import RelationDescriptor


def test_equals_the_projection_of_the_concatenation() -> None:
    torch.manual_seed(0)
    relation = RelationDescriptor(dim=8)
    torch.nn.init.normal_(relation.proj.bias)
    classes, image = torch.randn(5, 8), torch.randn(3, 8)
    text = classes.expand(3, 5, 8)
    want = relation.proj(torch.cat([text * image[:, None], text], dim=-1))
    torch.testing.assert_close(relation(classes, image), want)


def test_none_describes_the_class_alone() -> None:
    torch.manual_seed(0)
    relation = RelationDescriptor(dim=8, kind="none")
    classes = torch.randn(5, 8)
    want = relation.proj(classes)
    assert torch.equal(relation(classes, torch.randn(3, 8)), want.expand(3, 5, 8))
    assert torch.equal(relation(classes, torch.randn(3, 8)), relation(classes, torch.zeros(3, 8)))


@pytest.mark.parametrize(("kind", "inputs"), [("cls_text", 128), ("none", 64)])
def test_initialisation_is_xavier_uniform_with_zero_bias(kind: str, inputs: int) -> None:
    torch.manual_seed(0)
    relation = RelationDescriptor(dim=64, kind=kind)
    bound = (6 / (inputs + 64)) ** 0.5
    assert relation.proj.weight.shape == (64, inputs)
    assert 0.95 * bound < relation.proj.weight.abs().max() <= bound
    assert not relation.proj.bias.any()


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.TAGCLIP\.RELATION: found 'qms'"):
        RelationDescriptor(dim=8, kind="qms")
