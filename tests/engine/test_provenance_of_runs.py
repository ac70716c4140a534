"""Whose masks a run has learned from: refused, allowed and said, handed on, unknown."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from helpers.tiny_run import (
    NAMES,
    changed,
    load_tool,
    run_arguments,
    tiny_tree,
    write_run_config,
)
from helpers.toy_dataset import forget, write_json

from tagclip import (
    TagCLIPCheckpointer,
    ZeroShotTrainer,
    load_config,
    register_zero_shot_sem_seg,
)
from tagclip.checkpoint import checkpoint_metadata, load_trained, read_checkpoint
from tagclip.checkpoint.conversion.files import convert_file
from tagclip.engine.protocol_proof import prove_protocol
from tagclip.errors import ProtocolError
from tagclip.solver import build_optimizer
from tagclip.structures import Provenance

ALLOW = ("DATASETS.ZERO_SHOT.ALLOW_TRAINED_UNSEEN", True)
# The first model never sees masks of dog and sky, the second calls cat and sofa unseen.
SPLITS = {"zs": {"unseen": ["dog", "sky"]}, "two": {"unseen": ["cat", "sofa"]}}
TWO = ("DATASETS.ZERO_SHOT.SPLIT", "two")
FAST = ("SOLVER.MAX_ITER", 1)


@pytest.fixture
def run(tiny_cfg: CfgNode, tmp_path: Path) -> Iterator[Any]:
    """run(vocabulary tree, *opts): config file of a training of one step, with that class list."""
    write_run_config(tiny_cfg, tmp_path)
    made = []

    def write(tree: dict[str, Any], name: str, *opts: Any) -> Path:
        path = write_json(tmp_path / f"{name}.json", tree)
        datasets = {}
        for subset in ("train", "val"):
            datasets[subset] = f"{name}_{subset}_{tmp_path.name}"
            register_zero_shot_sem_seg(
                datasets[subset],
                image_root=str(tmp_path / "images" / subset),
                sem_seg_root=str(tmp_path / "labels" / subset),
                vocabulary_json=str(path),
                image_ext="png",
            )
            made.append(datasets[subset])
        cfg = changed(tiny_cfg, "OUTPUT_DIR", str(tmp_path / name), "SOLVER.IMS_PER_BATCH", 2)
        cfg = changed(cfg, "SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 1)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (datasets["train"],), (datasets["val"],)
        config = tmp_path / f"{name}.yaml"
        config.write_text(changed(cfg, *opts).dump())
        return config

    yield write
    forget(*made)


@pytest.fixture
def first(run: Any, train_net: ModuleType, tmp_path: Path) -> Path:
    """Checkpoint of an inductive run on split zs."""
    train_net.main(run_arguments(run(tiny_tree(splits=SPLITS), "first", *FAST)))
    return tmp_path / "first" / "model_final.pth"


def provenance(path: Path) -> Provenance:
    return Provenance.from_json(read_checkpoint(path)["tagclip"]["provenance"])


def results(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("inference/*/metrics.json")
    return json.loads(path.read_text())


def rewrite(source: Path, target: Path, change: Any) -> Path:
    """Copy a checkpoint with other metadata."""
    content = torch.load(source, weights_only=True)
    change(content["tagclip"])
    torch.save(content, target)
    return target


def test_a_checkpoint_carries_its_training(first: Path) -> None:
    (stage,) = provenance(first).stages
    assert (stage.setting, stage.split, stage.vocabulary) == ("inductive", "zs", "tiny5")
    assert stage.masks == (("cat",), ("grass",), ("sofa",))
    assert stage.others == (("dog",), ("sky",))
    assert (stage.start, stage.start_sha256, stage.pseudo_labels, stage.positions) == ("",) * 2 + (
        (),
    ) * 2
    run = results(first.parent)["run"]
    assert run["zero_shot"] is True and run["trained_unseen"] == []
    assert (run["history"], run["start"]) == ("CLIP > inductive tiny5:zs", "")
    assert "zero-shot" not in run["protocol"] and "unknown" not in run["protocol"]


def test_classes_of_the_start_that_are_called_unseen_are_refused(
    first: Path, run: Any, train_net: ModuleType, tmp_path: Path
) -> None:
    second = run(tiny_tree(splits=SPLITS), "second", *TWO, *FAST, "MODEL.WEIGHTS", str(first))
    with pytest.raises(ProtocolError) as error:
        train_net.main(run_arguments(second))
    text = str(error.value)
    assert text.startswith(f"{first}: found training on masks of 2 of the 2 classes")
    assert "(cat, sofa; CLIP > inductive tiny5:zs)" in text
    assert "take DATASETS.ZERO_SHOT.SPLIT zs, " in text
    assert not (tmp_path / "second").exists()
    # As a library, too.
    cfg = load_config(second)
    (tmp_path / "second").mkdir()
    trainer = ZeroShotTrainer(cfg)
    trainer.resume_or_load(resume=False)
    with pytest.raises(ProtocolError):
        trainer.train()
    # Before the first step, not by the evaluation at the end.
    assert trainer.iter == 0
    with pytest.raises(ProtocolError):
        ZeroShotTrainer.test(cfg, trainer.model)
    # What the message tells to do ends the trouble.
    zs = ("DATASETS.ZERO_SHOT.SPLIT", "zs", "OUTPUT_DIR", tmp_path / "third")
    train_net.main(run_arguments(second, *zs))
    assert provenance(tmp_path / "third" / "model_final.pth").history == (
        "CLIP > inductive tiny5:zs > inductive tiny5:zs"
    )


@pytest.mark.parametrize(
    "names",
    [
        # Another list, where the classes have other spellings, synonyms and known labels.
        {"cat": ("CAT",), "sofa": ("couch",)},
        {"cat": ("pet", "Cat"), "sofa": ("seat", "sofa")},
    ],
)
def test_another_class_list_hides_nothing(
    names: dict[str, tuple[str, ...]], first: Path, run: Any, train_net: ModuleType
) -> None:
    tree = tiny_tree(name="other", splits=None, default_split=None)
    for entry in tree["classes"]:
        name, *prompts = names.get(entry["name"], (entry["name"],))
        entry |= {"name": name} | ({"prompts": prompts} if prompts else {})
    unseen = [names["cat"][0], names["sofa"][0]]
    tree |= {"default_split": "own", "splits": {"own": {"unseen": unseen}}}
    with pytest.raises(ProtocolError, match="2 of the 2 classes that split 'own'"):
        train_net.main(run_arguments(run(tree, "second", "MODEL.WEIGHTS", str(first))))


def test_similar_names_are_asked_about_and_train(
    first: Path, run: Any, train_net: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    tree = tiny_tree(splits={"zs": {"unseen": ["cats"]}})
    tree["classes"][0]["name"] = "cats"
    train_net.main(run_arguments(run(tree, "second", "MODEL.WEIGHTS", str(first), *FAST)))
    (line,) = [r.getMessage() for r in caplog.records if "decides nothing" in r.getMessage()]
    assert "'cats' and 'cat'" in line and "NOT" not in line
    config = load_config(first.parent.parent / "second.yaml")
    assert results(Path(config.OUTPUT_DIR))["run"]["similar_names"] == [["cats", "cat"]]
    proof = prove_protocol(config, 1)
    assert "Proved" not in proof.conclusion() and "'cats' and 'cat'" in proof.conclusion()


@pytest.fixture
def second(first: Path, run: Any, train_net: ModuleType, tmp_path: Path) -> Path:
    """Checkpoint of a run that was allowed to call classes of its start unseen."""
    start = ("MODEL.WEIGHTS", str(first))
    train_net.main(
        run_arguments(run(tiny_tree(splits=SPLITS), "second", *TWO, *FAST, *start, *ALLOW))
    )
    return tmp_path / "second" / "model_final.pth"


def test_what_is_allowed_is_called_not_zero_shot(
    second: Path, first: Path, repository: Path, tmp_path: Path
) -> None:
    run = results(second.parent)["run"]
    text = "NOT zero-shot: trained on masks of 2 of the 2 unseen classes (cat, sofa)"
    assert text in run["protocol"] and run["zero_shot"] is False
    assert run["trained_unseen"] == ["cat", "sofa"] and run["start"] == "model_final.pth"
    stages = provenance(second).stages
    assert stages[1].start_sha256 == run["start_sha256"] == sha256_of(first)
    with (second.parent / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert text in row["protocol"] and row["zero_shot"] == "False"
    assert row["start_sha256"] == run["start_sha256"]
    assert text in (second.parent / "log.txt").read_text()
    compare, output = load_tool(repository / "tools" / "compare_runs.py"), tmp_path / "compared"
    # Runs on one data set, whichever name it was registered under.
    for folder in (first.parent, second.parent):
        (path,) = folder.glob("inference/*/metrics.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "val"}))
    runs = [str(first.parent), str(second.parent)]
    compare.main(compare.parse_args([*runs, "--output", str(output)]))
    page = (output / "val.md").read_text()
    assert text in page and "inductive, not zero-shot (masks of 2 unseen classes), not" in page


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_classes_are_grouped_by_the_masks_that_trained(second: Path) -> None:
    found = results(second.parent)
    # Every class had masks in one of the two trainings.
    assert all(entry["seen"] for entry in found["classes"])
    assert found["metrics"]["mIoU-unseen"] is None
    assert found["metrics"]["mIoU-seen"] == found["metrics"]["mIoU"]
    iou = {entry["name"]: entry["IoU"] for entry in found["classes"]}
    unseen = [iou[name] for name in ("cat", "sofa") if iou[name] is not None]
    by_split = found["metrics_by_split"]["mIoU-unseen"]
    assert by_split == pytest.approx(sum(unseen) / len(unseen))
    with (second.parent / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["mIoU-unseen"] == ""
    assert float(row["mIoU-unseen by split"]) == pytest.approx(by_split, abs=1e-4)
    log = (second.parent / "log.txt").read_text()
    assert "seen: masks trained the model" in log and "seen as in split two" in log


def test_another_dataset_is_grouped_by_the_masks_too(
    first: Path, run: Any, train_net: ModuleType, tmp_path: Path
) -> None:
    """Its own split, or that it has none, says nothing about this model."""
    tree = tiny_tree(name="other", splits={"own": {"unseen": ["couch"]}}, default_split="own")
    for index, name in ((0, "Cat"), (4, "couch")):
        tree["classes"][index]["name"] = name
    other = load_config(run(tree, "other")).DATASETS.TEST
    options = ("DATASETS.TEST", other, "MODEL.WEIGHTS", first, "OUTPUT_DIR", tmp_path / "cross")
    train_net.main(run_arguments(tmp_path / "first.yaml", *options, eval_only=True))
    found = results(tmp_path / "cross")
    flags = {entry["name"]: entry["seen"] for entry in found["classes"]}
    assert flags == {"Cat": True, "dog": False, "grass": True, "sky": False, "couch": True}
    assert found["metrics_by_split"]["mIoU-unseen"] == next(
        entry["IoU"] for entry in found["classes"] if entry["name"] == "couch"
    )
    # What that split calls unseen has been trained, and both tables stand there.
    assert found["run"]["zero_shot"] is False and found["run"]["trained_unseen"] == ["couch"]
    text = (
        "by split own of other NOT zero-shot: trained on masks of 1 of its unseen classes (couch)"
    )
    assert text in found["run"]["protocol"]


def test_an_evaluation_is_refused_as_well(
    second: Path, tmp_path: Path, train_net: ModuleType
) -> None:
    config, weights = tmp_path / "second.yaml", ("MODEL.WEIGHTS", second)
    with pytest.raises(ProtocolError, match="2 of the 2 classes that split 'two'"):
        never = ("DATASETS.ZERO_SHOT.ALLOW_TRAINED_UNSEEN", False)
        train_net.main(run_arguments(config, *weights, *never, eval_only=True))
    train_net.main(run_arguments(config, *weights, eval_only=True))


def test_an_evaluation_needs_no_training_images(
    first: Path, tmp_path: Path, train_net: ModuleType
) -> None:
    shutil.rmtree(tmp_path / "images" / "train")
    train_net.main(run_arguments(tmp_path / "first.yaml", "MODEL.WEIGHTS", first, eval_only=True))


def test_a_grandchild_remembers(
    second: Path, run: Any, train_net: ModuleType, tmp_path: Path
) -> None:
    third = run(tiny_tree(splits=SPLITS), "third", *FAST, "MODEL.WEIGHTS", str(second))
    # The second training read masks of dog and sky.
    with pytest.raises(ProtocolError, match=r"\(dog, sky; "):
        train_net.main(run_arguments(third))
    train_net.main(run_arguments(third, "DATASETS.ZERO_SHOT.SETTING", "supervised"))
    found = results(tmp_path / "third")
    assert found["run"]["history"] == (
        "CLIP > inductive tiny5:zs > inductive tiny5:two > supervised tiny5"
    )
    assert found["run"]["zero_shot"] is False and found["run"]["trained_unseen"] == []
    stage = provenance(tmp_path / "third" / "model_final.pth").stages[-1]
    assert [names[0] for names in stage.masks] == NAMES and stage.others == ()


def test_the_proof_checks_the_start(
    first: Path, run: Any, train_net: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    second = run(tiny_tree(splits=SPLITS), "second", *TWO, "MODEL.WEIGHTS", str(first))
    with pytest.raises(ProtocolError, match="found training on masks"):
        train_net.prove(run_arguments(second, prove_protocol=2))
    with pytest.raises(ProtocolError, match="had one before"):
        train_net.prove(run_arguments(second, *ALLOW, prove_protocol=2))
    assert "Proved" not in capsys.readouterr().out
    zs = ("DATASETS.ZERO_SHOT.SPLIT", "zs")
    proof = prove_protocol(load_config(second, [*zs]), 2)
    assert "Starts from: CLIP > inductive tiny5:zs\n" in proof.report()
    assert proof.conclusion().startswith("Proved")


def test_without_provenance_nothing_is_proved(
    first: Path, run: Any, train_net: ModuleType, tmp_path: Path
) -> None:
    old = rewrite(first, tmp_path / "old.pth", lambda t: t.pop("provenance"))
    start = ("MODEL.WEIGHTS", str(old))
    config = run(tiny_tree(splits=SPLITS), "second", *start, *FAST)
    train_net.main(run_arguments(config))
    found = results(tmp_path / "second")["run"]
    assert found["protocol"].endswith("; ancestry unknown") and found["zero_shot"] is None
    assert found["history"] == "ancestry unknown > inductive > inductive tiny5:zs"
    proof = prove_protocol(load_config(config), 1)
    assert "Proved" not in proof.conclusion()
    assert "ancestry of" in proof.conclusion() and "ancestry unknown" in proof.report()
    # Its own classes with labels are known all the same.
    with pytest.raises(ProtocolError, match="ancestry unknown > inductive"):
        train_net.main(run_arguments(config, *TWO))
    # One that says nothing at all.
    bare = tmp_path / "bare.pth"
    torch.save({"model": torch.load(first, weights_only=True)["model"]}, bare)
    train_net.main(run_arguments(config, *TWO, "MODEL.WEIGHTS", bare, "OUTPUT_DIR", tmp_path / "b"))
    found = results(tmp_path / "b")
    assert found["run"]["zero_shot"] is None
    # Of a checkpoint that names no classes nothing is known but the split.
    train_net.main(
        run_arguments(config, "MODEL.WEIGHTS", bare, "OUTPUT_DIR", tmp_path / "c", eval_only=True)
    )
    found = results(tmp_path / "c")
    assert found["run"]["history"] == "ancestry unknown" and found["run"]["start"] is None
    flags = {entry["name"]: entry["seen"] for entry in found["classes"]}
    assert flags == {"cat": True, "dog": False, "grass": True, "sky": False, "sofa": True}


def test_a_damaged_provenance_is_refused(
    first: Path, run: Any, train_net: ModuleType, tmp_path: Path
) -> None:
    from tagclip.errors import CheckpointError

    broken = rewrite(first, tmp_path / "x.pth", lambda t: t["provenance"].update(stages="none"))
    config = run(tiny_tree(splits=SPLITS), "second", "MODEL.WEIGHTS", str(broken))
    with pytest.raises(CheckpointError, match=r"no readable tagclip\.provenance"):
        train_net.main(run_arguments(config))


def test_a_resumed_run_keeps_its_start(
    first: Path, run: Any, train_net: ModuleType, tmp_path: Path
) -> None:
    """MODEL.WEIGHTS on the command line of a resumed run is not what it started from."""
    config = run(tiny_tree(splits=SPLITS), "second", "MODEL.WEIGHTS", str(first))
    train_net.main(run_arguments(config, *FAST))
    train_net.main(run_arguments(config, "MODEL.WEIGHTS", "", resume=True))
    saved = provenance(tmp_path / "second" / "model_final.pth")
    assert [s.start for s in saved.stages] == ["", "model_final.pth"]
    rows = list(csv.DictReader((tmp_path / "second" / "results.csv").open()))
    assert [row["start"] for row in rows] == ["model_final.pth"] * 2


def test_pseudo_labels_and_positions_are_recorded_apart(
    first: Path, run: Any, train_net: ModuleType, tmp_path: Path
) -> None:
    """They refuse nothing, but an inductive run on top of them says so."""
    config = run(tiny_tree(splits=SPLITS), "second", *FAST, "MODEL.WEIGHTS", str(first))
    novel = ("MODEL.TAGCLIP.TRUSTY.TARGET", "novel", "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", True)
    train_net.main(run_arguments(config, "DATASETS.ZERO_SHOT.SETTING", "transductive"))
    transductive = tmp_path / "second" / "model_final.pth"
    stage = provenance(transductive).stages[-1]
    assert (stage.pseudo_labels, stage.positions) == (("dog", "sky"), ())
    assert "before" not in results(tmp_path / "second")["run"]["protocol"]
    opts = ("MODEL.WEIGHTS", transductive, "OUTPUT_DIR", tmp_path / "third")
    train_net.main(run_arguments(config, *opts))
    text = results(tmp_path / "third")["run"]["protocol"]
    assert text.endswith("; a training before learned from pseudo-labels of 2 unseen classes")
    proof = prove_protocol(load_config(config, ["MODEL.WEIGHTS", str(transductive)]), 1)
    assert "Proved" not in proof.conclusion() and "pseudo-labels of dog, sky" in proof.conclusion()
    # Under another spelling, too.
    tree = tiny_tree(splits={"zs": {"unseen": ["Sky"]}})
    tree["classes"][3]["name"] = "Sky"
    spelt = run(tree, "spelt", *FAST, "MODEL.WEIGHTS", str(transductive))
    train_net.main(run_arguments(spelt))
    text = results(tmp_path / "spelt")["run"]["protocol"]
    assert text.endswith("; a training before learned from pseudo-labels of 1 unseen classes")
    train_net.main(run_arguments(config, *novel, "MODEL.WEIGHTS", "", "OUTPUT_DIR", tmp_path / "n"))
    stage = provenance(tmp_path / "n" / "model_final.pth").stages[-1]
    assert (stage.pseudo_labels, stage.positions) == ((), ("dog", "sky"))


def test_clip_alone_has_seen_nothing(
    maskclip_cfg: CfgNode, tmp_path: Path, train_net: ModuleType
) -> None:
    """Its classes are all unseen; the split is reported beside that."""
    config = write_run_config(maskclip_cfg, tmp_path)
    train_net.main(run_arguments(config, eval_only=True))
    found = results(tmp_path / "output")
    assert not any(entry["seen"] for entry in found["classes"]) and len(NAMES) == 5
    assert found["metrics"]["mIoU-seen"] is None
    assert found["metrics_by_split"]["mIoU-seen"] is not None
    assert (found["run"]["history"], found["run"]["zero_shot"]) == ("CLIP", True)


def test_weights_that_came_another_way_are_unknown(first: Path, tmp_path: Path) -> None:
    """detectron2's own checkpointer tells a model nothing about its masks."""
    cfg = load_config(tmp_path / "first.yaml")
    model = ZeroShotTrainer.build_model(cfg)
    DetectionCheckpointer(model).load(str(first))
    assert model.provenance.history == "ancestry unknown"
    ZeroShotTrainer.test(cfg, model)
    assert results(tmp_path / "first")["run"]["zero_shot"] is None


