"""`tagclip minibench`: data, training, evaluation and report, one after the other."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from helpers.tiny_run import exit_of
from helpers.toy_dataset import forget

from tagclip import load_config
from tagclip.engine.interruptions import SavedAndStopped
from tagclip.projects.minibench import VOCABULARY_JSON, clip_training
from tagclip.tools import demo, train_net
from tagclip.tools.minibench import generate_data, make_report, run_minibench, train_clip
from tagclip.tools.webdemo import serve
from tagclip.utils.cli import run_tool


def test_the_recommended_config_is_run() -> None:
    """And its model is that of segment and webdemo where none is named."""
    cfg = load_config(run_minibench.CONFIG)
    assert cfg.MODEL.TAGCLIP.TRUSTY.KIND == "conv"
    assert cfg.CONFIG_NAME.endswith("_convtrust.yaml")
    model = run_minibench.OUTPUT / "model_final.pth"
    assert model == demo.MINIBENCH
    assert serve.make_parser().get_default("weights") == str(model)


@pytest.mark.parametrize(
    ("error", "code", "begin"),
    [
        (SavedAndStopped(signal.SIGTERM), 143, "Stopped by SIGTERM: "),
        (SavedAndStopped(signal.SIGHUP), 129, "Stopped by SIGHUP: "),
        (KeyboardInterrupt(), 130, "Interrupted: "),
    ],
)
def test_a_training_that_a_signal_ends_is_no_success(
    error: BaseException,
    code: int,
    begin: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """It saves and ends with 0; nothing of it is drawn, and the same command would remove it."""

    def start(args: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate_data, "write", lambda _: None)
    monkeypatch.setattr(train_net, "start", start)
    monkeypatch.setattr(make_report, "report", lambda _: pytest.fail("drawn"))
    assert exit_of(run_tool, run_minibench.run) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"{begin}what is trained is in output/minibench: tagclip train --config")
    words = line.partition("tagclip train ")[2].partition(" goes on")[0].split()
    args = train_net.parse_args(words)
    assert args.resume and args.opts == ["OUTPUT_DIR", "output/minibench"]
    assert "tagclip minibench begins anew" in line


def test_a_tower_and_its_report_are_replaced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever breaks off: weights beside another one's accuracy would be believed."""
    names = ["mini_bpe.txt.gz", "mini_clip.json", "mini_clip.safetensors", "mini_clip_report.json"]
    for name in names:
        (tmp_path / name).write_text(f"earlier {name}")
    words = ["--output", str(tmp_path), "--steps", "1", "--images", "4", "--batch", "2"]
    args = train_clip.make_parser().parse_args(words)

    def broken(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(clip_training, "train", lambda *_, **__: None)
    with monkeypatch.context() as patch:
        patch.setattr(clip_training, "crop_accuracy", broken)
        with pytest.raises(KeyboardInterrupt):
            train_clip.main(args)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {name: f"earlier {name}" for name in names}
    monkeypatch.setattr(clip_training, "crop_accuracy", lambda *_: 7.0)
    train_clip.main(args)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    report = json.loads((tmp_path / "mini_clip_report.json").read_text())
    size = (tmp_path / "mini_clip.safetensors").stat().st_size
    assert report["crop_accuracy_percent"] == 7.0
    assert report["megabytes"] == round(size / 2**20, 3)
    assert (tmp_path / names[0]).read_bytes().startswith(b"\x1f\x8b")


def test_every_step_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a training of two steps, on the images that it generates."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    data = tmp_path / "minibench"
    files = f"images: {data}/images/val, labels: {data}/labels/val, image_list: ./few.txt"
    (tmp_path / "few.txt").write_text("".join(f"{index:06d}\n" for index in range(9)))
    config = tmp_path / "short.yaml"
    config.write_text(
        f"_BASE_: {run_minibench.CONFIG}\n"
        "DATASETS:\n"
        "  TRAIN: [minibench_run]\n"
        "  TEST: [minibench_run]\n"
        "  FOLDER_DATASETS:\n"
        f"    - {{name: minibench_run, {files}, vocabulary: {VOCABULARY_JSON}}}\n"
        "SOLVER: {MAX_ITER: 2, IMS_PER_BATCH: 2, WARMUP_ITERS: 1}\n"
        "MODEL: {DEVICE: cpu}\n"
    )
    stale = tmp_path / "output" / "minibench" / "results.csv"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier run\n")
    monkeypatch.setattr(run_minibench, "CONFIG", str(config))
    monkeypatch.setattr("sys.argv", ["tagclip minibench"])
    try:
        run_minibench.invoke_main()
    finally:
        forget("minibench_run")
    found = {path.name for path in stale.parent.iterdir()}
    assert {"model_final.pth", "metrics.json", "report.html", "gallery.png"} <= found
    assert "of an earlier run" not in stale.read_text()
    assert sorted(path.name for path in (data / "labels").iterdir()) == ["test", "train", "val"]
