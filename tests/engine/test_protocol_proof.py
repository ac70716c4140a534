"""--prove-protocol: proves what holds, and notices every kind of leak."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.tiny_run import (
    UNSEEN,
    VOID,
    changed,
    exit_of,
    run_arguments,
    train_labels,
    weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagclip import ZeroShotTrainer, load_config
from tagclip.data import Protocol, dataset_mapper
from tagclip.data.datasets.changed_copies import (
    changed_datasets,
    rename_unseen,
    scramble_files,
    scramble_unseen,
    write_vocabulary,
)
from tagclip.data.label_io import read_label
from tagclip.engine import training_loop
from tagclip.engine.protocol_proof import prove_protocol
from tagclip.engine.trusty_fitting import TrustyFitting
from tagclip.errors import ConfigError, DatasetError, ProtocolError
from tagclip.modeling import meta_arch
from tagclip.structures.vocabulary import ClassEntry, Vocabulary
from tagclip.utils.cli import run_tool

LABELS, NAMES = "unseen labels scrambled", "unseen names replaced"
NOVEL = ("MODEL.TAGCLIP.TRUSTY.TARGET", "novel", "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", True)


def prove(config: Path, iterations: int, *opts: Any) -> Any:
    return prove_protocol(load_config(config, [str(value) for value in opts]), iterations)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_tool_proves_and_writes_nothing(
    train_net: ModuleType,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path), set(DatasetCatalog.list()), set(MetadataCatalog.list())
    # Three steps of two images draw each of the six files once.
    train_net.prove(run_arguments(config, prove_protocol=3))
    assert (snapshot(tmp_path), set(DatasetCatalog.list()), set(MetadataCatalog.list())) == before
    pixels = sum(np.isin(np.asarray(Image.open(p)), UNSEEN).sum() for p in train_labels(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Protocol: inductive, split zs: 3 seen / 2 unseen; ")
    assert f"6 images seen, of 6 files; {pixels} pixels with unseen labels scrambled" in lines[2]
    assert lines[1] == "Starts from: CLIP"
    for change in (LABELS, NAMES):
        (row,) = [line.split("  ") for line in lines if line.startswith(change)]
        difference, tensors, losses = [cell.strip() for cell in row if cell][1:]
        assert difference == "0" and tensors.startswith("0 of ")
        # Three steps of mask, dice, trusty and total loss.
        assert losses == "0 of 12"
    assert lines[-1].startswith("Proved for these iterations: no label or name of an unseen class")


def test_what_is_proven_about_is_the_run_itself(config: Path, tmp_path: Path) -> None:
    proof = prove(config, 4)
    cfg = load_config(config, ["DATASETS.TEST", "()"])
    Path(cfg.OUTPUT_DIR).mkdir()
    trainer = ZeroShotTrainer(cfg)
    start = weights(trainer.model)
    trainer.train()
    end = weights(trainer.model)
    assert proof.moved == max(float((end[n].double() - start[n]).abs().max()) for n in start) > 0


RELATIVE = ("MODEL.TAGCLIP.TRUSTY.KIND", "relative")


def test_a_fitted_map_is_proven_too(config: Path) -> None:
    proof = prove(config, 2, *RELATIVE)
    assert "Proved" in proof.conclusion()
    trained = prove(config, 2, "MODEL.TAGCLIP.TRUSTY.ENABLED", False)
    tensors, fewer = (p.differences[LABELS].all_tensors for p in (proof, trained))
    # Of the map, and of the test for none of the classes.
    assert tensors == fewer + 7 + 6


def test_a_fit_that_reads_unseen_labels_is_noticed(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = TrustyFitting.fit

    def leaking(self: TrustyFitting) -> None:
        fit(self)
        label = np.asarray(Image.open(self._loader.source(0)["sem_seg_file_name"]))
        self._model.relative_trusty.gaussians.counts[0] = float((label == UNSEEN[0]).sum())

    monkeypatch.setattr(TrustyFitting, "fit", leaking)
    with pytest.raises(ProtocolError, match=f"with {LABELS}, found"):
        prove(config, 2, *RELATIVE).conclusion()


ORIGINAL_TABLES = dataset_mapper._training_luts


def leaking_tables(source: Vocabulary, target: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """The mapper's tables, but one unseen class keeps a label."""
    lut, novel = ORIGINAL_TABLES(source, target)
    lut[UNSEEN[0]] = 0
    return lut, novel


