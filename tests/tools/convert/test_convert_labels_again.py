"""`tagclip labels convert` into a folder that has labels: runs that stop, go on, replace or add."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.convert_tool import COLORS, TABLE, VALUES, content, ids, run
from PIL import Image

from tagclip.data import read_label
from tagclip.errors import DatasetError, VocabularyError
from tagclip.structures.vocabulary import Vocabulary


def test_a_run_goes_on_where_it_stopped(
    tool: ModuleType, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "o"
    words = [masks, "--classes", tmp_path / "classes.csv", "--output", output]
    (masks / "b" / "3.png").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"3\.png: cannot decode this label file"):
        run(tool, *words)
    stopped = content(output)
    assert set(stopped) == {"a/0.png", "a/2.png", "b/1.png"}
    # What a killed process leaves behind.
    (output / "b" / ".1.png.0123abcd.tmp").write_bytes(b"half")
    (output / "a" / "2.png").unlink()
    (masks / "b" / "3.png").unlink()
    run(tool, *words)
    assert "1 written, 2 kept" in capsys.readouterr().out
    after = content(output)
    assert set(after) == {*stopped, "index.json", "vocabulary.json"}
    assert after["b/1.png"] == stopped["b/1.png"] and after["a/2.png"][0] == stopped["a/2.png"][0]


def test_other_labels_in_the_place_stay(tool: ModuleType, masks: Path, tmp_path: Path) -> None:
    other = tmp_path / "o" / "a" / "0.png"
    other.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(other)
    before = content(tmp_path / "o")
    words = [masks, "--classes", tmp_path / "classes.csv", "--output", tmp_path / "o"]
    with pytest.raises(DatasetError, match=r"a/0\.png: found a file with other labels"):
        run(tool, *words)
    assert content(tmp_path / "o") == before
    run(tool, *words, "--overwrite")
    assert np.array_equal(read_label(other), VALUES[ids(0)])


@pytest.mark.parametrize("fault", ["unknown colour", "damage", "kill"])
def test_labels_are_replaced_together_or_not_at_all(
    tool: ModuleType, masks: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them would have the ids of another class list."""
    (other := tmp_path / "other.csv").write_text(
        "name,r,g,b\nred thing,220,20,60\nsand,194,178,128\nignore,0,0,0\n"
    )
    output = tmp_path / "o"
    run(tool, masks, "--classes", tmp_path / "classes.csv", "--output", output)
    before, words = content(output), [masks, "--classes", other, "--output", output, "--overwrite"]
    last = masks / "b" / "1.PNG"
    good = last.read_bytes()
    if fault == "damage":
        last.write_bytes(good[:60])
    elif fault == "unknown colour":
        Image.fromarray(np.full((20, 30, 3), 77, np.uint8)).save(last)
    else:
        monkeypatch.setattr(tool, "replace", _interrupt_third(tool.replace))
    with pytest.raises(KeyboardInterrupt if fault == "kill" else DatasetError) as error:
        run(tool, *words)
    assert content(output) == before
    if fault != "damage":
        assert ("labels that were there stay" if fault == "kill" else "nothing is repl") in str(
            error.value
        )
    last.write_bytes(good)
    monkeypatch.undo()
    run(tool, *words)
    swapped = np.array([255, 1, 0])
    for number in range(3):
        path = output / ("a", "b")[number % 2] / f"{number}.png"
        assert np.array_equal(read_label(path), swapped[ids(number)])
    names = json.loads((output / "index.json").read_text())["classes"]
    assert names == {"0": "red thing", "1": "sand"}
    assert not [path for path in output.rglob("*") if path.name.startswith(".")]


def _interrupt_third(replace: Any) -> Any:
    """`dataclasses.replace` whose result is interrupted at its third call."""

    def make(function: Any, **changes: Any) -> Any:
        calls = iter(range(100))
        changed = replace(function, **changes)

        def call(task: Any) -> Any:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return changed(task)

        return call

    return make


def labelme(folder: Path, *names: str, image: str = "") -> Path:
    """An image with a square of each class, from left to right (`squares`)."""
    folder.mkdir(exist_ok=True)
    shapes = [
        {"label": name, "shape_type": "rectangle", "points": [[4 * k, 0], [4 * k + 4, 4]]}
        for k, name in enumerate(names)
    ]
    stem = image or folder.name
    tree = {"imagePath": f"{stem}.jpg", "shapes": shapes, "imageHeight": 4, "imageWidth": 12}
    (folder / f"{stem}.json").write_text(json.dumps(tree))
    return folder


