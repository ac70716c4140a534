"""Names of configs: every config has one, paths go before, a wrong one is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tagclip
from tagclip import load_config, model_zoo
from tagclip.config import find_config
from tagclip.errors import ConfigError

NAME = "voc/tagclip_vitb16_voc_inductive_convtrust.yaml"


def test_every_config_has_a_name(repository: Path) -> None:
    files = {*repository.glob("configs/**/*.yaml"), *repository.glob("projects/*/configs/*.yaml")}
    names = model_zoo.list()
    assert names == sorted(set(names)) and len(names) == len(files)
    assert {Path(model_zoo.get_config_file(name)) for name in names} == files
    assert {name.split("/")[0] for name in names} == {
        *("voc", "coco-stuff", "context", "cross_dataset", "official", "towers"),
        *("minibench", "zegclip", "trainingfree"),
        *("Base-ZeroShot.yaml", "Base-ConvTrust.yaml", "Base-Relative.yaml"),
    }
    assert tagclip.model_zoo is model_zoo


def test_a_name_is_the_config(repository: Path, tmp_path: Path) -> None:
    """Also in ``_BASE_``, from any folder."""
    expected = load_config(repository / "configs" / NAME)
    assert load_config(NAME) == expected
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"_BASE_: [{NAME}, minibench/Base-MiniBench.yaml]\nSEED: 3\n")
    cfg = load_config(mine)
    assert (cfg.SEED, cfg.CONFIG_NAME) == (3, "mine.yaml")
    clip = str(repository / "projects" / "MiniBench" / "assets" / "mini_clip.json")
    assert (clip, "conv") == (cfg.MODEL.CLIP.NAME, cfg.MODEL.TAGCLIP.TRUSTY.KIND)


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / NAME
    mine.parent.mkdir()
    mine.write_text("SEED: 5\n")
    (tmp_path / "leaf.yaml").write_text(f"_BASE_: {NAME}\n")
    assert load_config(tmp_path / "leaf.yaml").SEED == 5
    assert find_config(NAME) == Path(model_zoo.get_config_file(NAME))
    monkeypatch.chdir(tmp_path)
    assert find_config(NAME) == mine


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        (NAME.replace("inductive", "inductve"), f"; did you mean {NAME}?"),
        (NAME.removesuffix(".yaml"), f"; did you mean {NAME}?"),
        (NAME.removeprefix("voc/"), f"; did you mean {NAME}?"),
        (f"/elsewhere/configs/{NAME}", f"; did you mean {NAME}?"),
        (
            "projects/MiniBench/configs/tagclip_minibench_supervised.yaml",
            "; did you mean minibench/tagclip_minibench_supervised.yaml?",
        ),
        ("voc", "; names of configs: tagclip configs"),
        ("../configs", "; names of configs: tagclip configs"),
    ],
)
def test_neither_file_nor_name(
    name: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for function, what in (
        (load_config, "no such config file and no name of the model zoo"),
        (model_zoo.get_config_file, "found no such config in the model zoo"),
    ):
        with pytest.raises(ConfigError) as error:
            function(name)
        assert str(error.value) == f"{name}: {what}{advice}"
    leaf = tmp_path / "leaf.yaml"
    leaf.write_text(f"_BASE_: {name}\n")
    with pytest.raises(ConfigError) as error:
        load_config(leaf)
    assert str(error.value) == (
        f"{leaf}: _BASE_ leads to {tmp_path / name}: no such config file and no name of the model "
        f"zoo{advice}"
    )


def test_the_list_is_printed_where_nothing_is_installed() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'detectron2', 'cv2', 'yaml')));"
        "from tagclip.cli import main; sys.argv = ['tagclip', 'configs']; main()"
    )
    listed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert listed.splitlines() == model_zoo.list()
