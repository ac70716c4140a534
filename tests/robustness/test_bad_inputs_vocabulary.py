"""Bad vocabularies and prompts: splits, names, numbers and orders of classes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bench import NO_TEST, Bench, files_below, refused, refused_as_process
from helpers.largest_tensor import LargestTensor
from helpers.pictures import picture
from helpers.read_as import assert_read_literally
from helpers.tiny_run import NAMES, tiny_tree
from helpers.toy_dataset import write_json
from PIL import Image

from tagclip import Vocabulary
from tagclip.structures.vocabulary_words import read_words


def refused_words(bench: Bench, words: tuple[Any, ...], *parts: str) -> None:
    """The demo refuses a vocabulary and writes nothing; a predictor keeps the one that it has."""
    call = bench.asking(*words)
    before = files_below(bench.root)
    refused(call, "VocabularyError: ", *parts)
    assert files_below(bench.root) == before and not (bench.root / "out").exists()


def demo_classes(bench: Bench, *words: Any) -> list[str]:
    """Names of the classes that the demo found on an image, with every score allowed."""
    path = bench.root / "found.json"
    path.unlink(missing_ok=True)
    assert bench.demo("--input", bench.save_image("a.png"), "--overwrite", "--json", path,
                      "--output", bench.root / "out", *words) == 0  # fmt: skip
    (entry,) = json.loads(path.read_text())["images"]
    return [row["name"] for row in entry["classes"]]


BAD_SPLITS = {
    "both": ({"seen": ["cat", "grass", "sofa", "sky"], "unseen": ["dog", "sky"]},
             ("split 'zs': 'sky' is both seen and unseen", "keep it in one list")),
    "unknown": ({"unseen": ["dog", "skye", "zebra"]},
                ("split 'zs': unseen names 'skye', 'zebra', no class; did you mean sky?",)),
    "missing": ({"seen": ["cat"], "unseen": ["dog", "sky"]},
                ("'grass', 'sofa' is neither seen nor unseen", "list it in one")),
}  # fmt: skip


def test_inconsistent_split(bench: Bench) -> None:
    """The names, in training and validation; nothing is partitioned silently."""
    for case, (split, parts) in BAD_SPLITS.items():
        tree = write_json(bench.root / f"{case}.json", tiny_tree(splits={"zs": split}))
        name = bench.register(tree)
        refused(bench.training_on(name), f"VocabularyError: {tree}: ", *parts)
        refused(lambda name=name: bench.validate(name), f"VocabularyError: {tree}: ", *parts)
    refused(
        lambda: Vocabulary.from_names(NAMES).with_seen(["cat", "zebra"]),
        "VocabularyError: vocabulary 'custom': seen names 'zebra', no class; the classes are "
        "'cat', 'dog'",
    )
    assert not bench.output.exists()


def test_inconsistent_split_as_a_process(bench: Bench) -> None:
    tree = write_json(bench.root / "v.json", tiny_tree(splits={"zs": BAD_SPLITS["both"][0]}))
    entry = {"name": "own", "images": "images", "labels": "labels", "vocabulary": str(tree)}
    config = bench.root / "config.yaml"
    config.write_text(json.dumps({"DATASETS": {"FOLDER_DATASETS": [entry], "TRAIN": ["own"]}}))
    refused_as_process(
        bench.root,
        ("train_net.py", "--config-file", config, *NO_TEST),
        f"VocabularyError: {tree}: {BAD_SPLITS['both'][1][0]}; {BAD_SPLITS['both'][1][1]}",
    )
    assert sorted(files_below(bench.root)) == ["config.yaml", "v.json"]


def test_no_class(bench: Bench) -> None:
    text = "the class list is empty; name at least one class"
    empty = bench.root / "words.txt"
    empty.write_text("\n  \n")
    refused_words(bench, ("--vocab-file", empty), "vocabulary 'custom': ", text)
    tree = tiny_tree(classes=[], splits={}, default_split="")
    path = write_json(bench.root / "none.json", tree)
    refused_words(bench, ("--vocab-file", path), f"{path}: vocabulary 'tiny5': ", text)
    refused(bench.training_on(bench.register(path)), f"VocabularyError: {path}: ", text)
    predictor = bench.predictor()
    refused(lambda: predictor.set_vocabulary([]), "VocabularyError: vocabulary 'custom': ", text)
    assert predictor.vocabulary.names == NAMES, "it keeps the one that it has"


def test_duplicate_names(bench: Bench) -> None:
    """Case, spacing and Unicode form do not count; --dedup keeps the first of each, in order."""
    words = "TV, cat, tv , Ｃａｔ,dining  table,zebra,Dining table"
    refused_words(
        bench, ("--vocab", words),
        "vocabulary 'custom': class names occur more than once (case and spacing ignored): ",
        "'TV' = 'tv'; 'cat' = 'Ｃａｔ'; 'dining table' = 'Dining table'; spell them apart, list "
        "each once, or add --dedup",
    )  # fmt: skip
    assert read_words(words, dedup=True) == ["TV", "cat", "dining  table", "zebra"]
    assert set(demo_classes(bench, "--vocab", words, "--dedup")) <= {
        "TV", "cat", "dining table", "zebra"
    }  # fmt: skip
    tree = tiny_tree()
    tree["classes"][4]["name"] = "CAT "
    path = write_json(bench.root / "twice.json", tree)
    refused(bench.training_on(bench.register(path)), f"VocabularyError: {path}: ", "'cat' = 'CAT'")


def test_empty_names(bench: Bench) -> None:
    for words in ("cat,,dog", "cat,  \t,dog"):
        refused_words(
            bench, ("--vocab", words),
            "name of the class with id 1 is empty ('')", "write the word that CLIP shall read",
        )  # fmt: skip
    refused(lambda: Vocabulary.from_names(["cat", " \n"]), "with id 1 is empty (' \\n'); write")


def test_name_longer_than_clip_reads(bench: Bench) -> None:
    """A warning with the class and the words that CLIP does not read."""
    name = " ".join(["big"] * 80 + ["red", "fire", "engine"])
    assert set(demo_classes(bench, "--vocab", f"cat,{name}")) <= {"cat", name}
    (line,) = [line for line in bench.said().splitlines() if "is lost" in line]
    assert "Prompt 'a photo of a big big" in line and name not in line
    assert "ngine' has 89 tokens, CLIP reads 77: " in line
    # 1 start, 4 words of the template, 71 of the name, 1 end.
    assert f"{' '.join(['big'] * 9)} red fire engine' is lost; use a shorter name" in line


def test_names_that_look_like_format_strings(bench: Bench) -> None:
    """Names are data, also those that look like format strings."""
    names = ["100% cotton", "{} set", "{0}", "{name!r}", "%s %d", "a {} of {}", "\\1"]
    assert_read_literally(bench, names)
    assert set(demo_classes(bench, "--vocab", ",".join(names))) <= set(names)


def test_names_in_any_script(bench: Bench) -> None:
    """Accepted; what CLIP reads instead is shown once, unless it is lower case only."""
    bench.caplog.set_level("INFO")
    names = ["猫", "🐱", "собака", "Ｃａｔ", "cafÃ©", "salt &amp; pepper", "Dog"]
    assert_read_literally(bench, names)
    said = bench.said()
    for name, read in (
        ("Ｃａｔ", "cat"),
        ("cafÃ©", "café"),
        ("salt &amp; pepper", "salt & pepper"),
    ):
        assert said.count(f"CLIP reads the name {name!r} as {read!r}") == 1
    assert said.count("CLIP reads") == 3
    bench.caplog.clear()
    words = "new\nline,two  blanks, Ｃａｔ"
    for _ in range(2):
        assert set(demo_classes(bench, "--vocab", words)) <= {"new line", "two blanks", "Ｃａｔ"}
    said = bench.said()
    assert said.count("'new\\nline' is taken as 'new line'") == 1
    assert said.count("'two  blanks' is taken as 'two blanks'") == 1
    assert "CLIP reads" not in said, "it has been shown"


def test_a_single_class(bench: Bench) -> None:
    """Allowed, with a warning that suggests other classes as context."""
    assert demo_classes(bench, "--vocab", "cat", "--save-labels") == ["cat"]
    assert (np.array(Image.open(bench.root / "out" / "a_labels.png")) == 0).all()
    warning = "The only class, 'cat', gets every pixel; name others as context"
    assert warning in bench.said()
    demo_classes(bench, "--vocab", "cat", "--context", "dog, sky")
    assert warning not in bench.said()


def test_five_thousand_classes(bench: Bench) -> None:
    """The text is encoded in chunks, and no tensor holds all classes at the image's size."""
    names, predictor = [f"word {index}" for index in range(5000)], bench.predictor()
    image = picture(120, 110)
    predictor.set_vocabulary(names)
    bank = predictor.model.text_bank
    assert bank.num_text_forwards == 20, "256 prompts each"
    with LargestTensor() as largest:
        labels = predictor(image)["sem_seg_labels"]
    planes = len(names) * image.shape[0] * image.shape[1]
    # 8 MiB of float32 are 2 million; the CLIP logits of a window are 5000 x 4 x 4.
    assert largest.elements < 2.1e6 < planes / 30
    small = Image.fromarray(picture(24, 20))
    found = predictor(small)
    scores = predictor.encode(small, predictor.asked).scores((24, 20))["sem_seg"]
    assert torch.equal(found["sem_seg_labels"].long(), scores.argmax(0))
    assert labels.dtype == torch.int16 and labels.max() > 255