def colored(folder: Path, *names: str) -> Path:
    """The same as a colour mask, with the class list beside it."""
    colors = {"bus": (0, 0, 60), "car": (0, 60, 0), "tree": (60, 0, 0)}
    folder.mkdir(exist_ok=True)
    mask = np.zeros((4, 12, 3), np.uint8)
    for k, name in enumerate(names):
        mask[:, 4 * k : 4 * k + 4] = colors[name]
    Image.fromarray(mask).save(folder / f"{folder.name}.png")
    rows = [f"{name},{','.join(map(str, colors[name]))}" for name in sorted(names)]
    (folder / "class_dict.csv").write_text("\n".join(["name,r,g,b", *rows, "ignore,0,0,0"]))
    return folder


def squares(path: str) -> list[str | None]:
    """What the squares of a label file mean by the class list beside it; None if ignored."""
    vocabulary = Vocabulary.from_json(Path(path).parent / "vocabulary.json")
    names = {value: entry.name for value, entry in vocabulary.by_value.items()}
    names |= dict.fromkeys(vocabulary.ignored)
    return [names[value] for value in read_label(path)[1, [1, 5, 9]].tolist()]


def edit(path: Path, **changes: Any) -> dict[str, Any]:
    """Change a class list as a user may: the tree that is there then."""
    tree = json.loads(path.read_text())
    tree["classes"][0] |= {"name": "Car", "prompts": ["car", "automobile"]}
    tree |= {"default_split": "mine", **changes}
    path.write_text(json.dumps(tree))
    return tree


_ANOTHER = "or choose another --output, into which all can go in one run"


