"""Predictions for annotation tools: from an evaluation and from label files, pixel by pixel."""

from __future__ import annotations

import json
import shlex
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from helpers.bench import Bench
from helpers.labelled_images import NAMES, labelled_images, odd_vocabulary
from helpers.shell_blocks import run_blocks, shell_blocks
from helpers.tiny_run import changed, exit_of, load_tool, write_tiny_dataset
from helpers.toy_dataset import forget, write_json
from helpers.toy_evaluation import IDS, Toy
from helpers.toy_evaluation import NAMES as TOY_NAMES
from PIL import Image
from pycocotools.coco import COCO

from tagclip import ZeroShotTrainer
from tagclip.errors import ConfigError, DatasetError


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    return load_tool(repository / "tools" / "export_predictions.py")


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    name = f"export_{uuid.uuid4().hex}"
    yield Toy(tmp_path, name)
    forget(name)


def export(tool: ModuleType, *words: object) -> None:
    tool.main(tool.parse_args(list(map(str, words))))


def evaluate(toy: Toy, kind: str, count: int = 3) -> tuple[Path, list[np.ndarray]]:
    """The folder of the predictions, and these; the first image has pixels without a class."""
    folder = toy.folder / "out"
    evaluator = toy.evaluator(output_dir=str(folder), save_predictions=kind)
    outputs = [toy.output(index) for index in range(count)]
    outputs[0]["sem_seg_labels"][:3] = -1
    for index, output in enumerate(outputs):
        evaluator.process([toy.input(index)], [output])
    evaluator.evaluate()
    return folder / "predictions", [output["sem_seg_labels"].numpy() for output in outputs]


