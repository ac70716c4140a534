"""Layered yamls and mistakes in them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg
from helpers.toy_dataset import forget

from tagclip.config.defaults import add_tagclip_config
from tagclip.config.loading import load_config
from tagclip.data.datasets.register import register_datasets
from tagclip.errors import ConfigError
from tagclip.modeling.clip.config import read_clip_config
from tagclip.modeling.clip.source import CLIPSource


def test_paths_resolve_against_their_own_yaml(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "leaf").mkdir()
    base = tmp_path / "base" / "base.yaml"
    base.write_text("MODEL:\n  CLIP:\n    NAME: ./clip.json\n    PRETRAINED: ../w.pt\nSEED: 3\n")
    leaf = tmp_path / "leaf" / "leaf.yaml"
    leaf.write_text(
        "_BASE_: ../base/base.yaml\nOUTPUT_DIR: ./here\nMODEL:\n  CLIP:\n    PRETRAINED: ./x.pt\n"
    )
    cfg = load_config(leaf, ["SEED", "7"])
    assert str(tmp_path / "base" / "clip.json") == cfg.MODEL.CLIP.NAME
    assert str(tmp_path / "leaf" / "x.pt") == cfg.MODEL.CLIP.PRETRAINED
    assert (cfg.OUTPUT_DIR, cfg.SEED) == ("./here", 7)


def test_home_and_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "run")
    (tmp_path / "base.yaml").write_text("MODEL: {WEIGHTS: ~/a.pth}\n")
    (tmp_path / "run.yaml").write_text("_BASE_: $HOME/base.yaml\nOUTPUT_DIR: ~/${PLACE}/1\n")
    cfg = load_config("~/$PLACE.yaml")
    assert (f"{tmp_path}/a.pth", f"{tmp_path}/run/1") == (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR)
    assert f"{tmp_path}/b" == load_config("", ["OUTPUT_DIR", "~/b"]).OUTPUT_DIR
    source = CLIPSource("~/clip.json", "$HOME/clip.pt")
    assert (source.name, source.pretrained) == (f"{tmp_path}/clip.json", f"{tmp_path}/clip.pt")


def test_dumped_config_loads_again(tmp_path: Path) -> None:
    cfg = load_config("", ["MODEL.CLIP.TEMPLATES", "zegclip15", "CONFIG_NAME", "mine.yaml"])
    dumped = tmp_path / "config.yaml"
    dumped.write_text(cfg.dump())
    assert yaml.safe_load(load_config(dumped).dump()) == yaml.safe_load(cfg.dump())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  TAGCLIP:\n    LAYER: n\n", r"LAYER; did you mean MODEL\.TAGCLIP\.LAYERS\?"),
        ("SEED: many\n", r"SEED: found 'many', expected a whole number from -1 to \d+; mend"),
        ("SEED: null\n", r"SEED: found null, expected a whole number from -1"),
        ("SEED: {}\n", r"SEED: found \{\}, expected a whole number from -1"),
        ("SOLVER: 3\n", r"SOLVER: found 3, expected a key of this section and its value, such as"),
        ("SOLVER: null\n", r"SOLVER: found null, expected a key of this section"),
        ("SOLVE: 1\n", r"unknown config key SOLVE; all keys: python -m tagclip\.config\.reference"),
        ("SOLVER.LR: 1\n", r"unknown config key SOLVER\.LR; did you mean SOLVER\."),
        ("DATASETS: {TRAIN: a}\n", r"DATASETS\.TRAIN: found 'a', expected a list of texts"),
        ("OUTPUT_DIR: 12\n", r"OUTPUT_DIR: found 12, expected a text"),
        ("VERSION: x\n", r"VERSION: found 'x', expected 2"),
        ("MODEL: {RPN: {NMS_THRESH: x}}\n", r"RPN\.NMS_THRESH: found 'x', expected a number"),
        ("- 1\n- 2\n", r"found a list, expected keys and values"),
        ("a: [1\n", r"not a plain yaml file"),
        ("SEED: !!python/object/apply:os.system ['true']\n", r"not a plain yaml file"),
        ("SEED: 1\nMODEL:\n  DEVICE: cpu\nSEED: 2\n",
         r"yaml: .*\(line 4: key 'SEED' again, which is in line 1 of this section; put both tog"),
        ("MODEL:\n  DEVICE: cpu\n  DEVICE: cpu\n", r"line 3: key 'DEVICE' again, which is"),
        ("SEED: 1\nMODEL: {MASK_ON: false, MASK_ON: true}\n", r"line 2: key 'MASK_ON' again"),
        ("_BASE_: nowhere.yaml\n", r"broken\.yaml: _BASE_ leads to /.*/nowhere\.yaml: no such"),
        ("_BASE_: broken.yaml\n", r"_BASE_ leads back to this file"),
    ],
)  # fmt: skip
def test_broken_yaml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_whole_number_is_a_number_and_a_text_may_look_like_one(tmp_path: Path) -> None:
    words = ["SOLVER.BASE_LR", "1", "OUTPUT_DIR", "12", "CONFIG_NAME", "'a b'"]
    cfg = load_config("", words)
    assert (cfg.SOLVER.BASE_LR, cfg.OUTPUT_DIR, cfg.CONFIG_NAME) == (1.0, "12", "a b")
    assert isinstance(cfg.SOLVER.BASE_LR, float)
    path = tmp_path / "a.yaml"
    path.write_text("OUTPUT_DIR: '12'\nSOLVER: {BASE_LR: 1}\nSOLVER.MAX_ITER: 7\n")
    cfg = load_config(path)
    assert (cfg.OUTPUT_DIR, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == ("12", 1.0, 7)


def test_broken_command_line() -> None:
    with pytest.raises(ConfigError, match="expected KEY VALUE pairs"):
        load_config("", ["SEED"])
    with pytest.raises(ConfigError, match="command line: unknown config key SEEDS; did you mean"):
        load_config("", ["SEEDS", "1"])
    for words, remedy in (
        (["mine.yaml"], "found 1 word after the options .*; write --config-file mine.yaml"),
        (["SEED", "1", "SOLVER.MAX_ITER=3"], "found 3 words .*; write SOLVER.MAX_ITER 3"),
    ):
        with pytest.raises(ConfigError, match=f"{remedy}$"):
            load_config("", words)


def test_tools_that_add_values_of_their_own_name_a_stray_word_too() -> None:
    with pytest.raises(ConfigError, match=r"found 3 words after the options \(SEED True stray\)"):
        load_config("", ["SEED", True, "stray"])


def test_every_shipped_config_loads_and_leaves_are_short(repository: Path) -> None:
    files = [*repository.glob("configs/**/*.yaml"), *repository.glob("projects/*/configs/*.yaml")]
    assert len(files) > 5
    for path in files:
        load_config(path)
        if not path.name.startswith("Base-"):
            assert len(path.read_text().splitlines()) < 15, path


def test_every_config_has_a_folder_of_its_own(repository: Path) -> None:
    files = [*repository.glob("configs/*/*.yaml"), *repository.glob("projects/*/configs/*.yaml")]
    cfgs = [load_config(path) for path in files if not path.name.startswith("Base-")]
    assert len(cfgs) > 80
    for cfg in cfgs:
        folder = Path(cfg.OUTPUT_DIR)
        assert folder.name == Path(cfg.CONFIG_NAME).stem
        assert folder.parent in (Path("output"), Path("output/official"))
    folders = [cfg.OUTPUT_DIR for cfg in cfgs]
    assert len(set(folders)) == len(folders)
    # What a second stage or another dataset starts from is one of these runs.
    starts = {str(Path(cfg.MODEL.WEIGHTS).parent) for cfg in cfgs if cfg.MODEL.WEIGHTS}
    assert starts and starts < set(folders)


def test_an_earlier_name_is_the_new_config(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables = list(repository.glob("**/configs/renamed.json"))
    assert tables
    for table in tables:
        for old, new in json.loads(table.read_text()).items():
            assert not table.with_name(old).exists()
            caplog.clear()
            found = load_config(table.with_name(old))
            assert [record.getMessage() for record in caplog.records] == [
                f"{table.with_name(old)} is now called {new}; use that name"
            ]
            assert found == load_config(table.with_name(new)) and new == found.CONFIG_NAME
            (tmp_path / "mine.yaml").write_text(f"_BASE_: {table.with_name(old)}\nSEED: 3\n")
            found.CONFIG_NAME, found.SEED = "mine.yaml", 3
            assert load_config(tmp_path / "mine.yaml") == found
    with pytest.raises(ConfigError, match="^/: no such config file"):
        load_config("/")
    with pytest.raises(ConfigError, match="nowhere.yaml: no such config file"):
        load_config(tables[0].with_name("nowhere.yaml"))


def test_a_damaged_table_of_names_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "renamed.json").write_text("{")
    with pytest.raises(ConfigError, match=r"renamed\.json: not a plain yaml file"):
        load_config(tmp_path / "old.yaml")


def test_detectron2s_own_reading_is_told_of_ours(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`merge_from_file` leaves the paths of a yaml as they are."""
    monkeypatch.chdir(tmp_path)
    cfg = get_cfg()
    add_tagclip_config(cfg)
    cfg.merge_from_file(str(repository / "projects/MiniBench/configs/Base-MiniBench.yaml"))
    expected = f"check the path from {tmp_path}, or read the yaml that says so with tagclip.load_"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        read_clip_config(cfg.MODEL.CLIP.NAME)
    entry = {"name": "mine", "images": "./images", "labels": "/labels", "vocabulary": "/v.json"}
    cfg.DATASETS.FOLDER_DATASETS = [entry]
    with pytest.raises(ConfigError, match=r"images \./images is not there; " + re.escape(expected)):
        register_datasets(cfg)
    (tmp_path / "images").mkdir()
    register_datasets(cfg)
    forget("mine")