def test_a_training_loop_of_ones_own_is_not_forgotten(first: Path, tmp_path: Path) -> None:
    cfg = load_config(tmp_path / "first.yaml")
    model = ZeroShotTrainer.build_model(cfg)
    metadata = checkpoint_metadata(cfg, model)
    loop = TagCLIPCheckpointer(
        model, str(tmp_path / "loop"), metadata=metadata, optimizer=build_optimizer(cfg, model)
    )
    (tmp_path / "loop").mkdir()
    loop.load("")
    loop.save("own")
    saved = load_trained(cfg, str(tmp_path / "loop" / "own.pth")).provenance
    assert saved.history == "ancestry unknown > inductive"
    assert saved.stages[0].masks == (("cat",), ("grass",), ("sofa",))


def test_an_evaluator_that_is_passed_in_knows_as_much(second: Path, tmp_path: Path) -> None:
    cfg = load_config(tmp_path / "second.yaml")
    model = load_trained(cfg, str(second))
    (name,) = cfg.DATASETS.TEST
    ZeroShotTrainer.test(cfg, model, [ZeroShotTrainer.build_evaluator(cfg, name)])
    assert results(second.parent)["run"]["zero_shot"] is False
    inference_on_dataset(
        model,
        ZeroShotTrainer.build_test_loader(cfg, name),
        ZeroShotTrainer.build_evaluator(cfg, name),
    )
    found = results(second.parent)["run"]
    assert found["zero_shot"] is None and "ancestry unknown" in found["protocol"]


