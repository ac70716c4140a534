"""Bad images and videos: damaged, tiny, huge, of other modes, rotated, as arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from helpers.bench import Bench, files_below, refused, refused_as_process
from helpers.pictures import huge_png, jpeg, picture, video
from helpers.tiffs import tiff
from helpers.tiny_run import changed, train_labels, write_tiny_dataset
from PIL import Image

from tagclip import ZeroShotDatasetMapper, ZeroShotTrainer

BAD_FILES = {
    "truncated.jpg": (jpeg()[:-200], "truncated"),
    "zero.png": (b"", "it has 0 bytes"),
    "page.jpg": (b"<!DOCTYPE html><p>Not found", "27 bytes of html or xml text"),
}


def test_bad_files_in_a_folder(bench: Bench) -> None:
    """The others are drawn; the bad ones are listed at the end, exit code 1."""
    for name, (content, _) in BAD_FILES.items():
        bench.save_image(name, content)
    for name in ("a.png", "z.png"):
        bench.save_image(name)
    out = bench.root / "out"
    assert bench.demo("--input", bench.root / "in", "--output", out) == 1
    assert sorted(files_below(out)) == ["a.png", "z.png"]
    lines = bench.capsys.readouterr().err.splitlines()
    assert lines[0] == "3 of 5 images failed:" and len(lines) == 4
    for name, (_, found) in BAD_FILES.items():
        (line,) = [line for line in lines if f"in/{name}: cannot decode this image" in line]
        assert found in line and line.endswith("; replace it, or leave it out")


def test_bad_file_in_training(bench: Bench) -> None:
    call = bench.training("DATALOADER.NUM_WORKERS", 2)
    bad = bench.root / "images" / "train" / train_labels(bench.root)[0].name
    bad.write_bytes(bad.read_bytes()[:300])
    refused(call, "DatasetError: ", bad, "cannot decode this image", "ON_BAD_SAMPLE skip)")
    assert not list(bench.output.glob("*.pth")), "nothing was trained"


def test_bad_files_skipped_in_training(bench: Bench) -> None:
    write_tiny_dataset(bench.root)
    folder, cfg = bench.root / "images" / "train", bench.cfg.clone()
    for number, (content, _) in enumerate(BAD_FILES.values()):
        (folder / f"{number}.png").write_bytes(content)
    cfg.DATASETS.ON_BAD_SAMPLE = "skip"
    ZeroShotTrainer.check(cfg, weights="", train=True)
    stream = ZeroShotTrainer.build_train_loader(cfg)
    assert {Path(stream.source(i)["file_name"]).name[0] for i in range(9)} == {"3", "4", "5"}
    assert f"dataset {cfg.DATASETS.TRAIN[0]}: left out 3 unusable files: {folder}" in bench.said()


def test_one_pixel(bench: Bench) -> None:
    image = bench.save_image("dot.png", picture()[:1, :1])
    result = bench.predictor()(image)
    assert result["sem_seg_labels"].shape == (1, 1)
    out = bench.root / "out"
    assert bench.demo("--input", image, "--output", out, "--save-labels") == 0
    assert Image.open(out / "dot_labels.png").size == (1, 1)


def test_any_number_of_patches(bench: Bench) -> None:
    """Odd numbers of patches, not square: with windows and with the whole image at once."""
    for mode in ("slide", "whole"):
        predictor = bench.predictor("MODEL.TAGCLIP.TEST.MODE", mode)
        for height, width in ((17, 83), (90, 41)):
            result = predictor(picture(height, width))
            assert result["sem_seg_labels"].shape == (height, width)
            assert result["sem_seg_scores"].isfinite().all()


def training_losses(bench: Bench, height: int, width: int) -> dict[str, torch.Tensor]:
    """Losses of the first training image, replaced by one of this size."""
    write_tiny_dataset(bench.root)
    label = train_labels(bench.root)[0]
    Image.fromarray(picture(height, width)).save(bench.root / "images" / "train" / label.name)
    Image.fromarray(np.full((height, width), 2, np.uint8)).save(label)
    mapper = ZeroShotDatasetMapper(bench.cfg, is_train=True)
    sample = mapper(DatasetCatalog.get(bench.cfg.DATASETS.TRAIN[0])[0])
    model = ZeroShotTrainer.build_model(bench.cfg).train()
    _, sizes = model.preprocess_images([sample])
    targets = model.preprocess_targets([sample], (64, 64), sizes)
    assert targets.valid.sum() == sample["image"][0].numel() < 64 * 64, "padding is masked"
    assert (targets.labels[~targets.valid] == targets.ignore).all()
    # detectron2's storage is only there during a training.
    with torch.no_grad():
        return model([sample])


def test_one_pixel_in_training(bench: Bench) -> None:
    bench.cfg = changed(bench.cfg, "INPUT.MAX_SIZE_TRAIN", 14, "INPUT.SCALE_RANGE", [1.0, 1.0])
    assert all(loss.isfinite() for loss in training_losses(bench, 1, 1).values())


def test_strip_in_training(bench: Bench) -> None:
    """1 x 3000 becomes 1 x 2048, of which a crop is padded; the padding is masked."""
    bench.cfg = changed(bench.cfg, "INPUT.MAX_SIZE_TRAIN", 2048, "INPUT.MIN_SIZE_TRAIN", [512])
    assert all(loss.isfinite() for loss in training_losses(bench, 1, 3000).values())


def test_strip_that_is_not_enlarged(bench: Bench) -> None:
    """A million pixels times 333 are too many: it is not enlarged, which is said."""
    image = bench.save_image("strip.png", picture(1, 3000))
    result = bench.predictor("INPUT.MIN_SIZE_TEST", 512)(image)
    assert result["sem_seg_labels"].shape == (1, 3000)
    assert len(result["sem_seg_labels"].unique()) > 1
    said = bench.said()
    for part in ("1000000x333", "INPUT.MAX_PIXELS allows 64000000", "INPUT.MAX_SIZE_TEST 4096"):
        assert part in said
    out = bench.root / "out"
    assert bench.demo("--input", image, "--output", out, "INPUT.MAX_SIZE_TEST", 300) == 0
    assert sorted(files_below(out)) == ["strip.png"]


def test_image_modes(bench: Bench) -> None:
    """Converted as Pillow converts; alpha is dropped, as in training."""
    read = bench.predictor().read_image
    rgb = Image.fromarray(picture())
    for mode in ("L", "1", "P", "CMYK"):
        rgb.convert(mode).save(bench.root / "image.tif")
        expected = np.array(rgb.convert(mode).convert("RGB"))
        assert (read(bench.root / "image.tif") == expected[:, :, ::-1]).all(), mode
    alpha = np.linspace(0, 255, 40 * 56).reshape(40, 56, 1).round()
    for mode, colour in (("RGBA", picture()), ("LA", np.array(rgb.convert("L"))[..., None])):
        Image.fromarray(np.concatenate([colour, alpha.astype(np.uint8)], 2).squeeze(), mode).save(
            bench.root / "alpha.png"
        )
        assert (read(bench.root / "alpha.png")[:, :, ::-1] == colour).all(), mode


@pytest.mark.parametrize("name", ["alpha.png", "infrared.tif"])
def test_every_entrance_reads_the_same(bench: Bench, name: str) -> None:
    """Training and evaluation, predictor, PIL images, arrays, and what reads for an export."""
    pixels = np.dstack([picture(), picture(seed=1)[:, :, 0]])
    content = tiff(pixels) if name.endswith("tif") else pixels
    path, predictor = bench.save_image(name, content), bench.predictor()
    cfg, (dataset,) = changed(bench.cfg, "INPUT.MIN_SIZE_TEST", 0), bench.cfg.DATASETS.TEST
    mapper = ZeroShotDatasetMapper(cfg, is_train=False, dataset_name=dataset)
    found = mapper({"file_name": str(path)})["image"].numpy().transpose(1, 2, 0)
    assert (found == (picture() if cfg.INPUT.FORMAT == "RGB" else picture()[:, :, ::-1])).all()
    assert (predictor.read_image(path) == picture()[:, :, ::-1]).all()
    assert (cv2.imread(str(path)) == picture()[:, :, ::-1]).all()
    labels = [
        predictor(image)["sem_seg_scores"]
        for image in (path, Image.open(path), pixels[:, :, [2, 1, 0, 3]], picture()[:, :, ::-1])
    ]
    assert all(torch.equal(one, labels[-1]) for one in labels)


def test_the_demo_shows_what_the_model_sees(bench: Bench) -> None:
    """What hides under full transparency is read, and shown."""
    hidden = np.concatenate([picture(), np.zeros((40, 56, 1), np.uint8)], 2)
    image, out = bench.save_image("a.png", hidden), bench.root / "out"
    assert bench.demo("--input", image, "--output", out, "--panel-size", 56) == 0
    page = np.array(Image.open(out / "a.png").convert("RGB"))
    windows = np.lib.stride_tricks.sliding_window_view(page, (40, 56, 3))
    assert any((row == picture()).all((-1, -2, -3)).any() for row in windows)


def test_image_of_sixteen_bits(bench: Bench) -> None:
    values = np.array([[0, 128, 129, 257, 40000, 65535]], np.uint16).repeat(20, 0).repeat(4, 1)
    path = bench.save_image("deep.png", values)
    # The log has it once in a process: what is asked here is that it is given.
    with mock.patch("detectron2.utils.logger.log_first_n") as log:
        read = bench.predictor().read_image(path)
    assert read[0, ::4, 0].tolist() == [0, 0, 1, 1, 156, 255]
    said = log.call_args.args[1]
    assert f"{path}: 16-bit gray image, read as 8 bits (divided by 257)" in said


def test_rotated_by_exif(bench: Bench) -> None:
    """The labels are those of the upright image."""
    exif, path = Image.Exif(), bench.root / "in" / "turned.png"
    exif[0x0112] = 6
    upright = Image.fromarray(picture(56, 40))
    path.parent.mkdir()
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    predictor = bench.predictor()
    predictor.set_vocabulary(["cat", "zebra"])
    expected = predictor(upright)["sem_seg_labels"].numpy()
    out = bench.root / "out"
    assert bench.demo("--input", path, "--output", out, "--save-labels") == 0
    assert (np.array(Image.open(out / "turned_labels.png")) == expected).all()


def test_decompression_bomb(bench: Bench) -> None:
    """Files without any pixel data: an attempt to decode them would find them truncated."""
    bench.save_image("a.png")
    for side in (9_000, 20_000):
        bench.save_image(f"{side}.png", huge_png(side))
    out = bench.root / "out"
    assert bench.demo("--input", bench.root / "in", "--output", out) == 1
    assert sorted(files_below(out)) == ["a.png"]
    error = bench.capsys.readouterr().err
    assert "9000.png: image has 9000x9000 pixels, INPUT.MAX_PIXELS allows 64000000; " in error
    limits = f"is larger than Pillow's limit of {2 * Image.MAX_IMAGE_PIXELS} pixels, INPUT.MAX_PIX"
    assert f"20000.png: image {limits}ELS allows 64000000; make it smaller" in error
    assert len(error.splitlines()) == 3


ARRAYS = {
    "float in 0..1": (picture() / 255, "float64 values", "(image * 255).round().astype('uint8')"),
    "float in 0..255": (picture().astype(np.float32), "float32 values", "of uint8"),
    "channels first": (picture().transpose(2, 0, 1), "(3, 40, 56)", "image.transpose(1, 2, 0)"),
    "gray": (picture()[:, :, 0], "(40, 56)", "COLOR_GRAY2BGR"),
    "bands": (np.zeros((4, 5, 5), np.uint8), "(4, 5, 5)", "a PIL image, a path or bytes"),
    "16 bits": (picture().astype(np.uint16) * 257, "uint16 values", "0 to 255"),
    "tensor": (torch.zeros(3, 4, 5), "a Tensor", "a PIL image, a path or bytes"),
}


def test_arrays_of_other_forms(bench: Bench) -> None:
    predictor = bench.predictor()
    for image, found, remedy in ARRAYS.values():
        call: Callable[[], Any] = lambda image=image: predictor(image)  # noqa: E731
        refused(call, "DatasetError: image: found", found, "expected a BGR array (H, W, 3)", remedy)


def test_channel_order(bench: Bench) -> None:
    """No number tells BGR from RGB: arrays are BGR, PIL images know what they are."""
    predictor = bench.predictor()
    bgr, pil, rgb = predictor([picture()[:, :, ::-1], Image.fromarray(picture()), picture()])
    assert torch.equal(bgr["sem_seg_scores"], pil["sem_seg_scores"])
    assert not torch.equal(rgb["sem_seg_scores"], pil["sem_seg_scores"])


def test_video_with_a_broken_frame(bench: Bench) -> None:
    """The frames behind it are drawn as well; how many are missing is said."""
    path = video(bench.root / "v.avi", broken=2)
    assert bench.demo("--input", path, "--output", bench.root / "out") == 0
    capture = cv2.VideoCapture(str(bench.root / "out" / "v.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert f"{path}: found 5 frames that can be decoded, expected 6" in bench.said()


def test_video_without_a_frame(bench: Bench) -> None:
    (bench.root / "page.mp4").write_bytes(b"<html></html>")
    out = bench.root / "out"
    call = lambda: bench.demo("--input", bench.root / "page.mp4", "--output", out)  # noqa: E731
    assert call().startswith(f"DatasetError: {bench.root}/page.mp4: cannot be opened, expected a v")
    assert not out.exists()


def test_no_camera(bench: Bench) -> None:
    line = bench.demo("--webcam", "--output", bench.root / "out")
    assert line == "DatasetError: camera 0: cannot be opened, expected a webcam; try another one"


def test_no_display(bench: Bench) -> None:
    """No window is tried, which would abort the process."""
    bench.patch.setattr(cv2, "getBuildInformation", lambda: "  GUI:   NONE")
    bench.patch.setattr(cv2, "imshow", lambda *args: pytest.fail("a window was tried"))
    bench.patch.chdir(bench.root)
    assert bench.demo("--input", video(bench.root / "v.avi")) == 0
    assert [path.name for path in (bench.root / "segmented").iterdir()] == ["v.mp4"]


def test_bad_video_as_a_process(bench: Bench) -> None:
    command = ("demo.py", "--weights", "w.pth", "--input", "v.mp4", "--output", "out")
    (bench.root / "v.mp4").write_bytes(b"<html></html>")
    refused_as_process(bench.root, command, "DatasetError: v.mp4: cannot be opened, expected a vid")
    assert not (bench.root / "out").exists()