def test_a_mapper_that_leaks_is_noticed(
    train_net: ModuleType,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(dataset_mapper, "_training_luts", leaking_tables)
    line = exit_of(run_tool, train_net.prove, run_arguments(config, prove_protocol=3))
    assert line.startswith(f"ProtocolError: --prove-protocol: with {LABELS}, found ")
    assert "\n" not in line and "expected none" in line
    assert "Proved" not in capsys.readouterr().out


def test_a_leak_past_the_protocol_step_is_noticed(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels are scrambled in the files: whoever reads them meets the scrambled ones."""
    sample = dataset_mapper.ZeroShotDatasetMapper._training_sample

    def leaking(self: Any, item: dict[str, Any]) -> dict[str, Any]:
        shown = np.asarray(Image.open(item["sem_seg_file_name"])) == UNSEEN[1]
        image = self._read_image(item["file_name"])
        leak = np.where(shown[..., None], 255 - image, image)
        with patch.object(self, "_read_image", lambda *args: leak):
            return sample(self, item)

    monkeypatch.setattr(dataset_mapper.ZeroShotDatasetMapper, "_training_sample", leaking)
    with pytest.raises(ProtocolError, match=f"with {LABELS}, found"):
        prove(config, 2).conclusion()


def test_a_model_that_asks_for_unseen_names_is_noticed(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaking(Protocol):
        training = property(lambda self: self.full)

    monkeypatch.setattr(meta_arch, "Protocol", Leaking)
    proof = prove(config, 2)
    assert not proof.differences[LABELS] and proof.differences[NAMES].largest > 0
    with pytest.raises(ProtocolError, match=f"with {NAMES}, found"):
        proof.conclusion()


def test_the_released_target_fails_and_the_key_is_named(config: Path) -> None:
    proof = prove(config, 2, *NOVEL)
    assert proof.differences[LABELS] and not proof.differences[NAMES] and not proof.repeated
    with pytest.raises(ProtocolError, match=r"TRUSTY\.TARGET or .* is 'novel', .* take 'seen'"):
        proof.conclusion()


def test_a_run_that_never_repeats_proves_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "seeded_step", lambda *numbers: torch.seed())
    with pytest.raises(ProtocolError, match="when the unchanged run is repeated, expected the"):
        prove(config, 2).conclusion()


def test_transductive_training_uses_names_and_no_labels(config: Path) -> None:
    proof = prove(config, 2, "DATASETS.ZERO_SHOT.SETTING", "transductive")
    assert proof.differences.keys() == {LABELS} and not proof.differences[LABELS]
    assert "no label of an unseen class has an effect. Their names are used" in proof.conclusion()


@pytest.mark.parametrize(
    ("iterations", "opts", "message"),
    [
        (2, ("DATASETS.ZERO_SHOT.SETTING", "supervised"), "SETTING supervised, .*nothing to prov"),
        (2, ("DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES", True), "SKIP_UNSEEN_IMAGES True"),
        (0, (), r"found 0 iterations, expected 1 to SOLVER\.MAX_ITER \(4\)"),
        (5, (), r"found 5 iterations, expected 1 to SOLVER\.MAX_ITER \(4\)"),
    ],
)
def test_where_there_is_nothing_to_prove(
    config: Path, iterations: int, opts: tuple, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        prove(config, iterations, *opts)
    assert "\n" not in str(caught.value)


def test_without_unseen_pixels_nothing_is_proven(
    train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    for path in train_labels(tmp_path):
        label = np.asarray(Image.open(path)).copy()
        label[np.isin(label, UNSEEN)] = VOID
        Image.fromarray(label).save(path)
    line = exit_of(run_tool, train_net.prove, run_arguments(config, prove_protocol=2))
    assert line.startswith("ProtocolError: --prove-protocol: found 0 pixels of unseen classes in ")
    assert "the proof says nothing" in line


def test_without_learning_nothing_is_proven(config: Path) -> None:
    with pytest.raises(ProtocolError, match="found no weight that moved in 2 iterations"):
        prove(config, 2, "SOLVER.BASE_LR", 0.0, "SOLVER.MIN_LR", 0.0).conclusion()


def test_an_image_without_label_file_is_refused(config: Path) -> None:
    with changed_datasets(load_config(config)) as cfg:
        (name,) = cfg.DATASETS.TRAIN
        samples = DatasetCatalog.get(name)
        del samples[0]["sem_seg_file_name"]
        DatasetCatalog.pop(name)
        DatasetCatalog.register(name, lambda: samples)
        with pytest.raises(DatasetError, match="no label file is registered for this image"):
            prove_protocol(cfg, 3)


@pytest.mark.parametrize("other", ["--eval-only", "--resume", "--num-gpus 2", "--num-machines 2"])
def test_options_that_do_not_go_together(
    other: str, train_net: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"train_net.py --prove-protocol 3 {other}"
    monkeypatch.setattr(sys, "argv", line.split())
    assert exit_of(train_net.parse_args) == 2
    monkeypatch.setattr(sys, "argv", line.split()[:3])
    assert train_net.parse_args().prove_protocol == 3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.data())
def test_every_unseen_pixel_gets_another_hidden_value(count: int, data: st.DataObject) -> None:
    ignore = data.draw(st.sampled_from([255, 254, 1000]))
    ids = data.draw(st.lists(st.integers(0, 250), min_size=count, max_size=count, unique=True))
    seen = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    entries = tuple(ClassEntry(i, f"c{i}") for i in ids)
    vocabulary = Vocabulary("v", entries, tuple(seen), ignore_label=ignore)
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    label = generator.choice([*ids, ignore], (7, 5)).astype(np.int32)
    scrambled, changed_pixels = scramble_unseen(label, vocabulary, generator)
    unseen = {i for i, flag in zip(ids, seen, strict=True) if not flag}
    expected = 0
    for old, new in zip(label.flat, scrambled.flat, strict=True):
        if int(old) in unseen:
            expected += 1
            assert new != old and int(new) in unseen | {ignore}
        else:
            assert new == old
    assert changed_pixels == expected


def test_all_values_of_a_class_are_scrambled() -> None:
    """To another class's first value: no other value of the same class comes out."""
    classes = (
        ClassEntry(0, "sand"),
        ClassEntry(1, "crack", ids=(1, 255)),
        ClassEntry(7, "pit", ids=(7, 2)),
    )
    vocabulary = Vocabulary("v", classes, (True, False, False), "s", 254, more_ignored=(3,))
    label = np.array([[0, 1, 255, 7, 2, 254, 3]] * 50)
    scrambled, count = scramble_unseen(label, vocabulary, np.random.default_rng(0))
    assert count == 200
    possible = [{0}, {7, 254}, {7, 254}, {1, 254}, {1, 254}, {254}, {3}]
    assert [set(column.tolist()) for column in scrambled.T] == possible


def test_copies_of_coloured_labels_hold_ids(tmp_path: Path) -> None:
    """They are read with the class list that belongs to them, the originals too."""
    colors = [(9, 9, 9), (20, 30, 40)]
    classes = tuple(ClassEntry(i, f"c{i}", color=c) for i, c in zip((0, 1), colors, strict=True))
    vocabulary = Vocabulary(
        "v", classes, (True, False), "s", ignore_colors=((255,) * 3,), labels="colors"
    )
    original = str(tmp_path / "original.png")
    Image.fromarray(np.array([[colors[0], colors[1], (255,) * 3]], np.uint8)).save(original)
    copies, count = scramble_files([original], vocabulary, 0, tmp_path)
    written = write_vocabulary(replace(vocabulary, labels=""), tmp_path / "v.json")
    either = Vocabulary.from_json(written)
    assert count == 1 and either == replace(vocabulary, labels="")
    assert read_label(copies[original], either).tolist() == [[0, 255, 255]]
    assert read_label(original, either).tolist() == [[0, 1, 255]]


def test_renamed_vocabularies_keep_everything_else(tmp_path: Path) -> None:
    classes = (
        ClassEntry(4, "cat", ("cat", "kitten")),
        ClassEntry(9, "dog", ("dog", "puppy"), (1, 2, 3), (9, 10)),
        ClassEntry(0, "replaced 9"),
        ClassEntry(2, "sky"),
    )
    vocabulary = Vocabulary(
        "pets", classes, (True, False, True, False), "zs", 77, (78,), ((5, 5, 5),), "ids"
    )
    renamed = Vocabulary.from_json(
        write_vocabulary(rename_unseen(vocabulary), tmp_path / "renamed.json"), "zs"
    )
    assert renamed == Vocabulary.from_json(tmp_path / "renamed.json")
    assert (renamed.name, renamed.seen, renamed.ignore_label) == ("pets", vocabulary.seen, 77)
    assert [entry.ids for entry in renamed.classes] == [(4,), (9, 10), (0,), (2,)]
    assert (renamed.ignored, renamed.ignore_colors, renamed.labels) == (
        (77, 78),
        ((5,) * 3,),
        "ids",
    )
    assert renamed.classes[1].color == (1, 2, 3)
    assert renamed.restrict("seen") == vocabulary.restrict("seen")
    words = {word for entry in classes for word in (entry.name, *entry.prompts)}
    for entry in renamed.restrict("unseen").classes:
        assert not words & {entry.name, *entry.prompts}


def test_changed_datasets_leave_nothing_behind(config: Path, tmp_path: Path) -> None:
    cfg = changed(load_config(config), "DATASETS.TEST", ())
    (name,) = cfg.DATASETS.TRAIN
    path = str(train_labels(tmp_path)[2])
    before = DatasetCatalog.get(name)
    with pytest.raises(RuntimeError), changed_datasets(cfg, labels={path: "other.png"}) as other:
        samples = DatasetCatalog.get(other.DATASETS.TRAIN[0])
        assert [s["sem_seg_file_name"] == "other.png" for s in samples] == [
            s["sem_seg_file_name"] == path for s in before
        ]
        raise RuntimeError
    assert DatasetCatalog.get(name) == before
    assert not {*other.DATASETS.TRAIN} & {*DatasetCatalog.list(), *MetadataCatalog.list()}
