"""What is handed on is what was trained: tensors, config, class list, predictions, provenance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.clip_files import TINY_CLIP, random_clip, sha256
from helpers.tiny_checkpoint import assert_equal, save_tiny
from helpers.tiny_run import changed, run_arguments, tiny_tree
from helpers.toy_dataset import vocabulary_tree, write_json
from safetensors.torch import save_file

from tagclip import TagCLIPPredictor, Vocabulary, load_config, register_zero_shot_sem_seg
from tagclip.checkpoint import checkpoint_config, read_checkpoint
from tagclip.errors import CheckpointError, ProtocolError

FILES = {"README.md", "clip", "config.yaml", "model.safetensors", "tagclip.json", "vocabulary.json"}
KINDS = (".json", ".yaml", ".md")
ROOTS = {"image": "images", "sem_seg": "labels"}


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (70, 90, 3)).astype(np.uint8)


def leaves(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    pairs = {f"{prefix}{key}": value for key, value in cfg.items()}
    nested = [leaves(v, f"{k}.") for k, v in pairs.items() if isinstance(v, CfgNode)]
    flat = {k: v for k, v in pairs.items() if not isinstance(v, CfgNode)}
    return flat | {k: v for tree in nested for k, v in tree.items()}


@pytest.fixture
def local_clip(tiny_cfg: CfgNode, tmp_path: Path) -> CfgNode:
    """The tiny config with weights of CLIP in a file, and merges beside its json."""
    from open_clip.tokenizer import default_bpe

    (tmp_path / "home").mkdir()
    text = TINY_CLIP["text_cfg"] | {"tokenizer_kwargs": {"bpe_path": "merges.txt.gz"}}
    (tmp_path / "home" / "tiny.json").write_text(json.dumps(TINY_CLIP | {"text_cfg": text}))
    shutil.copy(default_bpe(), tmp_path / "home" / "merges.txt.gz")
    save_file(random_clip(seed=4).state_dict(), tmp_path / "home" / "tiny.safetensors")
    names = [str(tmp_path / "home" / name) for name in ("tiny.json", "tiny.safetensors")]
    return changed(tiny_cfg, "MODEL.CLIP.NAME", names[0], "MODEL.CLIP.PRETRAINED", names[1])


def test_the_way_there_and_back_changes_no_bit(
    tiny_cfg: CfgNode, image: np.ndarray, tmp_path: Path
) -> None:
    saved = save_tiny(changed(tiny_cfg, "SEED", 7), tmp_path / "run")
    # On a machine without a GPU, too.
    before = TagCLIPPredictor.from_checkpoint(saved, ["MODEL.DEVICE", "cuda"])
    folder = before.save_pretrained(tmp_path / "a" / "model")
    assert {path.name for path in folder.iterdir()} == FILES
    assert not [path for path in folder.parent.iterdir() if path != folder]
    after = TagCLIPPredictor.from_pretrained(folder)
    assert_equal(read_checkpoint(saved)["model"], read_checkpoint(folder)["model"])
    files = {"config", "clip_json", "clip_merges", "places", "provenance"}
    metadata = [read_checkpoint(path)["tagclip"] for path in (saved, folder)]
    assert metadata[0].keys() == metadata[1].keys()
    assert {k for k, v in metadata[0].items() if v != metadata[1][k]} <= files
    configs = [leaves(checkpoint_config(path)) for path in (saved, folder)]
    changes = {key for key in configs[0] if configs[0][key] != configs[1][key]}
    assert changes == {"MODEL.WEIGHTS", "MODEL.CLIP.NAME", "MODEL.CLIP.JSON", "MODEL.DEVICE"}
    assert configs[1]["MODEL.DEVICE"] == "cuda"
    assert before.model.provenance == after.model.provenance
    assert before.vocabulary == after.vocabulary
    for vocabulary in (None, ["cat", "a blue bird", "sky"]):
        for predictor in (before, after):
            if vocabulary:
                predictor.set_vocabulary(vocabulary)
        found, expected = after(image), before(image)
        assert found.pop("class_names") == expected.pop("class_names")
        assert_equal(dict(expected), dict(found))
    # The third generation is the second.
    again = after.save_pretrained(tmp_path / "b" / "model")
    for name in FILES - {"clip"}:
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_config_of_a_folder_is_whole(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    """Wherever the folder is, and whatever became of what it was made of."""
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "run"))
    predictor.save_pretrained(tmp_path / "model")
    moved = (tmp_path / "model").rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run")
    cfg = load_config(moved / "config.yaml")
    assert str(moved / "model.safetensors") == cfg.MODEL.WEIGHTS
    predictors = TagCLIPPredictor(cfg), TagCLIPPredictor.from_pretrained(moved)
    assert_equal(*(each.model.state_dict() for each in predictors))
    vocabulary = Vocabulary.from_json(moved / "vocabulary.json")
    assert (vocabulary.split, vocabulary.unseen_names) == ("zs", ["dog", "sky"])
    assert json.loads((moved / "vocabulary.json").read_text())["splits"]["zs"]["seen"]


def test_a_folder_does_not_say_where_to_write(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "run"))
    path = predictor.save_pretrained(tmp_path / "model") / "config.yaml"
    text, place = path.read_text(), tmp_path / "written"
    for key in ("CACHE_DIR", "TEXT_CACHE"):
        assert f"{key}: ''" in text
        text = text.replace(f"{key}: ''", f"{key}: {place}")
    path.write_text(text)
    TagCLIPPredictor.from_pretrained(path.parent).set_vocabulary(["cat", "sky"])
    assert not place.exists()
    own = TagCLIPPredictor.from_pretrained(path.parent, ["MODEL.CLIP.TEXT_CACHE", str(place)])
    own.set_vocabulary(["cat", "sky"])
    assert place.exists()


def test_paths_of_this_machine_are_not_handed_on(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    secret = tmp_path / "secret_client"
    vocabulary = str(write_json(tmp_path / "mine.json", vocabulary_tree(["a", "b"], ["b"])))
    name, place = f"mine_{tmp_path.name}", str(secret)
    entry = {"name": name, "images": place, "labels": place, "vocabulary": vocabulary}
    cfg = changed(tiny_cfg, "MODEL.CLIP.CACHE_DIR", str(secret))
    cfg.DATASETS.FOLDER_DATASETS = [entry]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    saved = save_tiny(cfg, tmp_path / "run")
    cfg.MODEL.WEIGHTS = str(saved)
    predictors = {"a": TagCLIPPredictor.from_checkpoint(saved), "b": TagCLIPPredictor(cfg)}
    for place, predictor in predictors.items():
        folder = predictor.save_pretrained(tmp_path / place)
        texts = [path.read_text() for path in folder.iterdir() if path.suffix in KINDS]
        assert len(texts) == 4 and not any("secret_client" in text for text in texts)
        assert TagCLIPPredictor.from_pretrained(folder).vocabulary.names == ["a", "b"]


def test_a_local_clip_is_copied_or_refused(
    local_clip: CfgNode, image: np.ndarray, tmp_path: Path
) -> None:
    saved = save_tiny(local_clip, tmp_path / "run")
    predictor = TagCLIPPredictor.from_checkpoint(saved)
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors, a file .*copy .* --with-clip"):
        predictor.save_pretrained(tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"home", "run"}
    folder = predictor.save_pretrained(tmp_path / "model", with_clip=True)
    expected = predictor(image)
    clip = json.loads((folder / "tagclip.json").read_text())["clip"]
    assert clip == {
        "name": "tiny",
        "pretrained": "tiny.safetensors",
        "sha256": sha256(tmp_path / "home" / "tiny.safetensors"),
        "file": "clip/tiny.safetensors",
    }
    shutil.rmtree(tmp_path / "home")
    shutil.rmtree(tmp_path / "run")
    found = TagCLIPPredictor.from_pretrained(folder)(image)
    assert torch.equal(found["sem_seg_scores"], expected["sem_seg_scores"])
    files = {path.name for path in (folder / "clip").iterdir()}
    assert files == {"tiny.json", "tiny.safetensors", "merges.txt.gz"}


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_of_clip_is_copied(
    local_clip: CfgNode, image: np.ndarray, tmp_path: Path, prefix: str
) -> None:
    home = tmp_path / "home"
    (home / "tiny.json").rename(home / "open_clip_config.json")
    saved = save_tiny(changed(local_clip, "MODEL.CLIP.NAME", f"{prefix}{home}"), tmp_path / "run")
    predictor = TagCLIPPredictor.from_checkpoint(saved)
    folder = predictor.save_pretrained(tmp_path / "model", with_clip=True)
    assert json.loads((folder / "tagclip.json").read_text())["clip"]["name"] == "home"
    expected = predictor(image)["sem_seg_scores"]
    # The checkpoint needs of CLIP its weights alone.
    weights = (home / "tiny.safetensors").rename(tmp_path / "clip.safetensors")
    shutil.rmtree(home)
    moved = TagCLIPPredictor.from_checkpoint(saved, ["MODEL.CLIP.PRETRAINED", str(weights)])
    assert torch.equal(moved(image)["sem_seg_scores"], expected)
    found = TagCLIPPredictor.from_pretrained(folder)(image)
    assert torch.equal(found["sem_seg_scores"], expected)
    files = {path.name for path in (folder / "clip").iterdir()}
    assert files == {"open_clip_config.json", "tiny.safetensors", "merges.txt.gz"}


@pytest.mark.parametrize("name", ["my clip (1)", "clip@2", ".clip", "Ü", "a'b$#?%20", "..x"])
def test_a_clip_may_have_any_name(local_clip: CfgNode, tmp_path: Path, name: str) -> None:
    saved = save_tiny(local_clip, tmp_path / "run")
    weights, home = tmp_path / "home" / f"{name}.safetensors", tmp_path / "home"
    (home / "tiny.safetensors").rename(weights)
    (home / "tiny.json").rename(home / f"{name}.json")
    keys = ["MODEL.CLIP.PRETRAINED", str(weights), "MODEL.CLIP.NAME", str(home / f"{name}.json")]
    predictor = TagCLIPPredictor.from_checkpoint(saved, keys)
    folder = predictor.save_pretrained(tmp_path / "model", with_clip=True)
    shutil.rmtree(home)
    assert (folder / "clip" / weights.name).is_file() and TagCLIPPredictor.from_pretrained(folder)


def test_another_clip_is_refused(local_clip: CfgNode, tmp_path: Path) -> None:
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(local_clip, tmp_path / "run"))
    folder = predictor.save_pretrained(tmp_path / "model", with_clip=True)
    save_file(random_clip(seed=5).state_dict(), folder / "clip" / "tiny.safetensors")
    with pytest.raises(
        CheckpointError, match="does not fit the model: clip_sha256: found"
    ) as error:
        TagCLIPPredictor.from_pretrained(folder)
    assert len(str(error.value).splitlines()) == 1 and "MODEL.CLIP.PRETRAINED" in str(error.value)


def test_evaluation_and_fine_tuning_take_a_folder(
    train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    """With the metrics, the ancestry and the refusals of the checkpoint."""
    train_net.main(run_arguments(config, "OUTPUT_DIR", tmp_path / "run"))
    saved = tmp_path / "run" / "model_final.pth"
    folder = TagCLIPPredictor.from_checkpoint(saved).save_pretrained(tmp_path / "model")
    assert len(json.loads((folder / "tagclip.json").read_text())["results"]) == 1

    def run(weights: Path, name: str, *opts: Any, **options: Any) -> dict[str, Any]:
        words = ("OUTPUT_DIR", tmp_path / name, "MODEL.WEIGHTS", weights, *opts)
        train_net.main(run_arguments(config, *words, **options))
        (path,) = (tmp_path / name).glob("inference/*/metrics.json")
        return json.loads(path.read_text())

    results = [run(saved, "a", eval_only=True), run(folder, "b", eval_only=True)]
    of_file = [result["run"].pop("weights_sha256") for result in results]
    assert of_file[1] == sha256(folder / "model.safetensors") != of_file[0]
    assert [r["run"].pop("weights") for r in results] == ["model_final.pth", "model.safetensors"]
    # A folder does not say how long it was trained.
    of_training = {"trained_config", "trained_iterations", "training_files"}
    assert of_training & results[1]["run"].keys() == set()
    assert all(results[0]["run"].pop(key) for key in of_training)
    assert results[0] == results[1]
    assert results[0]["run"]["history"] == "CLIP > inductive tiny5:zs"

    tuned = run(folder, "tuned")
    assert tuned["run"]["history"] == "CLIP > inductive tiny5:zs > inductive tiny5:zs"
    assert tuned["run"]["start"] == "model.safetensors"
    other = write_json(tmp_path / "two.json", tiny_tree(splits={"zs": {"unseen": ["cat"]}}))
    name = f"two_{tmp_path.name}"
    roots = {f"{kind}_root": str(tmp_path / at / "val") for kind, at in ROOTS.items()}
    register_zero_shot_sem_seg(name, **roots, vocabulary_json=str(other), image_ext="png")
    texts = []
    for weights in (saved, folder / "model.safetensors", folder):
        with pytest.raises(ProtocolError) as error:
            run(weights, "c", "DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,))
        texts.append(str(error.value).partition(": ")[2])
    assert len(set(texts)) == 1 and "found training on masks" in texts[0]
