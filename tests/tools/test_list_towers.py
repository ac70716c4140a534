"""`tagclip towers` lists what the installed open_clip has."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import open_clip
import pytest
from helpers.tiny_run import load_tool

from tagclip.errors import ConfigError
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.clip.towers import list_towers


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    return load_tool(repository / "tools" / "list_towers.py")


def run(tool: ModuleType, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    tool.main(tool.parse_args(args))
    return capsys.readouterr().out


def test_every_model_is_listed_with_its_weights() -> None:
    towers = list(list_towers())
    assert [tower.name for tower in towers] == open_clip.list_models()
    for tower in towers:
        assert list(tower.tags) == open_clip.list_pretrained_tags_by_model(tower.name)
        assert tower.dim == open_clip.get_model_config(tower.name)["embed_dim"]


def test_it_says_what_a_model_itself_says() -> None:
    for tower in list_towers():
        try:
            _ = CLIPSource(tower.name).config
            refused = ""
        except ConfigError as error:
            refused = str(error)
        assert bool(refused) == bool(tower.refused)
        assert tower.refused in refused
    assert sum(not tower.refused for tower in list_towers()) >= 120


def test_words_choose_by_name_network_and_tag() -> None:
    assert {t.name for t in list_towers(["siglip2", "so400m", "378"])} == {
        "ViT-SO400M-14-SigLIP2-378"
    }
    assert {t.name for t in list_towers(["DFN2B"])} >= {"ViT-L-14-quickgelu", "ViT-B-16"}
    assert {t.name for t in list_towers(["ViT-L/14@336px"])} == {
        "ViT-L-14-336",
        "ViT-L-14-336-quickgelu",
    }
    assert {t.name for t in list_towers(["vit_base_mci"])} == {"MobileCLIP-B", "MobileCLIP2-B"}


def test_a_table_has_a_row_for_each(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    plain = run(tool, capsys, "pe-core").splitlines()
    assert [line.split()[0] for line in plain[1:6]] == [
        name for name in open_clip.list_models() if name.startswith("PE-Core")
    ]
    assert plain[-1] == f"5 models of open_clip {open_clip.__version__}: 5 accepted, 0 refused"
    marked = run(tool, capsys, "RN50x4", "--markdown").splitlines()
    assert marked[0].count("|") == marked[1].count("|") == marked[2].count("|") == 9
    assert "refused: vision layers of a ResNet" in marked[2]
    content = json.loads(run(tool, capsys, "RN50x4", "--json"))
    assert [row["name"] for row in content] == ["RN50x4", "RN50x4-quickgelu"]


def test_unknown_words_are_one_line(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for options, what in ((), "model of open_clip"), (("--cost",), "config towers/voc_"):
        with pytest.raises(ConfigError, match=f"siglip9: found no {what}") as error:
            run(tool, capsys, "siglip9", *options)
        assert "\n" not in str(error.value)
    assert not capsys.readouterr().out


def test_the_table_of_the_documents_is_that_of_the_installed_open_clip(
    repository: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    table = run(tool, capsys, "--markdown").strip()
    assert table in (repository / "docs" / "towers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("other", ["--markdown", "--cost"])
def test_json_is_the_list_alone(tool: ModuleType, other: str) -> None:
    with pytest.raises(SystemExit):
        tool.parse_args(["--json", other])


@pytest.mark.slow
def test_a_cost_has_the_sizes_of_its_config(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    line = run(tool, capsys, "--cost", "MobileCLIP2").splitlines()[-1].split()
    # A ViT-B of 86 million parameters.
    assert line[:4] == ["towers/voc_mobileclip2_b.yaml", "MobileCLIP2-B", "512x512", "32x32"]
    assert 80 < float(line[4]) < 95 and float(line[5]) > 80 and float(line[6]) > 0


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["MobileCLIP2-B"], ["mobileclip2_b"]),
        (["SigLIP2", "L16"], ["siglip2_l16"]),
        (["PE-Core-L-14-336"], ["pe_core_l14"]),
        (["PE-Core-L/14@336px"], ["pe_core_l14"]),
        (["towers/voc_dfn"], ["dfn_l14"]),
    ],
)
def test_words_choose_what_is_measured(
    tool: ModuleType, words: list[str], found: list[str]
) -> None:
    assert list(tool.costed(words)) == [f"towers/voc_{name}.yaml" for name in found]


def test_nothing_to_measure_is_one_line(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"ViT-B-32: found no config towers/voc_") as error:
        run(tool, capsys, "--cost", "ViT-B-32")
    assert "\n" not in str(error.value) and not capsys.readouterr().out