def coco_maps(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """File -> (H, W) indices of names."""
    coco, found = COCO(str(path)), {}
    for image in coco.imgs.values():
        labels = np.full((image["height"], image["width"]), -1)
        for row in coco.imgToAnns[image["id"]]:
            mask = coco.annToMask(row) > 0
            assert (labels[mask] == -1).all()
            labels[mask] = names.index(coco.cats[row["category_id"]]["name"])
        found[image["file_name"]] = labels
    return found


@pytest.mark.parametrize("kind", ["png", "json"])
def test_an_evaluation(tool: ModuleType, toy: Toy, tmp_path: Path, kind: str) -> None:
    folder, predictions = evaluate(toy, kind)
    export(tool, folder, "--to", "coco", "--output", tmp_path / "coco")
    found = coco_maps(tmp_path / "coco" / "annotations.json", TOY_NAMES)
    assert list(found) == ["0.png", "1.png", "2.png"]
    for labels, expected in zip(found.values(), predictions, strict=True):
        assert (labels == expected).all()
    for to, name in (
        ("labelme", "1.json"),
        ("cvat", "annotations.xml"),
        ("label-studio", "tasks.json"),
    ):
        export(tool, folder, "--to", to, "--output", tmp_path / to)
        assert (tmp_path / to / name).is_file()
    with pytest.raises(ConfigError, match="expected none of these files; choose another folder, "):
        export(tool, folder, "--to", "cvat", "--output", tmp_path / "cvat")
    text = (tmp_path / "cvat" / "annotations.xml").read_text()
    assert text.count("<polygon") and not text.count("<mask")
    export(
        tool, folder, "--to=cvat", "--output", tmp_path / "cvat", "--shapes=masks", "--overwrite"
    )
    text = (tmp_path / "cvat" / "annotations.xml").read_text()
    assert text.count("<mask") and not text.count("<polygon")


def test_labelme_files_are_replaced_together_or_not_at_all(
    tool: ModuleType, toy: Toy, tmp_path: Path
) -> None:
    folder, _ = evaluate(toy, "png")
    words = (folder, "--to", "labelme", "--output", tmp_path / "lm")
    export(tool, *words)
    before = {path.name: path.read_bytes() for path in (tmp_path / "lm").iterdir()}
    Image.fromarray(np.full((40, 50), IDS[0], np.uint8)).save(folder / "labels" / "0.png")
    whole = (folder / "labels" / "2.png").read_bytes()
    (folder / "labels" / "2.png").write_bytes(b"abc")
    with pytest.raises(DatasetError, match=r"2\.png"):
        export(tool, *words, "--overwrite")
    assert {path.name: path.read_bytes() for path in (tmp_path / "lm").iterdir()} == before
    (folder / "labels" / "2.png").write_bytes(whole)
    export(tool, *words, "--overwrite")
    after = {path.name: path.read_bytes() for path in (tmp_path / "lm").iterdir()}
    assert after.keys() == before.keys() and after["0.json"] != before["0.json"]
    assert after["1.json"] == before["1.json"]


def test_no_category_of_coco_is_zero(
    tool: ModuleType, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """To datumaro that is no class."""
    assert 0 in IDS
    export(tool, evaluate(toy, "png")[0], "--to", "coco", "--output", tmp_path / "coco")
    content = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    assert [row["id"] for row in content["categories"]] == [value + 1 for value in IDS]
    assert "category_id is the class's id plus 1" in capsys.readouterr().out
    tree = json.loads(toy.json.read_text())
    tree["classes"][1]["id"] = 1
    labels = tmp_path / "masks"
    labels.mkdir()
    Image.fromarray(np.full((9, 7), 7, np.uint8)).save(labels / "0.png")
    words = (
        "--images",
        toy.folder / "images",
        "--vocab-file",
        write_json(tmp_path / "v.json", tree),
    )
    export(tool, labels, *words, "--to", "coco", "--output", tmp_path / "coco1")
    content = json.loads((tmp_path / "coco1" / "annotations.json").read_text())
    assert [row["id"] for row in content["categories"]] == [7, 1, *IDS[2:]]
    assert [row["category_id"] for row in content["annotations"]] == [7]
    assert "plus 1" not in capsys.readouterr().out


def test_only_evaluated_images(
    tool: ModuleType, toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = evaluate(toy, "png", count=2)
    caplog.clear()
    export(tool, folder, "--to", "cvat", "--output", tmp_path / "cvat")
    (record,) = caplog.records
    assert "found no labels of 1 of 3 images, such as " in record.getMessage()
    assert record.getMessage().endswith("2.png; they are left out")
    images = ElementTree.parse(tmp_path / "cvat" / "annotations.xml").findall("image")
    assert [image.get("name") for image in images] == ["0.png", "1.png"]


@pytest.mark.parametrize("kind", ["png", "json"])
@pytest.mark.parametrize("listed", [2, 0])
def test_images_that_are_no_longer_listed_are_missed(
    tool: ModuleType, toy: Toy, tmp_path: Path, kind: str, listed: int
) -> None:
    folder, _ = evaluate(toy, kind)
    for index, sample in enumerate(toy.samples[listed:]):
        for file in map(Path, (sample["file_name"], sample["sem_seg_file_name"])):
            file.rename(file.with_name(f"other{index}.png"))
    with pytest.raises(ConfigError) as error:
        export(tool, folder, "--to", "cvat", "--output", tmp_path / "cvat")
    assert str(error.value).startswith(
        f"{folder}/index.json: found predictions of 3 images, of which the dataset lists {listed} "
    )
    assert not (tmp_path / "cvat").exists()


def test_a_run_knows_its_own_datasets(tool: ModuleType, tiny_cfg: CfgNode, tmp_path: Path) -> None:
    """Here by its config; it may have registered them itself."""
    write_tiny_dataset(tmp_path, val=2)
    run, dataset = Path(tiny_cfg.OUTPUT_DIR), tiny_cfg.DATASETS.TEST[0]
    run.mkdir()
    (run / "config.yaml").write_text(tiny_cfg.dump())
    cfg = changed(tiny_cfg, "TEST.SAVE_PREDICTIONS", "png")
    evaluator = ZeroShotTrainer.build_evaluator(cfg, dataset)
    expected = {}
    for sample in DatasetCatalog.get(dataset):
        labels = np.array(Image.open(sample["sem_seg_file_name"])).astype(np.int16) % 5
        expected[Path(sample["file_name"]).name] = labels

        evaluator.process([sample], [{"sem_seg_labels": torch.from_numpy(labels)}])
    evaluator.evaluate()
    folder = run / "inference" / dataset / "predictions"
    export(tool, folder, "--to", "coco", "--output", tmp_path / "coco")
    found = coco_maps(
        tmp_path / "coco" / "annotations.json", ["cat", "dog", "grass", "sky", "sofa"]
    )
    assert found.keys() == expected.keys()
    assert all((found[file] == expected[file]).all() for file in found)


@pytest.mark.parametrize("suffix", ["_labels.png", ".png"])
def test_label_files(tool: ModuleType, tmp_path: Path, suffix: str) -> None:
    """As those of the demo, whose pictures lie beside them, or alone; 16 bits, folders, umlauts."""
    vocabulary, images = odd_vocabulary(), labelled_images(tmp_path / "images")
    ids = [entry.id for entry in vocabulary.classes]
    values = np.array([*ids, vocabulary.ignore_label], np.uint16)
    for image in images:
        path = tmp_path / "masks" / f"{image.stem}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values[image.labels]).save(path)
        if suffix == "_labels.png":
            Image.open(image.path).save(tmp_path / "masks" / f"{image.stem}.png")
    classes = [{"id": entry.id, "name": entry.name} for entry in vocabulary.classes]
    tree = {"format": 1, "name": "odd", "classes": classes}
    words = (
        tmp_path / "masks", "--images", tmp_path / "images",
        "--vocab-file", write_json(tmp_path / "odd.json", tree),
    )  # fmt: skip
    export(tool, *words, "--to", "coco", "--output", tmp_path / "coco")
    found = coco_maps(tmp_path / "coco" / "annotations.json", NAMES)
    assert found.keys() == {image.file for image in images}
    for image in images:
        assert (found[image.file] == image.labels).all()
    # Of a run that was killed.
    left = [
        tmp_path / "labelme" / name for name in (".a.json.0123abcd.tmp", "street/.b.0123abcd.tmp")
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    export(tool, *words, "--to", "labelme", "--output", tmp_path / "labelme")
    assert not any(path.exists() for path in left)
    content = json.loads((tmp_path / "labelme" / "street" / "b c.json").read_text())
    assert content["imagePath"] == "../../images/street/b c.png"
    words += ("--to", "label-studio", "--image-url", "x/", "--output", tmp_path / "ls")
    export(tool, *words)
    assert '"image":"x/street/b%20c.png"' in (tmp_path / "ls" / "tasks.json").read_text().replace(
        '": "', '":"'
    )


def test_two_images_that_differ_in_the_suffix(tool: ModuleType, tmp_path: Path) -> None:
    """As the demo names their pictures."""
    (tmp_path / "images").mkdir()
    for name, value in (("a.png", 0), ("a.jpg", 1)):
        Image.new("RGB", (4, 3)).save(tmp_path / "images" / name)
        (tmp_path / "masks").mkdir(exist_ok=True)
        label = np.full((3, 4), value, np.uint8)
        Image.fromarray(label).save(tmp_path / "masks" / f"{name}_labels.png")
    words = ("--images", tmp_path / "images", "--vocab", "cat, dog", "--output", tmp_path / "out")
    export(tool, tmp_path / "masks", *words, "--to", "labelme")
    for name, label in (("a.png", "cat"), ("a.jpg", "dog")):
        content = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert content["imagePath"] == f"../images/{name}"
        assert [shape["label"] for shape in content["shapes"]] == [label]


def test_a_label_of_two_images_is_refused_with_the_names_to_choose(
    tool: ModuleType, tmp_path: Path
) -> None:
    words = (*write_labels(tmp_path, a=(3, 4)), "--vocab", "cat, dog")
    Image.new("RGB", (4, 3)).save(tmp_path / "images" / "a.jpg")
    with pytest.raises(ConfigError) as error:
        export(tool, *words)
    assert str(error.value) == (
        f"{tmp_path}/masks/a.png: found 2 images of this name, a.jpg, a.png, expected a label file "
        "of each, a.jpg.png, a.png.png; rename it, or move the images that it is not of"
    )
    (tmp_path / "masks" / "a.png").rename(tmp_path / "masks" / "a.jpg.png")
    export(tool, *words)
    images = ElementTree.parse(tmp_path / "out" / "annotations.xml").findall("image")
    assert [image.get("name") for image in images] == ["a.jpg"]


def test_images_that_are_left_out_are_named(
    tool: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = (*write_labels(tmp_path, a=(3, 4)), "--vocab", "cat, dog", "--overwrite")
    for rest in ("", "; not read: b.tif; save such label files as PNG"):
        export(tool, *words)
        (record,) = caplog.records
        assert record.levelname == "WARNING" and record.getMessage() == (
            f"{tmp_path}/masks: found no labels of 1 of 2 images, such as {tmp_path}/images/b.png; "
            f"they are left out{rest}"
        )
        caplog.clear()
        Image.fromarray(np.ones((3, 4), np.uint8)).save(tmp_path / "masks" / "b.tif")
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(ConfigError, match="found no label file of an .*; not read: b.tif; save su"):
        export(tool, *words)
    Image.fromarray(np.ones((3, 4), np.uint8)).save(tmp_path / "masks" / "b.PNG")
    (tmp_path / "images" / "a.png").unlink()
    export(tool, *words)
    assert not caplog.records
    images = ElementTree.parse(tmp_path / "out" / "annotations.xml").findall("image")
    assert [image.get("name") for image in images] == ["b.png"]


def test_labels_in_the_folder_of_the_images(tool: ModuleType, tmp_path: Path) -> None:
    words = write_labels(tmp_path, a=(3, 4))
    with pytest.raises(
        ConfigError, match=r"--images .*: found 2 images, all within FOLDER .*images"
    ):
        export(tool, tmp_path / "images", *words[1:], "--vocab", "cat, dog")


def write_labels(folder: Path, **sizes: tuple[int, int]) -> tuple[object, ...]:
    """Images of 3x4 pixels a and b, label files of other sizes; words of a command line."""
    for name in "ab":
        (folder / "images").mkdir(exist_ok=True)
        Image.new("RGB", (4, 3)).save(folder / "images" / f"{name}.png")
    for name, size in sizes.items():
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full(size, 1, np.uint8)).save(folder / "masks" / f"{name}.png")
    words = ("--images", folder / "images", "--to", "cvat", "--output", folder / "out")
    return (folder / "masks", *words)


def test_label_files_that_do_not_fit(tool: ModuleType, tmp_path: Path) -> None:
    words = write_labels(tmp_path, a=(3, 4))
    with pytest.raises(ConfigError, match=r"found no index.json of an evaluation, .* --vocab-file"):
        export(tool, *words)
    with pytest.raises(DatasetError, match=r"a.png: label 1 at \(0,0\)"):
        export(tool, *words, "--vocab", "cat")
    assert not (tmp_path / "out" / "annotations.xml").exists()
    export(tool, *words, "--vocab", "cat, dog")
    write_labels(tmp_path, b=(4, 3))
    with pytest.raises(DatasetError, match=r"b.png: label is 3x4 .* 4x3; .* swapped: write the"):
        export(tool, *words, "--vocab", "cat, dog", "--overwrite")
    assert (tmp_path / "out" / "annotations.xml").read_text().count("<image") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["annotations.xml"]
    write_labels(tmp_path, b=(3, 4), c=(3, 4))
    with pytest.raises(ConfigError, match=r"found .*c.png without an image below .*images, exp"):
        export(tool, *words, "--vocab", "cat, dog", "--overwrite")


def test_folders_that_are_not_there(tool: ModuleType, tmp_path: Path) -> None:
    words = write_labels(tmp_path)
    with pytest.raises(ConfigError, match="masks: found no such folder; mend the path"):
        export(tool, *words, "--vocab", "cat")
    (tmp_path / "masks").mkdir()
    with pytest.raises(ConfigError, match="masks: found no label file of an image below"):
        export(tool, *words, "--vocab", "cat")
    words = write_labels(tmp_path, a=(3, 4))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="--output .*out: cannot be written"):
        export(tool, *words, "--vocab", "cat, dog")


def test_options_of_the_other_kind(tool: ModuleType, toy: Toy, tmp_path: Path) -> None:
    folder, _ = evaluate(toy, "png")
    words = (folder, "--to", "cvat", "--output", tmp_path / "cvat")
    for option in (("--images", toy.folder), ("--vocab", "cat"), ("--dedup",)):
        with pytest.raises(ConfigError, match="knows its images and classes; leave out --images"):
            export(tool, *words, *option)
    (folder / "index.json").write_text("{")
    with pytest.raises(ConfigError, match="index.json: found damaged predictions"):
        export(tool, *words)
    for more in (["--to=coco", "--shapes=polygons"], ["--to=cvat", "--image-url=x"]):
        assert exit_of(tool.parse_args, [str(folder), "--output=x", *more]) == 2


def test_labels_of_other_words_are_refused(
    tool: ModuleType, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """As of a second segment into the folder that broke off, or whose words were not those."""
    bench, out = Bench.of(request), tmp_path / "out"
    images = [bench.save_image(f"{name}.png") for name in "ab"]
    words = ("--images", tmp_path / "in", "--to", "coco", "--output", tmp_path / "coco", "--vocab")
    segment = ("--output", out, "--save-labels", "--vocab")
    assert bench.demo(*images, *segment, "cat, zebra") == 0
    assert bench.demo(images[1], *segment, "sky, grass") == 0
    for asked, file in (("cat, zebra", "b"), ("sky, grass", "a")):
        with pytest.raises(DatasetError, match=rf"{file}_labels\.png: found .* words"):
            export(tool, out, *words, asked)
    assert bench.demo(*images, *segment, "sky, grass", "--overwrite") == 0
    with pytest.raises(DatasetError, match="_labels.png: .* other words .* expected cat, zebra;"):
        export(tool, out, *words, "cat, zebra")
    # A context is of no class, and other settings have the same ones.
    assert bench.demo(images[0], *segment, "sky, grass", "--context", "cat") == 0
    export(tool, out, *words, "Sky,grass")


def test_labels_of_another_image_are_refused(
    tool: ModuleType, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Of the same name in another folder; a folder that was moved is the same."""
    bench, out = Bench.of(request), tmp_path / "out"
    (image,) = [bench.save_image("a.png")]
    words = ("--vocab", "cat, zebra")
    assert bench.demo(image, "--output", out, "--save-labels", "--no-draw", *words) == 0
    other = tmp_path / "other" / "a.png"
    other.parent.mkdir()
    Image.fromarray(255 - np.array(Image.open(image))).save(other)
    more = ("--to", "coco", "--output", tmp_path / "coco", *words)
    with pytest.raises(DatasetError) as caught:
        export(tool, out, "--images", other.parent, *more)
    assert str(caught.value).startswith(
        f"{out}/a_labels.png: found labels that segment made of another image than {other}, exp"
    )
    other.unlink()
    shutil.move(image, other)
    export(tool, out, "--images", other.parent, *more)


@pytest.mark.parametrize("has_index", [True, False])
def test_the_list_beside_label_files_says_what_they_hold(
    tool: ModuleType, tmp_path: Path, has_index: bool
) -> None:
    """As labels convert writes it, with an index.json, and bulk-read without."""
    vocabulary, labels, images = odd_vocabulary(), tmp_path / "labels", tmp_path / "images"
    for folder in (labels, images):
        folder.mkdir()
    values = np.array([[entry.id for entry in vocabulary.classes]], np.uint16).repeat(4, 0)
    Image.fromarray(values).save(labels / "a.png")
    Image.fromarray(np.zeros((*values.shape, 3), np.uint8)).save(images / "a.png")
    rows = [{"id": e.id, "name": e.name, "prompts": [e.name]} for e in vocabulary.classes]
    tree = {"format": 1, "name": "own", "ignore_label": vocabulary.ignore_label, "classes": rows}
    write_json(labels / "vocabulary.json", tree)
    if has_index:
        write_json(labels / "index.json", {"classes": vocabulary.names, "images": {}})
    words = (labels, "--images", images, "--to", "coco", "--output", tmp_path / "coco")
    with pytest.raises(
        ConfigError, match=r"vocabulary\.json: found the list of what .* leave that"
    ):
        export(tool, *words, "--vocab", "cat, zebra")
    export(tool, *words)
    (found,) = coco_maps(tmp_path / "coco" / "annotations.json", vocabulary.names).values()
    assert (found == np.arange(len(vocabulary))).all()


@pytest.mark.slow
def test_the_commands_of_the_docs(tool: ModuleType, repository: Path, tmp_path: Path) -> None:
    """Those without a model are run, on label files as the demo writes them."""
    page = (repository / "docs" / "other_tools.md").read_text()
    section = page.split("\n## Predictions for other tools\n")[1].split("\n## ")[0]
    blocks = shell_blocks(section)
    lines = "".join(block.text for block in blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line) for line in lines if line.startswith("tagclip labels export ")]
    assert {tool.parse_args(each[3:]).to for each in words} == set(tool.FILES)
    for folder in ("datasets/minibench/images/val", "out/val"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (5, 4)).save(tmp_path / "datasets/minibench/images/val/0.png")
    label = np.array([[0, 1, 2, 3, 255]] * 4, np.uint8)
    Image.fromarray(label).save(tmp_path / "out" / "val" / "0_labels.png")
    run_blocks(blocks[-1:], tmp_path, "docs/other_tools.md")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/*/*.*")}
    assert found == {
        "val/0_labels.png", "labelme/0.json", "labelme/labels.txt", "coco/annotations.json",
        "label_studio/tasks.json", "label_studio/label_config.xml",
    }  # fmt: skip