def test_classes_in_another_order(bench: Bench) -> None:
    """The same classes, ids and label files in another order: the same result for each name."""
    first = bench.cfg.DATASETS.TEST[0]
    tree = tiny_tree(name="reordered5")
    tree["classes"] = [tree["classes"][index] for index in (3, 0, 4, 2, 1)]
    second = bench.register(tree, "val")
    bench.evaluation_on(first, second)()
    results = [bench.metrics(name) for name in (first, second)]
    assert [row["name"] for row in results[1]["classes"]] == ["sky", "cat", "sofa", "grass", "dog"]
    rows = [sorted(result["classes"], key=lambda row: row["name"]) for result in results]
    assert len({row["IoU"] for row in rows[0]}) > 2
    for left, right in zip(*rows, strict=True):
        assert (left["name"], left["seen"], left["pixels"]) == (
            right["name"], right["seen"], right["pixels"]
        )  # fmt: skip
        assert left["IoU"] == pytest.approx(right["IoU"], abs=0.1)
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], abs=0.1)
    stored = [result["vocabulary_fingerprint"] for result in results]
    assert stored == [Vocabulary.from_metadata(name).fingerprint for name in (first, second)]
    assert stored[0] != stored[1]
    saved = torch.load(bench.weights, weights_only=True)["tagclip"]
    trained = Vocabulary.from_metadata(first).restrict("seen")
    assert saved["vocabulary_fingerprint"] == trained.fingerprint
    assert saved["classes"] == trained.names


