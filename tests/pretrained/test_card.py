"""The model card: a header that the hub reads, and nothing that was not measured or recorded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import exit_of, run_arguments
from huggingface_hub import ModelCard

from tagclip import TagCLIPPredictor, Vocabulary
from tagclip.errors import CheckpointError
from tagclip.modeling.clip.weights import file_sha256
from tagclip.pretrained.card import model_card
from tagclip.pretrained.results import TrainedWeights, results_of
from tagclip.structures import Provenance
from tagclip.structures.provenance import Stage

CLIP = {"name": "ViT-B-16-quickgelu", "pretrained": "openai", "sha256": "ab" * 32, "file": None}


def card(**changes: Any) -> str:
    """A card with other values of some arguments."""
    vocabulary = Vocabulary.from_names(["cat", "dog_*|<b>", "sky"]).with_seen(["cat", "sky"])
    stage = Stage("inductive", "zs", "pets", masks=(("cat", "kitten"), ("sky",)), start="a.pth")
    arguments = {
        "name": "somebody/pets",
        "protocol": "inductive, split zs: 2 seen / 1 unseen",
        "vocabulary": vocabulary,
        "provenance": Provenance((stage,)),
        "clip": CLIP,
        "results": [],
    }
    return model_card(**arguments | changes)


def result(**changes: Any) -> dict[str, Any]:
    metrics = {"mIoU": 54.3219, "mIoU-unseen": 40.0, "hIoU": 48.75}
    names = {"file": "pets_val/metrics.json", "sha256": "cd" * 32, "dataset": "pets_val"}
    return names | {"split": "zs", "protocol": "as trained", "metrics": metrics} | changes


def header(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header_is_what_the_hub_reads() -> None:
    text = card(results=[result(), result(dataset="other", split="", metrics={"mIoU": 1.0})])
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("tagclip", "image-segmentation")
    assert (data.license, data.model_name) == (None, "somebody/pets")
    found = [
        (r.dataset_name, r.dataset_split, r.metric_type, r.metric_name, r.metric_value)
        for r in data.eval_results
    ]
    assert found == [
        ("pets_val", "zs", "mean_iou", "mIoU", 54.32),
        ("pets_val", "zs", "harmonic_mean_iou", "hIoU", 48.75),
        ("other", None, "mean_iou", "mIoU", 1.0),
    ]
    assert header(text)["tags"] == [
        "tagclip",
        "clip",
        "semantic-segmentation",
        *header(text)["tags"][3:],
    ]
    assert header(card(license="apache-2.0"))["license"] == "apache-2.0"


def test_without_results_it_says_so() -> None:
    text = card()
    assert "\nNo results were given.\n" in text and "%" not in text
    assert not {"model-index", "license"} & header(text).keys()
    assert ModelCard(text).data.eval_results is None


def test_the_text() -> None:
    text = card(results=[result()])
    assert "Seen (2): cat, sky\n" in text and "Unseen (1): dog\\_\\*\\|\\<b\\>\n" in text
    assert "Protocol: inductive, split zs: 2 seen / 1 unseen\n" in text
    assert "Trained on masks: CLIP \\> inductive pets:zs\n" in text
    assert "start: a.pth" in text and "masks of 2 classes: cat, sky\n" in text
    assert "| 54.3" in text and "`pets_val/metrics.json`, sha256 cdcd" in text
    assert f"| sha256 | {'ab' * 32} |" in text and "is under MIT" in text
    assert "not known; tagclip publish --license ID says it" in text and "unknown" not in text
    # No line of the template is left over, and no more than one is empty.
    assert "{" not in text.replace("{.py}", "") and "\n\n\n" not in text


def test_what_is_not_known_is_not_claimed() -> None:
    other = CLIP | {"pretrained": "laion2b_s34b_b88k"}
    assert "a licence of its own" in card(clip=other)
    local = CLIP | {"pretrained": "mine.safetensors", "file": "clip/mine.safetensors"}
    assert "CLIP's weights: not known." in card(clip=local)
    hub = CLIP | {"pretrained": "hf-hub:laion/CLIP", "name": "hf-hub:laion/CLIP"}
    assert header(card(clip=hub))["base_model"] == "laion/CLIP"
    text = card(provenance=Provenance((Stage(masks=(("cat",),)),), is_complete=False))
    assert "start: not known" in text and "nothing is proved" in text
    stage = Stage("transductive", masks=(("cat",),), pseudo_labels=("x",), positions=("y",))
    text = card(provenance=Provenance((stage,)))
    assert "its own predictions stood for x\n" in text and "were read of y\n" in text
    text = card(name='a "b" $c/d')
    assert 'from_pretrained("a \\"b\\" $c/d")' in text and "--weights 'a \"b\" $c/d'" in text


def test_it_says_which_pixels_get_no_class(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    assert "Every pixel gets one of the asked classes;" in card()
    test = tiny_cfg.MODEL.TAGCLIP.TEST
    test.BACKGROUND_THRESHOLD, test.OUTPUT = 0.3, "labels"
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "run"))
    text = (predictor.save_pretrained(tmp_path / "out") / "README.md").read_text()
    assert 'none of the asked classes are "other", label -1: threshold 0.3 (`MODEL' in text
    assert "Every pixel" not in text


def test_what_is_no_number_is_no_result(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    run, weights = '{"trained_sha256": "a"}', TrainedWeights({}, "a", ("b",))
    file.write_text(
        f'{{"dataset": "d", "run": {run}, "metrics": {{"mIoU": NaN, "hIoU": 1, "pAcc": "a"}}}}'
    )
    assert [result["metrics"] for result in results_of([file], weights)] == [{"hIoU": 1}]


def test_results_are_of_these_weights(train_net: ModuleType, config: Path, tmp_path: Path) -> None:
    """Beside the checkpoint, others are left out; given, they are refused."""
    train_net.main(run_arguments(config, "OUTPUT_DIR", tmp_path / "run"))
    saved = tmp_path / "run" / "model_final.pth"
    (file,) = tmp_path.glob("run/inference/*/metrics.json")
    content = json.loads(file.read_text())
    train_net.main(
        run_arguments(config, "OUTPUT_DIR", tmp_path / "e", "MODEL.WEIGHTS", saved, eval_only=True)
    )
    (evaluated,) = tmp_path.glob("e/inference/*/metrics.json")
    predictor = TagCLIPPredictor.from_checkpoint(saved)

    def shown(**options: Any) -> list[dict[str, Any]]:
        folder = predictor.save_pretrained(tmp_path / "m", overwrite=True, **options)
        text = (folder / "README.md").read_text()
        found = json.loads((folder / "tagclip.json").read_text())["results"]
        assert ("No results were given." in text) == (not found)
        assert all(f"{each['metrics']['mIoU']:.1f}" in text for each in found)
        return found

    for options in ({}, {"results": [file]}, {"results": [evaluated]}):
        (found,) = shown(**options)
        assert found["metrics"] == {k: v for k, v in content["metrics"].items() if v is not None}
    # A folder that is handed on again keeps them.
    again = TagCLIPPredictor.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "again")
    assert json.loads((again / "tagclip.json").read_text())["results"] == [found]

    other = tmp_path / "other.json"
    for key, value in (("seed", 99), ("iterations", 3), ("clip_sha256", "x")):
        wrong = content | {"run": content["run"] | {key: value}}
        other.write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match=f"of another model: found {key} {value}, exp"):
            shown(results=[other])
    evaluation = json.loads(evaluated.read_text())
    evaluation["run"]["weights_sha256"] = "0" * 64
    del evaluation["run"]["trained_sha256"]
    file.write_text(json.dumps(evaluation))
    with pytest.raises(CheckpointError, match="found weights_sha256 000"):
        shown(results=[file])
    assert shown() == []
    for text in ("", "[]", '{"run": 3, "metrics": {}, "dataset": ""}'):
        other.write_text(text)
        with pytest.raises(CheckpointError, match=r"other\.json: holds no results"):
            shown(results=[other])
    shutil.rmtree(tmp_path / "run" / "inference")
    assert shown() == []


def test_another_run_of_the_same_length_is_told_by_its_tensors(
    train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    """Seed, iterations and data may be those of another run; keys of the test change no weight."""
    saved, files = {}, {}
    for name, rate in (("a", 0.01), ("b", 0.02)):
        folder = tmp_path / name
        train_net.main(run_arguments(config, "OUTPUT_DIR", folder, "SOLVER.BASE_LR", rate))
        saved[name] = folder / "model_final.pth"
        (files[name],) = folder.glob("inference/*/metrics.json")
    tested = ("MODEL.TAGCLIP.TEST.SEEN_BIAS", 0.2, "OUTPUT_DIR", tmp_path / "e")
    train_net.main(run_arguments(config, "MODEL.WEIGHTS", saved["b"], *tested, eval_only=True))
    (evaluated,) = tmp_path.glob("e/inference/*/metrics.json")
    # A copy beside the results of a.
    shutil.copy(saved["b"], tmp_path / "a" / "best.pth")
    predictor = TagCLIPPredictor.from_checkpoint(tmp_path / "a" / "best.pth")

    def shown(*results: Path) -> list[dict[str, Any]]:
        folder = predictor.save_pretrained(tmp_path / "m", overwrite=True, results=results)
        return json.loads((folder / "tagclip.json").read_text())["results"]

    assert shown() == [] and len(shown(files["b"], evaluated)) == 2
    with pytest.raises(CheckpointError, match="of another model: found trained_sha256 "):
        shown(files["a"])
    # Of a run that began from these weights they are no results, although it names the file.
    content = json.loads(files["b"].read_text())
    run = content["run"] | {"weights_sha256": file_sha256(saved["b"]), "trained_sha256": "0" * 64}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content | {"run": run}))
    with pytest.raises(CheckpointError, match="found trained_sha256 0000"):
        shown(other)
    # Earlier versions recorded no checksum of the tensors: the training has to be the same.
    for name, key in (("b", ""), ("a", "config_hash"), ("b", "start_sha256")):
        content = json.loads(files[name].read_text())
        del content["run"]["trained_sha256"]
        content["run"] |= {key: "1" * 64} if key == "start_sha256" else {}
        other.write_text(json.dumps(content))
        if not key:
            assert len(shown(other)) == 1
            continue
        with pytest.raises(CheckpointError, match=f"of another model: found {key} "):
            shown(other)
    content = json.loads(evaluated.read_text())
    del content["run"]["trained_sha256"]
    other.write_text(json.dumps(content))
    assert len(shown(other)) == 1
    content["run"] |= {"weights": "", "weights_sha256": None}
    other.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="weights_sha256 nothing that tells of which weights"):
        shown(other)


def test_a_result_without_the_trusty_token_is_not_the_models(
    train_net: ModuleType, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train_net.main(run_arguments(config, "OUTPUT_DIR", tmp_path / "run"))
    saved, output = tmp_path / "run" / "model_final.pth", tmp_path / "e"
    without = ("MODEL.TAGCLIP.TRUSTY.ENABLED", False, "MODEL.TAGCLIP.TEST.GATE", "none")
    train_net.main(
        run_arguments(
            config, "OUTPUT_DIR", output, "MODEL.WEIGHTS", saved, *without, eval_only=True
        )
    )
    (evaluated,) = output.glob("inference/*/metrics.json")
    content = json.loads(evaluated.read_text())
    assert content["run"]["weights_dropped"]
    predictor = TagCLIPPredictor.from_checkpoint(saved)
    message = f"{evaluated}: found the result of an evaluation without the trusty token "
    with pytest.raises(CheckpointError, match=f"^{message}.*, expected one of the whole model; "):
        predictor.save_pretrained(tmp_path / "m", results=[evaluated])
    (beside,) = tmp_path.glob("run/inference/*/metrics.json")
    trained = beside.read_text()
    shutil.copy(evaluated, beside)

    def shown() -> list[dict[str, Any]]:
        folder = predictor.save_pretrained(tmp_path / "m", overwrite=True)
        return json.loads((folder / "tagclip.json").read_text())["results"]

    assert shown() == []
    said = capsys.readouterr().out
    assert f"Not shown in the card: {beside}: found the result of an evaluation without" in said
    # A training that began from weights without it is none of these.
    content = json.loads(trained)
    content["run"]["weights_dropped"] = ["sem_seg_head.trusty_token"]
    beside.write_text(json.dumps(content))
    assert len(shown()) == 1


def test_a_score_of_predictions_is_no_result(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "run"))
    file = tmp_path / "run" / "inference" / "d" / "metrics.json"
    file.parent.mkdir(parents=True)
    run = {"protocol": "predictions read from theirs", "predictions": "theirs", "form": "files"}
    file.write_text(json.dumps({"dataset": "d", "metrics": {"mIoU": 1.0}, "run": run}))
    folder = predictor.save_pretrained(tmp_path / "out")
    assert json.loads((folder / "tagclip.json").read_text())["results"] == []
    with pytest.raises(CheckpointError, match="found the result of tagclip score, which knows no"):
        predictor.save_pretrained(tmp_path / "other", results=[file])


def test_the_command(tiny_cfg: CfgNode, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from tagclip.tools import publish_model

    saved = save_tiny(tiny_cfg, tmp_path / "run")
    words = ["--weights", str(saved), "--output", str(tmp_path / "out"), "--license", "mit"]
    publish_model.main(publish_model.parse_args(words))
    printed = capsys.readouterr().out
    assert re.search(r"^  model\.safetensors +0\.\d+ MB$", printed, re.MULTILINE)
    assert f"Written: {tmp_path / 'out'}; read its README.md" in printed
    assert header((tmp_path / "out" / "README.md").read_text())["license"] == "mit"
    # A file of results is shown once.
    for more in (["--private"], ["--results", "a.json", "b.json", "./a.json"]):
        assert exit_of(publish_model.parse_args, [*words, *more]) == 2
    # Nothing is loaded for an output that is in the way.
    with pytest.raises(CheckpointError, match="found a model that was written before"):
        publish_model.main(publish_model.parse_args(["--weights", "none.pth", *words[2:]]))


@pytest.mark.parametrize(
    "key",
    [
        *("DATASETS.ZERO_SHOT.SETTING", "DATASETS.ZERO_SHOT.SPLIT", "DATASETS.TRAIN", "SEED"),
        *("SOLVER.MAX_ITER", "MODEL.TAGCLIP.LOSS.DICE", "MODEL.TAGCLIP.SELF_TRAINING.GATE"),
        *("MODEL.TAGCLIP.TRUSTY.TARGET", "OUTPUT_DIR", "MODEL.WEIGHTS"),
    ],
)
def test_a_training_is_told_by_its_checkpoint_alone(
    key: str, capsys: pytest.CaptureFixture
) -> None:
    from tagclip.tools import publish_model

    words = ["--weights", "a.pth", "--output", "out"]
    kept = ["MODEL.TAGCLIP.TEST.SEEN_BIAS", "0", "INPUT.MIN_SIZE_TEST", "64"]
    kept += ["MODEL.CLIP.PRETRAINED", "a.safetensors"]
    assert publish_model.parse_args([*words, *kept]).opts == kept
    assert exit_of(publish_model.parse_args, [*words, *kept, key, "1"]) == 2
    assert f"error: {key}: describes the training, as" in capsys.readouterr().err
