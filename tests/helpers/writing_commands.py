"""Every command of tagclip on a tiny model and dataset, called so that it writes into a folder."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers.bulk import write_images
from helpers.clip_files import random_clip
from helpers.labelled_images import label_maps, odd_vocabulary
from helpers.miniature_trees import make_ade150, make_coco, make_context, make_voc
from helpers.minibench_results import novelty_result, table_result
from helpers.pictures import video
from helpers.segment_folders import label_rows, write_segment_folder
from helpers.tiny_export import save_run
from helpers.tiny_run import NAMES, changed, own_loggers, write_run_config
from PIL import Image
from safetensors.torch import save_file

from tagclip import cli

WORDS = ("--vocab", "cat, zebra, sky")


class Stage:
    """What the commands read: made once, when it is asked for, and never changed."""

    def __init__(self, root: Path, cfg: CfgNode) -> None:
        self.root = root
        save_file(random_clip().state_dict(), root / "clip.safetensors")
        self.cfg = changed(
            cfg,
            *("MODEL.CLIP.PRETRAINED", str(root / "clip.safetensors")),
            *("TEST.SAVE_PREDICTIONS", "png", "TEST.SAVE_LOGITS", True),
        )

    @cached_property
    def config(self) -> Path:
        """A training of four steps and its evaluation."""
        return write_run_config(self.cfg, self.root)

    @cached_property
    def run(self) -> Path:
        """What that leaves."""
        called("train", "--config-file", self.config, "OUTPUT_DIR", self.root / "run")
        return self.root / "run"

    @cached_property
    def another(self) -> Path:
        """A copy, as of another run."""
        return Path(shutil.copytree(self.run, self.root / "another"))

    @property
    def dataset(self) -> str:
        return self.cfg.DATASETS.TEST[0]

    @cached_property
    def weights(self) -> Path:
        """A checkpoint, also of a model that can be exported."""
        return save_run(changed(self.cfg, "OUTPUT_DIR", str(self.root / "model")))

    @cached_property
    def images(self) -> Path:
        """Four images."""
        write_images(self.root / "in", 4)
        return self.root / "in"

    @cached_property
    def video(self) -> Path:
        """Six frames."""
        return video(self.root / "street.avi")

    @cached_property
    def masks(self) -> Path:
        """Masks of two colours and their table."""
        folder = self.root / "masks"
        folder.mkdir()
        for number in range(2):
            ids = np.random.default_rng(number).integers(0, 2, (30, 40), np.uint8)
            Image.fromarray(ids * 255).save(folder / f"{number}.png")
        (folder / "classes.csv").write_text("name,r,g,b\nblack,0,0,0\nwhite,255,255,255\n")
        return folder

    @cached_property
    def bulk(self) -> Path:
        """A finished bulk run."""
        maps = {f"{n}.jpg": labels for n, labels in enumerate(label_maps())}
        rows = label_rows(maps, odd_vocabulary())
        return write_segment_folder(self.root / "bulk", [rows], odd_vocabulary(), "webdataset")

    @cached_property
    def exported(self) -> Path:
        """An ONNX file that takes words."""
        words = ("--weights", self.weights, "--words", "input")
        called("export", *words, "--output", self.root / "exported")
        return self.root / "exported"


@dataclass(frozen=True)
class Case:
    """A call of a command.

    Attributes:
        command: as ``tagclip`` knows it.
        name: of what differs from another case of the command.
        words: (stage, folder that it writes into) -> its arguments.
        before: (stage, folder, patch) -> None: what is done before every call.
        again: (folder) -> None: what makes a call write again into what an earlier one wrote.
        needs: packages.
        replaces: whether it is asked to remove what an earlier one wrote.
        is_temporary: whether it writes temporary files alone; for them there is another place.
        is_slow: whether it starts processes, or exports.
    """

    command: str
    words: Callable[[Stage, Path], list[Any]]
    name: str = ""
    before: Callable[[Stage, Path, pytest.MonkeyPatch], None] = lambda stage, out, patch: None
    again: Callable[[Path], None] = lambda out: None
    needs: tuple[str, ...] = ()
    replaces: bool = False
    is_temporary: bool = False
    is_slow: bool = False

    def __str__(self) -> str:
        return f"{self.command} {self.name}".strip()


def called(*words: Any) -> None:
    """Call a command that has to succeed."""
    code, said = ended(*words)
    assert code in (None, 0), said


def ended(*words: Any) -> tuple[Any, str]:
    """Exit code of a command in this process, and the line that Python would print for it."""
    before, tempdir, handler = sys.argv, tempfile.tempdir, signal.getsignal(signal.SIGTERM)
    tempfile.tempdir = None
    sys.argv = ["tagclip", *str(words[0]).split(), *map(str, words[1:])]
    try:
        with own_loggers():
            cli.main()
    except SystemExit as leave:
        return (1, leave.code) if isinstance(leave.code, str) else (leave.code, "")
    finally:
        sys.argv, tempfile.tempdir = before, tempdir
        signal.signal(signal.SIGTERM, handler)
    return 0, ""


def _segment(*more: Any) -> Callable[[Stage, Path], list[Any]]:
    return lambda stage, out: ["--weights", stage.weights, *WORDS, *(
        word(stage, out) if callable(word) else word for word in more
    )]  # fmt: skip


def _remove_first(pattern: str) -> Callable[[Path], None]:
    """What is missing is made again."""
    return lambda out: min(out.glob(pattern)).unlink()


def _remove_all(out: Path) -> None:
    """What is there is known by its list of classes, and not written again."""
    for path in out.iterdir():
        path.unlink()


def _tree(make: Callable[[Path], Any]) -> Callable[..., None]:
    def build(stage: Stage, out: Path, patch: pytest.MonkeyPatch) -> None:
        if not out.exists():
            make(out)
        _temporary(stage, out, patch)

    return build


def _prepare(name: str, make: Callable[[Path], Any], folder: str, *only: str) -> Case:
    words = ["--workers", 1, "--allow-missing", *(("--only", *only) if only else ())]
    return Case(
        f"prepare {name}",
        lambda stage, out: ["--root", out, *words],
        before=_tree(make),
        again=_remove_first(f"{folder}/*_detectron2/**/*.png"),
    )


def _small_minibench(stage: Stage, out: Path, patch: pytest.MonkeyPatch) -> None:
    """Four images, whose checksum is not looked at."""
    from tagclip.projects.minibench import generate

    patch.setattr(generate, "SUBSETS", {"val": (4, 22)})
    patch.setattr(generate, "generate", partial(generate.generate, subsets=["val"]))
    patch.setattr(generate, "_checksum", lambda images, labels, subset: "0")
    checksums = stage.root / "checksums.json"
    checksums.write_text('{"val": "0"}')
    patch.setattr(generate, "_CHECKSUMS", checksums)


def _whole_minibench(stage: Stage, out: Path, patch: pytest.MonkeyPatch) -> None:
    """In the folder, with other data and steps that take less."""
    from tagclip.tools import train_net
    from tagclip.tools.minibench import generate_data, run_minibench

    start = train_net.start

    def short(args: Any) -> None:
        args.config_file = str(stage.config)
        start(args)

    out.mkdir(exist_ok=True)
    patch.chdir(out)
    patch.setattr(generate_data, "write", lambda root: None)
    patch.setattr(train_net, "start", short)
    patch.setattr(run_minibench, "OUTPUT", Path("output"))


def _copy_of_run(stage: Stage, out: Path, patch: pytest.MonkeyPatch) -> None:
    if not out.exists():
        shutil.copytree(stage.run, out)


def _table_results(stage: Stage, out: Path, patch: pytest.MonkeyPatch) -> None:
    from tagclip.tools.minibench import run_table

    out.mkdir(exist_ok=True)
    for key in run_table.wanted_runs(1, ["ZegCLIP"]):
        path = run_table.result_file(out, key)
        if not path.exists():
            path.write_text(json.dumps(table_result(*key, 20.0)))


def _novelty_results(stage: Stage, out: Path, patch: pytest.MonkeyPatch) -> None:
    from tagclip.projects.minibench.novelty import novelty_file
    from tagclip.projects.minibench.table_runs import SPLITS

    out.mkdir(exist_ok=True)
    for split in SPLITS:
        path = novelty_file(out, split, 0, "val")
        if not path.exists():
            path.write_text(json.dumps(novelty_result(split, 0, "val")))


def _short_clip(stage: Stage, out: Path, patch: pytest.MonkeyPatch) -> None:
    """Measured on few pairs."""
    from tagclip.projects.minibench import clip_training

    patch.setattr(clip_training, "crop_accuracy", lambda model, tokenizer: 0.0)


def _temporary(stage: Stage, out: Path, patch: pytest.MonkeyPatch) -> None:
    """Temporary files go into the folder."""
    out.mkdir(exist_ok=True)
    # multiprocessing keeps its own, of this whole process, where it was asked for it first.
    get_temp_dir()
    patch.setenv("TMPDIR", str(out))


def _web_page(stage: Stage, out: Path, patch: pytest.MonkeyPatch) -> None:
    """It ends where it would begin to serve."""
    from tagclip.projects.webdemo import server

    _temporary(stage, out, patch)
    patch.setattr(server, "serve", lambda *args, **options: None)


def _no_detectron2(stage: Stage, out: Path, patch: pytest.MonkeyPatch) -> None:
    """It is not there, and pip would bring an archive."""
    from tagclip.tools import install_detectron2 as tool

    _temporary(stage, out, patch)
    patch.setattr(tool, "location", lambda package="detectron2": Path(package) if package == "cv2"
                  else None)  # fmt: skip
    patch.setattr(tool, "check_prerequisites", lambda: None)
    patch.setattr(tool, "check_pip", lambda: None)
    patch.setattr(tool, "import_error", lambda *modules: "")
    patch.setattr(tool, "run_pip", lambda *words, **options: None)
    patch.setattr(tool, "stage", lambda archive, folder: folder)
    patch.setattr(tool, "check_sha256", lambda archive: None)

    def download(folder: Path) -> Path:
        (folder / "archive.tar.gz").write_bytes(bytes(1000))
        return folder / "archive.tar.gz"

    patch.setattr(tool, "download", download)


def _export_predictions(to: str) -> Case:
    return Case(
        "labels export",
        lambda stage, out: [
            stage.run / "inference" / stage.dataset / "predictions",
            *("--to", to, "--output", out, "--overwrite"),
        ],
        name=to,
    )


CASES = [
    Case("minibench", lambda stage, out: [], before=_whole_minibench,
         replaces=True),
    Case("minibench data", lambda stage, out: ["--root", out], before=_small_minibench,
         again=_remove_first("images/val/*.png")),
    Case("minibench report", lambda stage, out: [out], before=_copy_of_run),
    Case("minibench table", lambda stage, out: ["--output", out, "--seeds", 1, "--runs", "ZegCLIP"],
         before=_table_results),
    Case("minibench novelty", lambda stage, out: ["--output", out, "--seeds", 1, "--subset", "val"],
         before=_novelty_results),
    Case("minibench clip",
         lambda stage, out: ["--output", out, "--steps", 1, "--images", 8, "--batch", 8],
         before=_short_clip),
    Case("segment", _segment(
        lambda s, o: min(s.images.iterdir()), "--save-labels", "--overwrite",
        "--output", lambda s, o: o, "--json", lambda s, o: o / "all.json"), name="image"),
    Case("segment", _segment(
        lambda s, o: min(s.images.iterdir()), "--no-draw", "--json", lambda s, o: o / "all.json"),
        name="json"),
    *(Case("segment", _segment(
        lambda s, o: s.video, "--panel-size", 64, "--overwrite", "--output",
        lambda s, o, suffix=suffix: o / f"video{suffix}"), name=suffix, needs=needs)
      for suffix, needs in ((".mp4", ()), (".avi", ()), (".webm", ("av",)))),
    Case("segment", _segment(
        lambda s, o: s.video, "--save-labels", "--no-draw", "--overwrite",
        "--output", lambda s, o: o),
        name="labels of frames"),
    *(Case("bulk", lambda stage, out, form=form: [
        stage.images, "--weights", stage.weights, *WORDS, "--processes", 1, "--labels",
        "--format", form, "--output", out], name=form, again=_remove_first("segments/*"),
        is_slow=True)
      for form in ("parquet", "webdataset")),
    Case("webdemo", lambda stage, out: ["--weights", stage.weights], before=_web_page,
         is_temporary=True, needs=("gradio",)),
    _prepare("ade20k", make_ade150, "ADEChallengeData2016", "ade20k150_train", "ade20k150_val"),
    _prepare("coco-stuff", make_coco, "coco"),
    _prepare("pascal-context", make_context, "VOCdevkit/VOC2010"),
    _prepare("voc", make_voc, "VOCdevkit/VOC2012"),
    Case("labels convert",
         lambda stage, out: [stage.masks, "--classes", stage.masks / "classes.csv", "--threshold",
                             128, "--output", out, "--workers", 0],
         again=_remove_first("*.png")),
    Case("validate", lambda stage, out: [stage.dataset, "--output", out, "--workers", 0],
         before=lambda stage, out, patch: stage.config and None),
    Case("visualize data",
         lambda stage, out: ["--config-file", stage.config, "--num", 1, "--output", out]),
    Case("configs", lambda stage, out: []),
    Case("towers", lambda stage, out: []),
    Case("train", lambda stage, out: ["--config-file", stage.config, "--overwrite", "OUTPUT_DIR",
                                      out], replaces=True),
    Case("train", lambda stage, out: ["--config-file", stage.config, "--prove-protocol", 1],
         name="proof", before=_temporary, is_temporary=True),
    Case("evaluate", lambda stage, out: [
        "--config-file", stage.config, "--weights", stage.weights, "OUTPUT_DIR", out],
         replaces=True),
    Case("evaluate", lambda stage, out: [
        "--config-file", stage.config, "--weights", stage.weights, "OUTPUT_DIR", out,
        "TEST.SAVE_PREDICTIONS", "json", "TEST.SAVE_LOGITS", False], name="json", replaces=True),
    Case("fit-gate", lambda stage, out: [
        "--config-file", stage.config, "--dataset", stage.dataset, "--hold-out", NAMES[0],
        "--output", out, "DATASETS.TEST", repr(stage.cfg.DATASETS.TRAIN)],
         again=_remove_first("gate.json"), replaces=True),
    Case("cost", lambda stage, out: ["--config-file", stage.config]),
    Case("benchmark", lambda stage, out: [
        "--quick", "--runs", 1, "--threads", 1, "--part", "labels", "--write", out / "table.md"],
         before=_temporary),
    Case("score", lambda stage, out: [
        stage.run / "inference" / stage.dataset / "predictions", "--dataset", stage.dataset,
        "--output", out, "--workers", 0, "--num", 1], replaces=True),
    Case("bulk-read", lambda stage, out: [stage.bulk, "--csv", out / "list.csv"], name="csv"),
    Case("bulk-read", lambda stage, out: [stage.bulk, "--labels-to", out], name="labels",
         again=_remove_all),
    Case("compare", lambda stage, out: [stage.run, stage.another, "--output", out]),
    Case("analyze", lambda stage, out: [stage.run, "--num", 1, "--output", out]),
    Case("visualize results", lambda stage, out: [stage.run, "--num", 1, "--output", out]),
    *map(_export_predictions, ("coco", "labelme", "cvat", "label-studio")),
    Case("publish", lambda stage, out: ["--weights", stage.weights, "--output", out / "model",
                                        "--overwrite", "--with-clip"]),
    Case("convert", lambda stage, out: [
        stage.weights, out / "full.pth", "--config-file", stage.config, "--full"], name="full"),
    Case("convert", lambda stage, out: [
        stage.root / "clip.safetensors", out / "clip.pt"], name="clip"),
    Case("export", lambda stage, out: [
        "--weights", stage.weights, *WORDS, "--output", out], needs=("onnx", "onnxscript"),
        is_slow=True),
    Case("run-onnx", lambda stage, out: [
        stage.exported, min(stage.images.iterdir()), out / "labels.png", "--words", "cat, sky",
        "--save-vectors", out / "words.npz"], needs=("onnx", "onnxscript", "onnxruntime"),
        is_slow=True),
    Case("setup-detectron2", lambda stage, out: [], before=_no_detectron2, is_temporary=True),
]  # fmt: skip
