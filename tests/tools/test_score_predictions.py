"""tools/score_predictions.py: predictions of every form against an independent count."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.bench import Bench, refused
from helpers.full_disk import largest_file
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed, exit_of, load_tool, write_tiny_dataset
from PIL import Image
from pycocotools import mask as coco_mask

from tagclip import Vocabulary, ZeroShotTrainer, register_folder_dataset
from tagclip.errors import TagCLIPError
from tagclip.scoring import MERGES
from tagclip.scoring.conventions import CONVENTIONS
from tagclip.visualization.panels import save_png

IDS, NAMES, IGNORED = (1, 4, 7), ("grass", "sky blue", "cat"), 255
SIZE = (12, 17)


@pytest.fixture(scope="session")
def tool(repository: Path) -> ModuleType:
    return load_tool(repository / "tools" / "score_predictions.py")


class Data:
    """A folder dataset, predictions as indices, and runs of the tool on them."""

    def __init__(self, root: Path, tool: ModuleType, count: int = 5) -> None:
        self.root, self.tool, self.name = root, tool, f"scored_{root.name}"
        rng = np.random.default_rng(0)
        self.truth, self.predicted = {}, {}
        for folder in ("images/a", "labels/a"):
            (root / folder).mkdir(parents=True)
        for number in range(count):
            stem = f"a/{number:03d}"
            truth = rng.choice([0, 1, 2, 3], (3, 5)).repeat(4, 0).repeat(4, 1)[:, : SIZE[1]]
            self.truth[stem] = truth
            self.predicted[stem] = np.where(rng.random(SIZE) < 0.3, rng.choice(3, SIZE), truth % 3)
            values = np.array([*IDS, IGNORED], np.uint8)[truth]
            Image.fromarray(values).save(root / "labels" / f"{stem}.png")
            Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(
                root / "images" / f"{stem}.jpg"
            )
        tree = {
            "format": 1,
            "name": "three",
            "classes": [
                {"id": i, "name": n, "prompts": [n, f"my {n}"]}
                for i, n in zip(IDS, NAMES, strict=True)
            ],
            "default_split": "cats",
            "splits": {"cats": {"unseen": ["cat"]}},
        }
        (root / "three.json").write_text(json.dumps(tree))
        register_folder_dataset(self.name, root / "images", root / "labels", root / "three.json")

    def counts(self, predicted: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """(3, 4) pixels by true and predicted class, -1 last, pixel by pixel."""
        total = np.zeros((3, 4), dtype=int)
        for stem, labels in (predicted or self.predicted).items():
            for true, found in zip(self.truth[stem].ravel(), labels.ravel(), strict=True):
                if true < 3:
                    total[true, found] += 1
        return total

    def save(self, write: Callable[[Path, np.ndarray], None]) -> Path:
        """Write every prediction below a folder, without extension given."""
        folder = self.root / "predicted"
        for stem, labels in self.predicted.items():
            path = folder / stem
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, labels)
        return folder

    def score(self, predictions: Path, *options: str) -> dict[str, Any]:
        output = self.root / "output"
        words = [str(predictions), "--dataset", self.name, "--output", str(output), *options]
        self.tool.main(self.tool.parse_args([*words, "--workers", "0"]))
        return json.loads((output / "inference" / self.name / "metrics.json").read_text())

    def refused(self, predictions: Path, *options: str) -> str:
        """The one line of the error; no result is left."""
        words = [str(predictions), "--dataset", self.name, *options, "--workers", "0"]
        output = self.root / "refused"
        with pytest.raises(TagCLIPError) as error:
            self.tool.main(self.tool.parse_args([*words, "--output", str(output)]))
        assert not list(output.rglob("metrics.json"))
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def data(tmp_path: Path, tool: ModuleType) -> Data:
    return Data(tmp_path, tool)


def ids_png(path: Path, labels: np.ndarray) -> None:
    Image.fromarray(np.array(IDS, np.uint8)[labels]).save(f"{path}.png")


def assert_counts(found: dict[str, Any], counts: np.ndarray) -> None:
    assert found["confusion"] == counts[:, :3].tolist()
    assert [row["other"] for row in found["classes"]] == counts[:, 3].tolist()
    hits, true, predicted = np.diag(counts), counts.sum(1), counts[:, :3].sum(0)
    iou = 100 * hits / (true + predicted - hits)
    metrics = found["metrics"]
    assert metrics["mIoU"] == pytest.approx(iou.mean(), rel=1e-12)
    assert metrics["mIoU-seen"] == pytest.approx(iou[:2].mean(), rel=1e-12)
    assert metrics["mIoU-unseen"] == pytest.approx(iou[2], rel=1e-12)
    harmonic = 2 * iou[:2].mean() * iou[2] / (iou[:2].mean() + iou[2])
    assert metrics["hIoU"] == pytest.approx(harmonic, rel=1e-12)
    assert metrics["pAcc"] == pytest.approx(100 * hits.sum() / true.sum(), rel=1e-12)


WRITERS: dict[str, tuple[Callable[[Path, np.ndarray], None], tuple[str, ...]]] = {
    "ids": (ids_png, ()),
    "16 bits": (
        lambda p, x: Image.fromarray(np.array(IDS, np.uint16)[x]).save(f"{p}.png"),
        (),
    ),
    "indices": (
        lambda p, x: Image.fromarray(x.astype(np.uint8)).save(f"{p}.tif"),
        ("--values", "indices"),
    ),
    "npy labels": (lambda p, x: np.save(f"{p}.npy", np.array(IDS)[x]), ()),
    "scores, classes first": (
        lambda p, x: np.save(f"{p}.npy", (x == np.arange(3)[:, None, None]) * 0.5),
        (),
    ),
    "scores, classes last": (
        lambda p, x: np.savez(f"{p}.npz", (x[..., None] == np.arange(3)) * np.float16(0.5)),
        (),
    ),
    "suffix": (
        lambda p, x: ids_png(p.with_name(f"{p.name}_pred"), x),
        ("--suffix", "_pred"),
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_files_of_every_form(data: Data, kind: str) -> None:
    write, options = WRITERS[kind]
    assert_counts(data.score(data.save(write), *options), data.counts())


def test_classes_are_matched_by_name(data: Data) -> None:
    theirs = ["Cat", "bus", "sky  blue", "grass"]
    place = np.array([3, 2, 0])
    folder = data.save(lambda p, x: Image.fromarray(place[x].astype(np.uint8)).save(f"{p}.png"))
    (data.root / "theirs.txt").write_text("\n".join(theirs))
    options = ("--classes", str(data.root / "theirs.txt"), "--extra-classes", "other")
    found = data.score(folder, *options)
    assert_counts(found, data.counts())
    assert found["run"]["extra_classes"] == ["bus"]


def test_a_class_that_the_predictor_lacks_is_said(data: Data, caplog: Any) -> None:
    (data.root / "theirs.csv").write_text("id,name\n9,grass\n4,sky blue\n0,lorry\n")
    values = np.array([9, 4, 0], np.uint8)
    folder = data.save(lambda p, x: Image.fromarray(values[x]).save(f"{p}.png"))
    options = ("--classes", str(data.root / "theirs.csv"), "--extra-classes", "other")
    found = data.score(folder, *options)
    none = {stem: np.where(labels == 2, -1, labels) for stem, labels in data.predicted.items()}
    assert_counts(found, data.counts(none))
    page = (data.root / "output" / "report.html").read_text()
    assert "does not know &#39;cat&#39;" in page
    assert "&#39;lorry&#39;, which the dataset lacks" in page


def rle(mask: np.ndarray) -> dict[str, Any]:
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def runs(mask: np.ndarray) -> dict[str, Any]:
    """RLE as COCO's json of crowds writes it: lengths column by column, zeros first."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [0]])
    ends = [0, *np.flatnonzero(np.diff(flat)), mask.size]
    return {"size": list(mask.shape), "counts": np.diff(ends).tolist()}


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("background", ["", "grass"])
@pytest.mark.parametrize("as_list", [False, True])
def test_overlapping_masks_of_a_coco_json(
    data: Data, merge: str, background: str, as_list: bool
) -> None:
    rng, rows, expected = np.random.default_rng(1), [], {}
    for number, stem in enumerate(data.predicted, start=1):
        masks = []
        for _ in range(5):
            top, left, height, width = rng.integers(1, 9, 4)
            mask = np.zeros(SIZE, bool)
            mask[top : top + height, left : left + width] = True
            masks.append((mask, int(rng.integers(3)), float(rng.random())))
        rows += [
            {
                "image_id": number,
                "category_id": IDS[k],
                "segmentation": runs(m) if as_list else rle(m),
                "score": score,
            }
            for m, k, score in masks
        ]
        labels = np.full(SIZE, 0 if background else -1)
        for y, x in np.ndindex(SIZE):
            here = [(n, m.sum(), k, s) for n, (m, k, s) in enumerate(masks) if m[y, x]]
            if here:
                best = {
                    "highest-score": max(here, key=lambda row: row[3]),
                    "largest-first": min(here, key=lambda row: (row[1], -row[0])),
                    "last": here[-1],
                }[merge]
                labels[y, x] = best[2]
        expected[stem] = labels
    images = [
        {"id": n, "file_name": f"{stem}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for n, stem in enumerate(data.predicted, start=1)
    ]
    (data.root / "images.json").write_text(json.dumps({"images": images}))
    (data.root / "results.json").write_text(json.dumps(rows))
    options = ["--merge", merge, "--coco-images", str(data.root / "images.json")]
    options += ["--background", background] if background else []
    found = data.score(data.root / "results.json", *options)
    assert_counts(found, data.counts(expected))
    assert found["run"]["merge"] == merge


@pytest.mark.parametrize("form", ["png", "json"])
def test_our_own_predictions_score_as_they_were_evaluated(
    tiny_cfg: CfgNode, tmp_path: Path, tool: ModuleType, form: str
) -> None:
    write_tiny_dataset(tmp_path)
    cfg = changed(tiny_cfg, "TEST.SAVE_PREDICTIONS", form)
    ZeroShotTrainer.test(cfg, ZeroShotTrainer.build_model(cfg).eval())
    (tmp_path / "c.yaml").write_text(cfg.dump())
    folder = Path(cfg.OUTPUT_DIR) / "inference" / cfg.DATASETS.TEST[0]
    words = [str(folder / "predictions"), "--config-file", str(tmp_path / "c.yaml")]
    tool.main(tool.parse_args([*words, "--output", str(tmp_path / "score"), "--workers", "2"]))
    scored = tmp_path / "score" / "inference" / cfg.DATASETS.TEST[0]
    ours, theirs = (json.loads((f / "metrics.json").read_text()) for f in (folder, scored))
    for name in ("AUROC", "AUPR", "FPR95"):
        ours["metrics"].pop(f"trusty-{name}")
    for key in ("metrics", "confusion", "classes", "split", "vocabulary_fingerprint"):
        assert ours[key] == theirs[key]
    assert (folder / "per_class.csv").read_text() == (scored / "per_class.csv").read_text()
    assert theirs["run"]["zero_shot"] is None
    assert "ancestry unknown" in theirs["run"]["protocol"]


@pytest.mark.parametrize("split", ["cats", ""])
def test_a_config_need_not_say_what_is_trained_on(data: Data, split: str) -> None:
    if not split:
        tree = json.loads((data.root / "three.json").read_text())
        (data.root / "none.json").write_text(
            json.dumps({key: tree[key] for key in ("format", "name", "classes")})
        )
    folder, name = data.save(ids_png), f"{data.name}_{split}"
    entry = {"name": name, "images": "images", "labels": "labels"}
    entry = {
        key: value if key == "name" else str(data.root / value) for key, value in entry.items()
    }
    entry["vocabulary"] = str(data.root / ("three.json" if split else "none.json"))
    content = {"DATASETS": {"FOLDER_DATASETS": [entry], "TEST": [name]}}
    (data.root / "c.yaml").write_text(json.dumps(content))
    words = [str(folder), "--config-file", str(data.root / "c.yaml"), "--workers", "0"]
    words += ["--output", str(data.root / "output")]
    data.tool.main(data.tool.parse_args(words))
    found = json.loads((data.root / "output/inference" / name / "metrics.json").read_text())
    assert found["confusion"] == data.counts()[:, :3].tolist()
    assert ("hIoU" in found["metrics"]) == bool(split)
    assert (data.root / "output/report.html").is_file()


def test_a_split_that_there_is_not_is_refused(data: Data) -> None:
    assert "no split 'dogs'" in data.refused(data.save(ids_png), "--split", "dogs")


def test_an_option_and_its_key_are_not_given_at_once(data: Data) -> None:
    words = [str(data.save(ids_png)), "--config-file", "c.yaml"]
    for option, key in (("--dataset", "DATASETS.TEST"), ("--split", "DATASETS.ZERO_SHOT.SPLIT")):
        assert exit_of(data.tool.parse_args, [*words, option, data.name, key, "x"]) == 2
        assert exit_of(data.tool.parse_args, [*words, key, "x"]) is None


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["run", "predictions", "below"])
def test_an_output_that_would_replace_something_is_refused(data: Data, place: str) -> None:
    folder = data.save(ids_png)
    output = {"run": data.root / "run", "predictions": folder, "below": folder / "scored"}[place]
    if place == "run":
        # A training, evaluated or not, and a score into a folder of its own.
        output.mkdir()
        (output / "config.yaml").write_text("SEED: 1")
    before = _files(data.root)
    words = [str(folder), "--dataset", data.name, "--workers", "0", "--output", str(output)]
    with pytest.raises(TagCLIPError, match="choose another folder"):
        data.tool.main(data.tool.parse_args(words))
    if place == "run":
        results = output / "inference" / "other" / "metrics.json"
        results.parent.mkdir(parents=True)
        results.write_text(json.dumps({"dataset": "x", "metrics": {}, "classes": [], "run": {}}))
        before = _files(data.root)
        with pytest.raises(TagCLIPError, match="choose another folder"):
            data.tool.main(data.tool.parse_args(words))
    assert _files(data.root) == before


