"""TextBank: open_clip's own text vectors, encoded once."""

from __future__ import annotations

import gzip
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.clip_files import class_list, random_clip, tiny_config, write_json
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP
from torch import Tensor

from tagclip import TextBank
from tagclip.errors import ConfigError
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.clip.text_bank import prompt_templates
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.class_names import name_key

TEMPLATES = ("a photo of a {}.", "{} in the scene", "there is the very large {} somewhere here")
NAMES = ["cat", "wall-concrete", "dining table", "tv monitor of a very old make"]


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return random_clip()


@pytest.fixture(scope="module")
def model_files(clip: CLIP, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of a model json and of its weights."""
    folder = tmp_path_factory.mktemp("clip")
    torch.save(clip.state_dict(), folder / "clip.pt")
    return str(write_json(folder / "model.json", tiny_config())), str(folder / "clip.pt")


@pytest.fixture
def source(model_files: tuple[str, str]) -> CLIPSource:
    return CLIPSource(*model_files)


@pytest.fixture(scope="module")
def shared_source(model_files: tuple[str, str]) -> CLIPSource:
    """One that no test changes."""
    return CLIPSource(*model_files)


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


@torch.no_grad()
def open_clip_vectors(clip: CLIP, classes: list[list[str]], templates: tuple[str, ...]) -> Tensor:
    """(K, D): every prompt on its own, at full length, through open_clip's encode_text."""
    rows = []
    for names in classes:
        vectors = []
        for name in names:
            texts = [template.replace("{}", name) for template in templates]
            encoded = [
                clip.encode_text(open_clip.tokenize(text), normalize=True)[0] for text in texts
            ]
            vectors.append(unit(torch.stack(encoded).mean(0)))
        rows.append(unit(torch.stack(vectors).mean(0)))
    return torch.stack(rows)


# Values


def test_it_equals_encode_text(clip: CLIP, source: CLIPSource) -> None:
    classes = [[name] for name in NAMES]
    vectors = TextBank(source=source, templates=TEMPLATES)(class_list(*classes))
    assert vectors.shape == (4, 32) and vectors.dtype == torch.float32
    assert not vectors.requires_grad
    expected = open_clip_vectors(clip, classes, TEMPLATES)
    assert (vectors - expected).abs().max() < 1e-5


def test_the_names_of_a_class_are_averaged(clip: CLIP, source: CLIPSource) -> None:
    classes = [["cat", "kitten", "tom cat"], ["sky"], ["dog", "cat"]]
    vectors = TextBank(source=source, templates=TEMPLATES)(class_list(*classes))
    expected = open_clip_vectors(clip, classes, TEMPLATES)
    assert (vectors - expected).abs().max() < 1e-5
    assert (vectors[0] - open_clip_vectors(clip, [["cat"]], TEMPLATES)[0]).abs().max() > 1e-3


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.text("abc {}%s'é木<>\"", min_size=1, max_size=12).filter(name_key),
        min_size=1,
        max_size=3,
        unique_by=name_key,
    )
)
def test_names_are_data(clip: CLIP, shared_source: CLIPSource, names: list[str]) -> None:
    """Braces, percent signs and anything else reach CLIP as they are."""
    classes = class_list(*[[name] for name in names])
    vectors = TextBank(source=shared_source, templates=["a {} here"])(classes)
    expected = open_clip_vectors(clip, [[name] for name in names], ("a {} here",))
    assert (vectors - expected).abs().max() < 1e-5


def test_templates_may_hold_other_braces(clip: CLIP, source: CLIPSource) -> None:
    template = "{a} 100% {} {0}"
    vectors = TextBank(source=source, templates=[template])(class_list(["cat"]))
    assert (vectors - open_clip_vectors(clip, [["cat"]], (template,))).abs().max() < 1e-5