def test_split_without_seen_or_unseen_classes(bench: Bench) -> None:
    """mIoU is reported, hIoU is n/a in the table and null in the file."""
    for split, other in (({"unseen": []}, "mIoU-unseen"), ({"seen": []}, "mIoU-seen")):
        tree = tiny_tree(name="one_sided", splits={"zs": split})
        name = bench.register(tree, "val")
        bench.evaluation_on(name)()
        rows = [line.split() for line in bench.said().splitlines()]
        # The model has seen masks of some classes, whatever this split says.
        content = bench.metrics(name)
        metrics = content["metrics_by_split"] or content["metrics"]
        for key in ("hIoU", other):
            assert [key, "n/a"] in [row[:2] for row in rows] and metrics[key] is None
        assert ["mIoU", f"{metrics['mIoU']:.2f}", "5"] in rows


def test_training_without_a_seen_class(bench: Bench) -> None:
    """Without a seen class inductive training has nothing to learn from."""
    name = bench.register(tiny_tree(splits={"zs": {"seen": []}}))
    text = "VocabularyError: vocabulary 'tiny5', split 'zs': no class is seen; choose another split"
    refused(bench.training_on(name), text)
    assert not bench.output.exists()


def test_transductive_training_without_an_unseen_class(bench: Bench) -> None:
    """Nor has a transductive one without unseen classes."""
    name = bench.register(tiny_tree(splits={"zs": {"unseen": []}}))
    setting = ("DATASETS.ZERO_SHOT.SETTING", "transductive")
    text = (
        "ConfigError: DATASETS.ZERO_SHOT.SETTING is 'transductive', but split 'zs' has 5 seen and 0"
    )
    refused(bench.training_on(name, *setting), text, "name another split or setting")
