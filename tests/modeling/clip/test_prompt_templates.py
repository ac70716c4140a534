"""The template sets are, word for word, those that the released models were made with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tagclip.modeling.clip.text_bank import prompt_templates

# Number of templates, those without a full stop, and sha256 of the templates joined by newlines,
# made from the lists in the repositories: ZegCLIP (voc12_single.npy, get_embedding.ipynb), zsseg =
# OV-Seg = FC-CLIP = SAN, CLIP's notebook = CAT-Seg = ZegFormer = zsseg, and MaskCLIP.
PUBLISHED = {
    "single": (1, 1, "a49db5fdb0eb48888b22addd1e83eb8336e2f5dd2a5f47e7fba06eccef851a98"),
    "zegclip15": (15, 0, "cbde80760ccc7fcc1a88edb4de0d282c81c2264180d7b5140b84af9b7b6e5394"),
    "vild14": (14, 4, "20c81c13267c6b932d64146a292f740d2630ab9a403650b066628fa670a7a1b7"),
    "imagenet80": (80, 0, "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af"),
    "maskclip85": (85, 0, "f87d863dc7a96d46812438cf13a8a071e340f7be26222d17a0b61d41d28c0984"),
}


def test_the_sets_and_their_sources(repository: Path) -> None:
    sets = json.loads((repository / "tagclip/modeling/clip/prompt_templates.json").read_text())
    assert set(sets) == set(PUBLISHED)
    assert all(entry["source"].strip() for entry in sets.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_templates_are_the_published_ones(name: str) -> None:
    size, open_ended, digest = PUBLISHED[name]
    templates = prompt_templates(name)
    assert len(templates) == len(set(templates)) == size
    assert sum(not template.endswith(".") for template in templates) == open_ended
    assert hashlib.sha256("\n".join(templates).encode()).hexdigest() == digest


def test_what_the_sets_have_in_common() -> None:
    """The 15 of ZegCLIP are no subset of the 14 of ViLD: full stops and sizes differ."""
    zegclip, vild = set(prompt_templates("zegclip15")), set(prompt_templates("vild14"))
    assert prompt_templates("single")[0] + "." in zegclip & vild
    assert "This is a photo of a {}." in zegclip - vild
    assert "This is a photo of a {}" in vild - zegclip
    assert "There is a small {} in the scene." in vild - zegclip