def test_no_run_replaces_a_score(data: Data, request: pytest.FixtureRequest) -> None:
    bench, output = Bench.of(request), data.root / "output"
    weights = save_tiny(bench.cfg, data.root / "start")
    data.score(data.save(ids_png))
    before = _files(output)
    for options in ({}, {"resume": True}, {"overwrite": True}, {"eval_only": True}):
        keys = ("OUTPUT_DIR", output, *("MODEL.WEIGHTS", weights) * ("eval_only" in options))
        line = refused(bench.training(*keys, **options), f"OUTPUT_DIR {output}: found the output")
        assert line.endswith("name another OUTPUT_DIR")
    assert _files(output) == before


def test_a_score_has_no_logits_to_analyze(data: Data, repository: Path) -> None:
    data.score(data.save(ids_png))
    analyze, visualize = (
        load_tool(repository / "tools" / f"{name}.py")
        for name in ("analyze_predictions", "visualize_results")
    )
    run = data.root / "output"
    words = [str(run), "--output", str(data.root / "looked_at")]
    call = lambda: analyze.main(analyze.parse_args(words))  # noqa: E731
    line = refused(call, f"{run}: found the output of tagclip score, whose predictions have no log")
    assert "evaluate --config" not in line
    # What scores again needs no weights either.
    shutil.rmtree(run / "inference" / data.name / "predictions")
    call = lambda: visualize.main(visualize.parse_args(words))  # noqa: E731
    refused(call, f"tagclip score PREDICTIONS --dataset {data.name} --output {run}")