@pytest.mark.parametrize("make", [labelme, colored])
def test_a_second_batch_of_other_classes_is_refused(
    tool: ModuleType, tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--output", "o", *(["--from", "labelme"] if make is labelme else [])]
    run(tool, make(Path("b1"), "tree", "car"), *words)
    assert squares("o/b1.png") == ["tree", "car", None]
    before, second = content(Path("o")), make(Path("b2"), "car", "bus", "tree")
    with pytest.raises(VocabularyError) as refused:
        run(tool, second, *words)
    assert str(refused.value) == (
        "o/vocabulary.json: found 'car' for the value 0, expected 'bus' as this run writes it, so "
        "that label files there would change their meaning; keep the values that classes and "
        f"ignored pixels have there, by one class list of all (--classes); {_ANOTHER}"
    )
    with pytest.raises(DatasetError) as error:
        run(tool, second, *words, "--overwrite")
    assert str(error.value) == (
        "o/b1.png: found 1 label file that this run does not write, expected none, for by its "
        "class list they would mean something else; choose another --output, or remove them"
    )
    assert content(Path("o")) == before
    # What the first line asks for: one list, or one run.
    rows = ["name,r,g,b", "car,0,60,0", "tree,60,0,0", "bus,0,0,60", "ignore,0,0,0"]
    Path("all.csv").write_text("\n".join(rows))
    run(tool, second, *words, "--classes", "all.csv")
    assert squares("o/b1.png") == ["tree", "car", None]
    assert squares("o/b2.png") == ["car", "bus", "tree"]
    index = json.loads(Path("o/index.json").read_text())
    assert index["classes"] == {"0": "car", "1": "tree", "2": "bus"}
    Path("all").mkdir()
    for name in ("b1", "b2"):
        Path(name).rename(f"all/{name}")
    run(tool, "all", *words, "--classes", "all.csv", "--output", "one")
    assert (read_label("one/b2/b2.png") == read_label("o/b2.png")).all()
    # What the second line asks for.
    Path("o/b1.png").unlink()
    run(tool, "all/b2", *words, "--overwrite")
    assert squares("o/b2.png") == ["car", "bus", "tree"]
    assert read_label("o/b2.png")[1, [1, 5, 9]].tolist() == [1, 0, 2]


def test_overwrite_leaves_no_label_with_the_ids_of_before(
    tool: ModuleType, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output, table = tmp_path / "o", tmp_path / "classes.csv"
    words = [masks, "--classes", table, "--output", output]
    run(tool, *words)
    head, sand, red, ignore = TABLE.splitlines()
    table.write_text("\n".join([head, red, sand, ignore]))
    with pytest.raises(VocabularyError, match="in one run, or pass --overwrite$"):
        run(tool, *words)
    (masks / "b" / "1.PNG").unlink()
    before = content(output)
    for more, error in (([], VocabularyError), (["--overwrite"], DatasetError)):
        with pytest.raises(error) as found:
            run(tool, *words, *more)
        assert not str(found.value).endswith("--overwrite") and content(output) == before
    assert str(found.value).startswith(f"{output / 'b/1.png'}: found 1 label file that this run")
    (output / "b" / "1.png").unlink()
    capsys.readouterr()
    run(tool, *words, "--overwrite")
    assert capsys.readouterr().out.endswith("2 written, 0 kept; vocabulary.json is replaced\n")
    assert np.array_equal(read_label(output / "a/0.png"), np.array([255, 1, 0])[ids(0)])
    assert Vocabulary.from_json(output / "vocabulary.json").names == ["red thing", "sand"]


def test_masks_and_photos_below_the_output_are_no_labels_of_before(
    tool: ModuleType, masks: Path, tmp_path: Path
) -> None:
    table = tmp_path / "classes.csv"
    words = [masks, "--classes", table, "--output", tmp_path]
    run(tool, *words)
    Image.new("RGB", (30, 20)).save(tmp_path / "a" / "0.jpg")
    table.write_text(TABLE.replace("red", "blue"))
    run(tool, *words, "--overwrite")
    assert Vocabulary.from_json(tmp_path / "vocabulary.json").names == ["sand", "blue thing"]


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_class_list_that_was_edited_stays(
    tool: ModuleType,
    tmp_path: Path,
    more: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    path, words = Path("o/vocabulary.json"), ["--from", "labelme", "--output", "o", *more]
    run(tool, labelme(Path("b1"), "tree", "car"), *words)
    before = content(path.parent)[path.name]
    run(tool, "b1", *words)
    assert content(path.parent)[path.name] == before
    assert path.name not in capsys.readouterr().out
    tree = edit(path, splits={"mine": {"unseen": ["Car"]}})
    before = content(path.parent)[path.name]
    labelme(Path("b1"), "car", "tree", image="new")
    run(tool, "b1", *words)
    said = "1 written, 1 kept; vocabulary.json, by which they mean the same, stays as it is\n"
    assert capsys.readouterr().out.endswith(said)
    assert content(path.parent)[path.name] == before
    assert json.loads(Path("o/index.json").read_text())["classes"] == {"0": "Car", "1": "tree"}
    assert squares("o/b1.png") == ["tree", "Car", None]
    assert squares("o/new.png") == ["Car", "tree", None]
    # A class behind the others changes nothing of those that are there; nor does one less.
    run(tool, labelme(Path("b2"), "car", "tree", "zebra"), *words)
    assert capsys.readouterr().out.endswith("; vocabulary.json stays and has got new classes\n")
    run(tool, labelme(Path("b3"), "car"), *words)
    assert squares("o/b1.png") == ["tree", "Car", None]
    assert squares("o/b2.png") == ["Car", "tree", "zebra"]
    assert squares("o/b3.png") == ["Car", None, None]
    classes = [*tree["classes"], {"id": 2, "name": "zebra"}]
    assert json.loads(path.read_text()) == {**tree, "classes": classes}
    assert Vocabulary.from_json(path).unseen_names == ["Car"]


def test_a_class_list_that_stays_is_there_if_all_files_are_not(
    tool: ModuleType, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not removed before, as one is that goes."""
    words = [masks, "--classes", tmp_path / "classes.csv", "--output", tmp_path / "o"]
    run(tool, *words)
    path = tmp_path / "o" / "vocabulary.json"
    tree = {**json.loads(path.read_text()), "splits": {"mine": {"unseen": ["sand"]}}}
    path.write_text(json.dumps(tree))
    monkeypatch.setattr(tool, "replace", _interrupt_third(tool.replace))
    with pytest.raises(KeyboardInterrupt):
        run(tool, *words, "--overwrite")
    monkeypatch.undo()
    assert json.loads(path.read_text()) == tree
    run(tool, *words, "--overwrite")
    assert json.loads(path.read_text()) == tree


def test_annotations_of_the_folder_one_stands_in(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(labelme(tmp_path / "b1", "tree"))
    for _ in range(2):
        run(tool, ".", "--from", "labelme", "--output", "../o")
        assert Vocabulary.from_json("../o/vocabulary.json").name == "b1"


def test_a_split_that_has_to_name_a_new_class(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, words = Path("o/vocabulary.json"), ["--from", "labelme", "--output", "o"]
    run(tool, labelme(Path("b1"), "tree", "car"), *words)
    tree = edit(path, splits={"mine": {"seen": ["tree"], "unseen": ["Car"]}})
    before = content(Path("o"))
    with pytest.raises(VocabularyError) as error:
        run(tool, labelme(Path("b2"), "car", "tree", "zebra"), *words)
    assert str(error.value) == (
        f"{path}: with 'zebra' (id 2) among its classes, as this run needs it: split 'mine': "
        f"'zebra' is neither seen nor unseen; list it in one; {_ANOTHER}"
    )
    assert content(Path("o")) == before
    classes = [*tree["classes"], {"id": 2, "name": "zebra"}]
    edit(path, classes=classes, splits={"mine": {"seen": ["tree", "zebra"], "unseen": ["Car"]}})
    run(tool, "b2", *words)
    assert squares("o/b1.png") == ["tree", "Car", None]
    assert squares("o/b2.png") == ["Car", "tree", "zebra"]
    assert Vocabulary.from_json(path).unseen_names == ["Car"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": [{"id": 0, "name": "car"}]}, ""),
        ({"classes": [{"id": 3, "name": "x"}, {"ids": [7, 1], "name": "Tree"}]}, ""),
        ({"ignore_label": [254, 255]}, ""),
        ({"classes": [{"id": 5, "name": "car"}]}, "found the value 5 for 'car', expected 0 as"),
        ({"classes": [{"ids": [4, 0], "name": "x"}]}, "found 'x' for the value 0, expected 'car'"),
        ({"classes": [{"id": 4, "name": "x"}], "ignore_label": [9, 1]}, "found ignore for .* 1, e"),
        ({"ignore_label": 254}, "found the ignore_label 254, expected 255 as"),
        ({"labels": "colors"}, 'found "labels": "colors", expected "ids", which are written; or '),
        ({"format": 2}, "format is 2, expected 1; or choose another"),
        ({"splits": {"s": {"unseen": ["x"]}}}, "split 's': unseen"),
        (None, "not a readable json file .*; mend it; or choose another"),
    ],
)
def test_what_labels_there_mean(
    tool: ModuleType,
    tmp_path: Path,
    change: dict[str, Any] | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    colors = {"car": [0, 0, 0], "tree": [1, 0, 0]}
    rows = [{"id": k, "name": n, "color": c} for k, (n, c) in enumerate(colors.items())]
    tree = {"format": 1, "name": "there", "classes": rows, **(change or {})}
    path = Path("o/vocabulary.json")
    path.parent.mkdir()
    path.write_text("{" if change is None else json.dumps(tree))
    words = [labelme(Path("b1"), "tree", "car"), "--from", "labelme", "--output", "o"]
    if message:
        before = content(path.parent)
        with pytest.raises(VocabularyError, match=rf"^{path}: {message}") as error:
            run(tool, *words)
        assert str(error.value).endswith(f"; {_ANOTHER}, or pass --overwrite")
        assert "\n" not in str(error.value) and content(path.parent) == before
        words.append("--overwrite")
    run(tool, *words)
    assert [name and name.casefold() for name in squares("o/b1.png")] == ["tree", "car", None]
    assert (json.loads(path.read_text())["name"] == "there") == (not message)


def test_the_index_knows_the_masks_of_all_runs(
    tool: ModuleType, masks: Path, tmp_path: Path
) -> None:
    output, index = tmp_path / "o", tmp_path / "o" / "index.json"
    words = ["--classes", tmp_path / "classes.csv", "--output", output]
    run(tool, masks, *words)
    first = json.loads(index.read_text())
    assert list(first["files"]) == ["a/0.png", "a/2.png", "b/1.png"] and first["earlier"] == []
    second = tmp_path / "second" / "a"
    second.mkdir(parents=True)
    for name, seed in (("2.png", 2), ("7.png", 7)):
        Image.fromarray(COLORS[ids(seed)]).save(second / name)
    (output / "b" / "1.png").unlink()
    for more in ((), ("--overwrite",)):
        run(tool, second.parent, *words, *more)
        found = json.loads(index.read_text())
        assert list(found["files"]) == ["a/2.png", "a/7.png"]
        assert found["earlier"] == [
            {"from": "masks", "source": str(masks), "unknown": {},
             "files": {"a/0.png": first["files"]["a/0.png"]}}
        ]  # fmt: skip
    index.write_text("damaged")
    run(tool, second.parent, *words)
    assert json.loads(index.read_text())["earlier"] == []