def test_a_run_resumed_with_other_keys_is_two_trainings(
    run: Any, train_net: ModuleType, tmp_path: Path
) -> None:
    config = run(tiny_tree(splits=SPLITS), "second")
    train_net.main(run_arguments(config, *FAST))
    transductive = ("DATASETS.ZERO_SHOT.SETTING", "transductive")
    train_net.main(run_arguments(config, *transductive, resume=True))
    stages = provenance(tmp_path / "second" / "model_final.pth").stages
    assert [stage.setting for stage in stages] == ["inductive", "transductive"]
    assert stages[1].pseudo_labels == ("dog", "sky") and stages[1].start == "model_final.pth"


def test_a_checkpoint_wrapped_as_a_whole_keeps_what_it_says(first: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": torch.load(first, weights_only=True)}, tmp_path / "nested.pth")
    assert provenance(tmp_path / "nested.pth") == provenance(first)


def test_a_list_may_tell_synonyms_apart(run: Any, train_net: ModuleType, tmp_path: Path) -> None:
    """Its own classes with and without masks share a prompt, or a label of known datasets."""
    tree = tiny_tree(splits={"zs": {"unseen": ["sky-other", "dog"]}})
    tree["classes"][3]["name"], tree["classes"][2]["name"] = "sky-other", "sky"
    tree["classes"][0]["prompts"] = tree["classes"][1]["prompts"] = ["pet"]
    train_net.main(run_arguments(run(tree, "apart", *FAST)))
    found = results(tmp_path / "apart")
    assert found["run"]["zero_shot"] is True and found["metrics_by_split"] is None


def test_a_full_copy_says_how_it_was_trained(first: Path, tmp_path: Path) -> None:
    old = rewrite(first, tmp_path / "old.pth", lambda t: t.pop("provenance"))
    cfg = load_config(tmp_path / "first.yaml", ["DATASETS.ZERO_SHOT.SETTING", "transductive"])
    lines = convert_file(old, tmp_path / "full.pth", cfg=cfg, full=True)
    assert "trained on masks: ancestry unknown > inductive" in lines
    assert provenance(tmp_path / "full.pth").history == "ancestry unknown > inductive"