def test_a_score_may_be_repeated(data: Data) -> None:
    folder = data.save(ids_png)
    assert data.score(folder)["confusion"] == data.score(folder)["confusion"]
    assert len((data.root / "output/results.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("size", [1 << 11, 1 << 13, 1 << 15])
def test_a_full_disk_is_one_line(data: Data, size: int) -> None:
    folder = data.save(ids_png)
    words = [str(folder), "--dataset", data.name, "--workers", "0"]
    words += ["--output", str(data.root / "output")]
    with largest_file(size), pytest.raises(TagCLIPError, match="cannot be written.*; free space"):
        data.tool.main(data.tool.parse_args(words))
    assert not list((data.root / "output").rglob("*.tmp"))


def test_indices_in_a_coco_json(data: Data) -> None:
    rows = [
        {"file_name": f"{stem}.jpg", "category_id": k, "segmentation": rle(labels == k), "score": 1}
        for stem, labels in data.predicted.items()
        for k in range(3)
    ]
    (data.root / "results.json").write_text(json.dumps(rows))
    found = data.score(data.root / "results.json", "--values", "indices")
    assert_counts(found, data.counts())
    assert "--values ids or indices" in data.refused(data.root / "results.json")


def test_a_coco_json_that_lists_images_may_have_no_masks(data: Data) -> None:
    images = [{"id": n, "file_name": f"{stem}.jpg"} for n, stem in enumerate(data.predicted)]
    categories = [{"id": i, "name": name} for i, name in zip(IDS, NAMES, strict=True)]
    content = {"images": images, "annotations": [], "categories": categories}
    (data.root / "results.json").write_text(json.dumps(content))
    none = {stem: np.full(SIZE, -1) for stem in data.predicted}
    found = data.score(data.root / "results.json")
    assert found["confusion"] == data.counts(none)[:, :3].tolist()
    assert found["run"]["images_without_masks"] == len(images)


def test_the_page_says_of_how_many_classes_a_mean_is(data: Data) -> None:
    for stem in data.truth:
        path = data.root / "labels" / f"{stem}.png"
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label == IDS[1], IDS[0], label)).save(path)
    data.score(data.save(ids_png), "--boundary")
    page = (data.root / "output/report.html").read_text()
    assert page.count("2 of 3") == 2
    assert page.count("1 of 2") == 2
    assert "leave out classes without labelled pixels" in page


