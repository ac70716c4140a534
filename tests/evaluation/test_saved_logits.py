"""Files of saved logits: what is written comes back, what is incomplete is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.toy_evaluation import metrics_content
from helpers.toy_views import CLASSES, SEEN, SIZE, toy_views
from safetensors import safe_open

from tagclip import Vocabulary
from tagclip.errors import ConfigError
from tagclip.evaluation.saved_logits import LogitWriter, SavedLogits

LABELS = np.zeros(SIZE, dtype=np.int16)


@pytest.fixture
def toy_saved(tmp_path: Path) -> tuple[Vocabulary, LogitWriter, Path]:
    names = [f"class {k}" for k in range(CLASSES)]
    vocabulary = Vocabulary.from_names(names).with_seen(SEEN.tolist())
    return vocabulary, LogitWriter(tmp_path / "logits", ["/data/a.png"], False), tmp_path / "logits"


@pytest.mark.parametrize("trusty", [True, False])
def test_views_windows_and_gate_come_back(toy_saved: tuple, trusty: bool) -> None:
    vocabulary, writer, folder = toy_saved
    views = toy_views(trusty=trusty, mode="seen", bias=0.25, form="additive")
    views.views[0].class_logits[0, 0, 0, 0] = 1e9
    writer.start()
    writer.write("/data/a.png", LABELS, {"logits": views})
    writer.finish(metrics_content(vocabulary, 1))
    found, size = SavedLogits.open(folder, vocabulary, ["/data/a.png"]).read("/data/a.png")
    assert size == SIZE
    for own, other in zip(found.views, views.views, strict=True):
        assert (own.grid, own.padded_size, own.mirrored) == (
            other.grid, other.padded_size, other.mirrored
        )  # fmt: skip
        assert own.class_logits.isfinite().all()
    assert found.gate == views.gate
    assert found.seen_mask.tolist() == SEEN.tolist()
    expected = views.scores(SIZE)["sem_seg"]
    torch.testing.assert_close(found.scores(SIZE)["sem_seg"], expected, atol=2e-3, rtol=0)
    assert ("trusty" in found.scores(SIZE)) == trusty
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []
    with safe_open(folder / "a.safetensors", "pt") as file:
        names = file.keys()
        assert {file.get_tensor(name).dtype for name in names} == {torch.float16}


def test_margins_come_back(toy_saved: tuple) -> None:
    vocabulary, writer, folder = toy_saved
    views = toy_views(margins=True, mode="seen")
    writer.start()
    writer.write("/data/a.png", LABELS, {"logits": views})
    writer.finish(metrics_content(vocabulary, 1))
    found, _ = SavedLogits.open(folder, vocabulary, ["/data/a.png"]).read("/data/a.png")
    torch.testing.assert_close(found.margin(SIZE), views.margin(SIZE), atol=0.1, rtol=0)
    rejected = found.labels(SIZE)["sem_seg_labels"] < 0
    assert 0.2 < rejected.float().mean() < 0.8
    assert (rejected != (views.margin(SIZE) < 0)).float().mean() < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": None}, "index.json: found damaged logits"),
        ({"gate": {"mode": "x"}}, "index.json: found damaged logits .*TEST.GATE: found 'x'"),
        ({"gate": {"bias": None}}, "index.json: found damaged logits"),
        ({"gate": {"other": 1}}, "index.json: found damaged logits"),
        ({"trusty_target": 3}, "index.json: found damaged logits .*trusty_target 3"),
    ],
)
def test_a_damaged_index_is_named(toy_saved: tuple, change: dict, message: str) -> None:
    vocabulary, writer, folder = toy_saved
    writer.start()
    writer.write("/data/a.png", LABELS, {"logits": toy_views(mode="both")})
    writer.finish(metrics_content(vocabulary, 1))
    whole = json.loads((folder / "index.json").read_text())
    for content in (whole | change, {k: v for k, v in whole.items() if k not in change}):
        (folder / "index.json").write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=message.partition(" .*")[0]) as error:
            SavedLogits.open(folder, vocabulary, ["/data/a.png"])
        assert str(error.value).endswith("evaluate again with TEST.SAVE_LOGITS True")
    (folder / "index.json").write_text(json.dumps(whole | change))
    with pytest.raises(ConfigError, match=message):
        SavedLogits.open(folder, vocabulary, ["/data/a.png"])


def test_incomplete_logits_are_refused(toy_saved: tuple) -> None:
    vocabulary, writer, folder = toy_saved
    writer.start()
    with pytest.raises(ConfigError, match="found no logits in the model's output"):
        writer.write("/data/a.png", LABELS, {})
    writer.write("/data/a.png", LABELS, {"logits": toy_views(mode="both")})
    with pytest.raises(ConfigError, match="found logits of 1 images, expected 2"):
        writer.finish(metrics_content(vocabulary, 2))
    with pytest.raises(ConfigError, match=r"index\.json: no such file, no complete logits"):
        SavedLogits.open(folder, vocabulary, ["/data/a.png"])
    writer.finish(metrics_content(vocabulary, 1))
    other = vocabulary.with_seen((~SEEN).tolist())
    with pytest.raises(ConfigError, match="other seen classes, expected the 3 of .*; eval"):
        SavedLogits.open(folder, other, ["/data/a.png"])
    writer.start()
    assert not folder.exists()