def test_the_end_token_inside_a_name_is_read_as_open_clip_does(
    clip: CLIP, source: CLIPSource
) -> None:
    classes = [["cat <end_of_text> dog"], ["cat"]]
    vectors = TextBank(source=source, templates=["a {}"])(class_list(*classes))
    expected = open_clip_vectors(clip, classes, ("a {}",))
    assert (vectors - expected).abs().max() < 1e-5


def test_truncation_runs_no_padding(source: CLIPSource) -> None:
    """The tower sees as many positions as the longest prompt of the chunk, never 77."""
    bank, lengths = TextBank(source=source, templates=["a {}"]), []
    tower = source.text_tower()
    tower.tower.transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape))
    source.text_tower = lambda: tower
    bank(class_list(["cat"], ["dining table"]))
    longest = max(map(len, source.tokenize(["a cat", "a dining table"])))
    assert lengths == [(2, longest, 32)]
    assert longest == 5


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_changes_only_the_number_of_forwards(
    source: CLIPSource, batch_size: int
) -> None:
    classes = class_list(*[[name] for name in NAMES])
    whole = TextBank(source=source, templates=TEMPLATES)
    bank = TextBank(source=source, templates=TEMPLATES, batch_size=batch_size)
    assert (bank(classes) - whole(classes)).abs().max() < 1e-6
    assert bank.num_text_forwards == -(-12 // batch_size)
    assert whole.num_text_forwards == 1


def test_equal_names_are_encoded_once(source: CLIPSource) -> None:
    bank = TextBank(source=source, templates=["a {}"], batch_size=1)
    vectors = bank(class_list(["cat", "dog"], ["dog", "cat"], ["cow"]))
    assert bank.num_text_forwards == 3
    assert (vectors[0] - vectors[1]).abs().max() < 1e-6


def test_autocast_does_not_round_the_vectors(source: CLIPSource) -> None:
    classes = class_list(["cat"], ["sky"])
    expected = TextBank(source=source, templates=TEMPLATES)(classes)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = TextBank(source=source, templates=TEMPLATES)(classes)
    assert torch.equal(vectors, expected)


def test_a_prompt_too_long_is_cut_as_open_clip_cuts_it(
    clip: CLIP, source: CLIPSource, caplog: pytest.LogCaptureFixture
) -> None:
    name = "cat " * 73 + "zebra violin"
    with caplog.at_level(logging.WARNING, logger="tagclip"):
        vectors = TextBank(source=source, templates=["one {}", "a {}"])(class_list([name], ["sky"]))
    expected = open_clip_vectors(clip, [[name], ["sky"]], ("one {}", "a {}"))
    assert (vectors - expected).abs().max() < 1e-5
    assert len(caplog.records) == 2
    for record, template in zip(caplog.records, ("one {}", "a {}"), strict=True):
        message = record.getMessage()
        assert f"Prompt '{template.replace('{}', 'cat cat')} cat" in message
        assert "has 78 tokens, CLIP reads 77: 'violin' is lost" in message


def test_a_prompt_of_full_length_is_not_cut(
    source: CLIPSource, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="tagclip"):
        TextBank(source=source, templates=["a {}"])(class_list(["cat " * 74]))
    assert not caplog.records


# Templates


def test_named_templates() -> None:
    assert prompt_templates("single") == ("a photo of a {}",)
    sizes = {"single": 1, "zegclip15": 15, "vild14": 14, "imagenet80": 80}
    assert {name: len(prompt_templates(name)) for name in sizes} == sizes
    assert prompt_templates(["{} here"]) == ("{} here",)


@pytest.mark.parametrize("choice", ["none", [], ["a photo"], ["{} and {}"]])
def test_bad_templates_are_refused(choice: Any) -> None:
    with pytest.raises(ConfigError, match=r"^MODEL\.CLIP\.TEMPLATES: found .*expected") as caught:
        prompt_templates(choice)
    assert "\n" not in str(caught.value)


# Names that CLIP does not read as they are meant


def bank_of_merges(folder: Path, merges: str) -> TextBank:
    """A CLIP that knows the words of these merges only, and whose letters are single tokens."""
    with gzip.open(folder / "merges.gz", "wt", encoding="utf-8") as file:
        file.write(f"#version: 0.2\n{merges}")
    size = 2 * 256 + len(merges.split("\n")) + 2
    config = tiny_config(text_tokenizer_kwargs={"bpe_path": "merges.gz"}, text_vocab_size=size)
    name = write_json(folder / "small.json", config)
    options = {"templates": ["a photo of a {}"], "cache_dir": str(folder / "cache")}
    return TextBank(source=CLIPSource(str(name)), **options)


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("sand", ""),
        ("sandy stone", "hardly knows them: 'stone'; use other words"),
        ("<end_of_text> sand", "reads nothing of '<end_of_text>sand'; use other words"),
        ("&nbsp;", "reads nothing of '&nbsp;'; use other words"),
        ("A picture of the sand", "which makes 'a photo of a A picture of the sand' of it; give"),
        ("a photo of a sand", "give the name alone, 'sand'"),
        ("sand " * 80 + "sand", "sand' is lost; use a shorter name"),
        ("sand " * 800 + "sand", "sand' is lost; use a shorter name"),
        ("stone" * 800, "is lost; use a shorter name"),
        ("a photo of a " + "sand " * 800, "give the name alone, 'sand"),
    ],
)
def test_words_that_are_lost_are_named(
    name: str, warning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    merges = "s a\nsa n\nsan d</w>\nsan d\no f</w>\np h\nph o\npho t\nphot o</w>\n"
    merges += "p i\npi c\npic t\npict u\npictu r\npictur e</w>\nt h\nth e</w>"
    for _ in ("encoded", "from the cache"):
        caplog.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
            with caplog.at_level(logging.WARNING, logger="tagclip"):
                bank_of_merges(tmp_path, merges)(class_list([name]))
        found = [record.getMessage() for record in caplog.records]
        assert bool(found) == bool(warning) and max(map(len, found), default=0) < 500
        assert not found or any(warning in message for message in found)


def test_words_that_have_a_token_are_known(repository: Path) -> None:
    """Also one that merging in order never reaches, as "green" of MiniBench's CLIP."""
    projects = repository / "projects" / "MiniBench"
    source = CLIPSource(str(projects / "assets" / "mini_clip.json"), "")
    names = Vocabulary.from_json(projects / "minibench" / "minibench.json").names
    assert len(names) == 24 and not any(map(source.tokenizer.spelt_words, names))
    assert source.tokenizer.spelt_words("zebra") == ["zebra"]


def test_words_of_other_scripts_and_rare_ones(caplog: pytest.LogCaptureFixture) -> None:
    source = CLIPSource("ViT-B-16")
    known = "zebra", "axolotl", "quokka", "okapi", "traffic light", "TV", "x-ray", "🐱", "3D"
    assert [source.tokenizer.spelt_words(name) for name in known] == [[]] * len(known)
    assert source.tokenizer.spelt_words("zebra собака 猫 qwxz") == ["собака", "猫", "qwxz"]


def test_a_bounded_number_of_vocabularies_is_kept(
    shared_source: CLIPSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest one goes; each of the others is encoded once."""
    monkeypatch.setattr("tagclip.modeling.clip.text_bank._KEPT", 3)
    bank = TextBank(source=shared_source, templates=TEMPLATES[:1])
    vocabularies = [class_list([name]) for name in "abcd"]
    first = [bank(vocabulary) for vocabulary in vocabularies]
    assert bank.num_text_forwards == 4
    again = [bank(vocabulary) for vocabulary in reversed(vocabularies[1:])]
    assert bank.num_text_forwards == 4
    assert all(a is b for a, b in zip(reversed(first[1:]), again, strict=True))
    assert torch.equal(bank(vocabularies[0]), first[0]) and bank.num_text_forwards == 5
    bank(vocabularies[1])
    assert bank.num_text_forwards == 6