def test_the_number_of_processes_changes_nothing(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = Data(tmp_path / "many", data.tool, count=19)
    folder, texts = many.save(ids_png), []
    for workers in ("0", "2", "3"):
        output = tmp_path / workers
        words = [str(folder), "--dataset", many.name, "--output", str(output), "--boundary"]
        for name in CONVENTIONS:
            words += ["--convention", name]
        data.tool.main(data.tool.parse_args([*words, "--workers", workers]))
        texts.append((output / "inference" / many.name / "metrics.json").read_text())
    assert len(set(texts)) == 1
    found = json.loads(texts[0])
    assert found["conventions"].keys() == CONVENTIONS.keys()
    assert found["conventions"]["tagclip"]["hIoU"] == pytest.approx(found["metrics"]["hIoU"])
    assert 0 < found["metrics"]["boundary-mIoU"] < 100
    mean = found["conventions"]["mmseg"]["mIoU"]
    printed = capsys.readouterr().out
    assert f"as mmsegmentation 1.2.2, IoUMetric: mIoU {mean:.2f}, mIoU-seen" in printed
    assert "boundary-IoU" in (tmp_path / "0" / "report.html").read_text()


def test_compare_and_visualize_take_the_output(data: Data, repository: Path) -> None:
    found = data.score(data.save(ids_png), "--boundary", "--convention", "torchmetrics")
    compare = load_tool(repository / "tools" / "compare_runs.py")
    output = data.root / "compared"
    compare.main(compare.parse_args([str(data.root / "output"), "--output", str(output)]))
    text = (output / f"{data.name}.md").read_text()
    assert "ancestry unknown" in text
    head, _, row = ([cell.strip() for cell in line.split("|")] for line in text.splitlines()[2:5])
    values = {"boundary-mIoU": found["metrics"]["boundary-mIoU"]}
    values["mIoU by torchmetrics"] = found["conventions"]["torchmetrics"]["mIoU"]
    for name, value in values.items():
        assert row[head.index(name)] == f"{value:.2f}"
    assert (data.root / "output/visualize_results" / data.name / "worst.png").is_file()
    saved = data.root / "output/inference" / data.name / "predictions/labels"
    assert {int(v) for p in saved.rglob("*.png") for v in np.unique(np.array(Image.open(p)))} <= {
        *IDS
    }


def _missing(data: Data, folder: Path) -> None:
    (folder / "a/003.png").unlink()


def _extra(data: Data, folder: Path) -> None:
    shutil.copy(folder / "a/003.png", folder / "a/999.png")


def _turned(data: Data, folder: Path) -> None:
    Image.fromarray(np.full(SIZE[::-1], 1, np.uint8)).save(folder / "a/003.png")


def _smaller(data: Data, folder: Path) -> None:
    Image.fromarray(np.full((3, 4), 1, np.uint8)).save(folder / "a/003.png")


def _twice(data: Data, folder: Path) -> None:
    np.save(folder / "a/003.npy", np.full(SIZE, 1))


def _unknown(data: Data, folder: Path) -> None:
    Image.fromarray(np.full(SIZE, 3, np.uint8)).save(folder / "a/003.png")


def _nan(data: Data, folder: Path) -> None:
    (folder / "a/003.png").unlink()
    np.save(folder / "a/003.npy", np.full((3, *SIZE), np.nan))


def _tied_by_infinity(data: Data, folder: Path) -> None:
    (folder / "a/003.png").unlink()
    (scores := np.zeros((3, *SIZE)))[:, 2, 3] = np.inf
    np.save(folder / "a/003.npy", scores)


def _best_of_none(data: Data, folder: Path) -> None:
    (folder / "a/003.png").unlink()
    (scores := np.zeros((*SIZE, 3)))[2, 3] = -np.inf
    np.save(folder / "a/003.npy", scores)


def _turned_scores(data: Data, folder: Path) -> None:
    (folder / "a/003.png").unlink()
    np.save(folder / "a/003.npy", np.zeros((3, *SIZE[::-1])))


def _wrong_count(data: Data, folder: Path) -> None:
    (folder / "a/003.png").unlink()
    np.save(folder / "a/003.npy", np.zeros((4, *SIZE)))


def _kept_axis(data: Data, folder: Path) -> None:
    (folder / "a/003.png").unlink()
    np.save(folder / "a/003.npy", np.full((1, *SIZE), 1))


def _last_axis(data: Data, folder: Path) -> None:
    (folder / "a/003.png").unlink()
    np.save(folder / "a/003.npy", np.full((*SIZE, 1), 1, np.uint8))


def _pickle(data: Data, folder: Path) -> None:
    (folder / "a/003.png").unlink()
    np.save(folder / "a/003.npy", np.array([{}]), allow_pickle=True)


@pytest.mark.parametrize(
    ("spoil", "texts"),
    [
        (_missing, ("1 of 5 images have no prediction", "003.jpg")),
        (_extra, ("1 predictions are of no image", "999.png")),
        (_turned, ("003.png: found 12x17", "rows and columns are exchanged")),
        (_smaller, ("003.png: found 4x3 pixels (width x height), expected 17x12",)),
        (_twice, ("are both predictions of", "remove one")),
        (_unknown, ("003.png: found value 3 at (0,0)", "1, 4, 7, 255")),
        (_nan, ("003.npy: found nan",)),
        (_tied_by_infinity, ("003.npy: found inf as the best among the scores, expected finite",)),
        (_best_of_none, ("003.npy: found -inf as the best among the scores, expected finite",)),
        (_turned_scores, ("003.npy", "transpose them")),
        (_wrong_count, ("(4, 12, 17), expected (3, 12, 17) or (12, 17, 3)",)),
        (
            _kept_axis,
            ("003.npy: found int64 of shape (1, 12, 17), expected integer", "axis"),
        ),
        (
            _last_axis,
            ("003.npy: found uint8 of shape (12, 17, 1), expected integer", "axis"),
        ),
        (_pickle, ("003.npy: found no array", "numpy.save")),
    ],
)
def test_bad_predictions_are_one_line(
    data: Data,
    spoil: Callable[[Data, Path], None],
    texts: tuple[str, ...],
) -> None:
    folder = data.save(ids_png)
    spoil(data, folder)
    line = data.refused(folder)
    assert all(text in line for text in texts), line


def test_label_files_of_several_runs_of_segment_are_refused(data: Data) -> None:
    folder = data.save(ids_png)
    names = Vocabulary.from_metadata(data.name).value_names
    value = min(names)
    for name in ("000.png", "001.png"):
        path = folder / "a" / name
        save_png(path, Image.open(path), words={value: name})
    line = data.refused(folder)
    assert "000.png, " in line and "001.png: found label files of runs of segment" in line
    save_png(path, Image.open(path))
    # One list, but another one than that by which they are to be read.
    assert "000.png: found a label file that was made with other words" in data.refused(folder)
    for words in (names, {}, None):
        path = folder / "a" / "000.png"
        save_png(path, Image.open(path), words=words)
        data.score(folder)


def test_a_suffix_of_all_files_is_named(data: Data) -> None:
    folder = data.save(lambda p, x: ids_png(p.with_name(f"{p.name}_pred"), x))
    line = data.refused(folder)
    assert line.endswith("--suffix _pred")
    data.score(folder, "--suffix", "_pred")


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (("gras", "sky blue", "cat"), ("'gras'", "did you mean grass?", "--extra-classes other")),
        (("grass", "sky blue", "my cat"), ("'my cat', a synonym of 'cat'",)),
        (("grass", "sky blue", "sky Blue"), ("occur more than once",)),
    ],
)
def test_other_names_are_asked_about(
    data: Data, names: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    (data.root / "theirs.txt").write_text("\n".join(names))
    folder = data.save(lambda p, x: Image.fromarray(x.astype(np.uint8)).save(f"{p}.png"))
    line = data.refused(folder, "--classes", str(data.root / "theirs.txt"))
    assert all(text in line for text in texts), line


def _no_score(row: dict[str, Any]) -> None:
    del row["score"]


def _short_runs(row: dict[str, Any]) -> None:
    row["segmentation"] = rle(np.ones((12, 3), bool)) | {"size": list(SIZE)}


def _unknown_category(row: dict[str, Any]) -> None:
    row["category_id"] = 3


def _unknown_image(row: dict[str, Any]) -> None:
    row["image_id"] = 77


def _polygon(row: dict[str, Any]) -> None:
    row["segmentation"] = [[0, 0, 3, 0, 3, 3]]


@pytest.mark.parametrize(
    ("spoil", "texts"),
    [
        (_no_score, ("--merge highest-score needs it",)),
        (_short_runs, ("damaged mask", "write the json again")),
        (_unknown_category, ("category 3", "1, 4, 7")),
        (_unknown_image, ("image 77", "--coco-images")),
        (_polygon, ("no COCO results", "RLE")),
    ],
)
def test_bad_coco_results_are_one_line(
    data: Data,
    spoil: Callable[[dict[str, Any]], None],
    texts: tuple[str, ...],
) -> None:
    row = {"image_id": 1, "category_id": 1, "segmentation": rle(np.ones(SIZE, bool)), "score": 1.0}
    spoil(row)
    images = [{"id": n, "file_name": f"{stem}.jpg"} for n, stem in enumerate(data.predicted, 1)]
    (data.root / "images.json").write_text(json.dumps({"images": images}))
    (data.root / "results.json").write_text(json.dumps([row]))
    options = ("--coco-images", str(data.root / "images.json"))
    line = data.refused(data.root / "results.json", *options)
    assert all(text in line for text in texts), line
