"""Tokenizers: open_clip's ids under every option, and one line for what cannot be used."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.clip_files import TINY_CLIP, class_list, fails, tiny_config, write_json
from helpers.text_models import KINDS, TEXTS, save_text_model, save_tokenizer

from tagclip import TextBank
from tagclip.errors import CheckpointError, ConfigError, NotInstalledError
from tagclip.modeling.clip import CLIPSource

# A text of more tokens than the context length, and what is behind them.
LIMIT = 16


def model(folder: Path, kind: str = "", **text: Any) -> CLIPSource:
    """A tiny CLIP in a folder of its own, with the tokenizer of a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    text |= {"context_length": LIMIT}
    if kind:
        size = save_tokenizer(kind, folder)
        text = {"hf_tokenizer_name": "org/tokenizer", "vocab_size": size + 1} | text
    config = tiny_config(**{f"text_{key}": value for key, value in text.items()})
    write_json(folder / "open_clip_config.json", {"model_cfg": config})
    return CLIPSource(f"local-dir:{folder}")


def padded(source: CLIPSource, texts: list[str]) -> torch.Tensor:
    rows = TextBank(source=source, templates=["{}"])._token_ids(texts)
    pad = source.tokenizer.pad_id
    return torch.tensor([row + [pad] * (LIMIT - len(row)) for row in rows])


# Ids


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
@pytest.mark.parametrize("special", [None, ["<class>", "<mask>"]])
def test_byte_pairs_of_every_option(clean: str, special: list[str] | None, tmp_path: Path) -> None:
    options = {"clean": clean} | ({"additional_special_tokens": special} if special else {})
    source = model(tmp_path, tokenizer_kwargs=options, vocab_size=49410)
    texts = [*TEXTS, "a <class> of CATS"]
    assert torch.equal(
        padded(source, texts), open_clip.get_tokenizer(f"local-dir:{tmp_path}")(texts)
    )


@pytest.mark.parametrize(
    ("kind", "options", "mode"),
    [
        *((kind, {}, None) for kind in KINDS),
        *((kind, {"clean": "canonicalize"}, None) for kind in ("siglip", "siglip2", "mt5")),
        ("bert", {"strip_sep_token": True}, None),
        ("xlm", {"clean": "lower"}, "clips"),
        ("nllb", {"src_lang": "fra_Latn"}, None),
        ("nllb", {"language": "zho_Hans"}, None),
        ("xlm", {"padding_side": "left"}, None),
        ("bert", {"truncation_side": "left"}, None),
    ],
)
def test_ids_are_open_clips(kind: str, options: dict, mode: str | None, tmp_path: Path) -> None:
    text = {"tokenizer_kwargs": options, "tokenizer_mode": mode}
    source = model(tmp_path, kind, **{key: value for key, value in text.items() if value})
    assert torch.equal(
        padded(source, TEXTS), open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    )
    assert source.tokenize([]) == []


def test_the_end_of_a_long_text_is_said_to_be_lost(tmp_path: Path) -> None:
    for kind in KINDS:
        source = model(tmp_path / kind, kind)
        text = (
            "the wall of concrete and a dining table in the sea, old houses behind quick xylophones"
        )
        (row,) = source.tokenize([text])
        kept, lost = source.tokenizer.cut(text, row, LIMIT)
        assert len(row) > LIMIT >= len(kept) and text.endswith(lost), kind
        # What is kept and what is lost is all.
        again = source.tokenizer.tokenize([text.removesuffix(lost).strip()])[0]
        assert again[: len(kept) - 1] == kept[: len(kept) - 1], kind


# What is said of words


@pytest.mark.parametrize(
    ("kind", "spelt", "lost"),
    [
        ("mt5", ["собака"], "ไทย"),
        ("xlm", ["собака"], "ไทย"),
        ("nllb", ["собака"], "ไทย"),
        ("bert", ["собака"], "ไทย"),
        ("siglip2", ["собака", "ไทย"], ""),
        ("roberta", ["собака", "ไทย"], ""),
    ],
)
def test_words_that_are_spelt_or_lost(
    kind: str, spelt: list[str], lost: str, tmp_path: Path
) -> None:
    """Ideographs that have a token are no letters; bytes stand for parts of a letter."""
    tokenizer = model(tmp_path, kind).tokenizer
    assert tokenizer.spelt_words("cat собака ไทย") == spelt
    assert tokenizer.lost_text("cat ไทย") == lost
    assert tokenizer.spelt_words("cat 猫") == (["猫"] if "ไทย" in spelt else [])
    assert tokenizer.lost_text("cat") == ""


def test_what_is_read_of_a_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Other case is nothing to speak of; lost punctuation is."""
    source = model(tmp_path, "siglip2", tokenizer_kwargs={"clean": "canonicalize"})
    assert source.tokenizer.normalize("Wall-Concrete_x ") == "wallconcrete x"
    assert source.tokenizer.lost_text("!!!") == "!!!"
    with caplog.at_level("INFO", logger="tagclip"):
        TextBank(source=source, templates=["a {}"])(class_list(["Cat"], ["x-ray"]))
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "reads the name 'x-ray' as 'xray'" in said and "'Cat'" not in said


def test_an_end_token_that_is_spelt_out_ends_the_text(tmp_path: Path) -> None:
    source = model(tmp_path, "xlm", pool_type="eos", eos_id=2)
    assert source.tokenizer.lost_text("cat </s> dog") == "</s> dog"


# Where it comes from


def test_a_tokenizer_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    config = tiny_config(text_hf_tokenizer_name="org/tok", text_vocab_size=300)
    path = write_json(tmp_path / "clip.json", config)
    cache = tmp_path / "cache" / "models--org--tok"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0123")
    source = CLIPSource(str(path), cache_dir=str(tmp_path / "cache"))
    said = "org/tok (hf_tokenizer_name)", "not cached", "--local-dir FOLDER", "TOKENIZER to their"
    fails(CheckpointError, lambda: source.tokenizer, path, *said)
    save_tokenizer("xlm", cache / "snapshots" / "0123")
    assert source.tokenize(["cat"])
    # The user's own goes before.
    save_tokenizer("bert", tmp_path / "own")
    own = CLIPSource(str(path), cache_dir=str(tmp_path / "cache"), tokenizer=str(tmp_path / "own"))
    assert own.tokenize(["cat"]) != source.tokenize(["cat"])


def test_the_text_tower_of_transformers_comes_with_it(tmp_path: Path) -> None:
    text = {"hf_model_name": "org/tower", "hf_tokenizer_name": "org/tower"}
    path = write_json(tmp_path / "clip.json", TINY_CLIP | {"text_cfg": text})
    source = CLIPSource(str(path), cache_dir=str(tmp_path / "cache"))
    fails(CheckpointError, source.text_tower, path, "its text tower org/tower", "config.json")
    save_tokenizer("xlm", tmp_path / "own")
    own = CLIPSource(str(path), tokenizer=str(tmp_path / "own"))
    fails(ConfigError, own.text_tower, tmp_path / "own", "config.json", "put it there")
    save_text_model("xlm", tmp_path / "own")
    assert CLIPSource(str(path), tokenizer=str(tmp_path / "own")).text_tower().truncates_exactly


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"auto_map": {"AutoModel": "a.B"}}, "auto_map"),
        ({"model_type": "gpt2"}, "model_type 'gpt2', expected roberta"),
        ({"vocab_size": 1 << 40}, "vocab_size 1099511627776"),
        ({"vocab_size": None}, "vocab_size None"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"num_attention_heads": 5}, "cannot build it"),
    ],
)
def test_a_bad_text_tower_is_refused(changes: dict[str, Any], found: str, tmp_path: Path) -> None:
    text = {"hf_model_name": "org/tower", "hf_tokenizer_name": "org/tower"}
    path = write_json(tmp_path / "clip.json", TINY_CLIP | {"text_cfg": text})
    save_text_model("xlm", tmp_path / "own", **changes)
    fails(ConfigError, CLIPSource(str(path), tokenizer=str(tmp_path / "own")).text_tower, found)


def test_clips_own_tokenizer_wants_no_folder(tiny_clip_json: str, tmp_path: Path) -> None:
    source = CLIPSource(tiny_clip_json, tokenizer=str(tmp_path))
    fails(ConfigError, lambda: source.tokenizer, "MODEL.CLIP.TOKENIZER", "leave it empty")


# What cannot be used


def test_without_transformers_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "transformers" else find(n, *a)
    )
    source = model(tmp_path, "xlm")
    fails(NotInstalledError, lambda: source.tokenizer, "pip install transformers")
    assert model(tmp_path / "own").tokenize(["cat"])


def test_a_sentencepiece_model_wants_sentencepiece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "sentencepiece" else find(n, *a)
    )
    source = model(tmp_path, "mt5")
    (tmp_path / "tokenizer.json").rename(tmp_path / "spiece.model")
    fails(NotInstalledError, lambda: source.tokenizer, "no sentencepiece", "pip install")


def test_a_tokenizer_without_tokens_is_refused(tmp_path: Path) -> None:
    """transformers makes one where the file with them is of another kind."""
    source = model(tmp_path, "mt5")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    fails(ConfigError, lambda: source.tokenizer, tmp_path, "has no tokens", "fetch it again")


def test_a_tokenizer_that_fails_at_unknown_words_is_refused(tmp_path: Path) -> None:
    """Before any image is read, whatever the words."""
    source = model(tmp_path, "bert")
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    tree["model"]["unk_token"] = "<unk>"
    write_json(tmp_path / "tokenizer.json", tree)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write_json(tmp_path / "tokenizer_config.json", config | {"unk_token": "<pad>"})
    fails(ConfigError, lambda: source.tokenizer, tmp_path, "cannot be used", "fetch it again")


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("tokenizer.json", "{}", "cannot be used"),
        ("tokenizer.json", "[" * 5000, "cannot be used"),
        ("tokenizer.json", None, "found no tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: found a list"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["x.Y", null]}}', "auto_map"),
        ("tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast"}', "cannot be"),
    ],
)
def test_a_damaged_folder_is_one_line(
    file: str, content: str | None, found: str, tmp_path: Path
) -> None:
    source, own = model(tmp_path / "clip", "xlm"), tmp_path / "own"
    shutil.copytree(tmp_path / "clip", own)
    (own / "evil.py").write_text("raise SystemExit")
    if content is None:
        (own / file).unlink()
    else:
        (own / file).write_text(content)
    named = CLIPSource(source.name, tokenizer=str(own))
    fails(ConfigError, lambda: named.tokenizer, own, found, "MODEL.CLIP.TOKENIZER")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ({"vocab_size": 20}, "expected at most 20"),
        ({"pool_type": "eos", "eos_id": 7}, "no end token 7"),
        ({"tokenizer_kwargs": {"language": "xyz"}}, "no language 'xyz'"),
        ({"tokenizer_kwargs": {"strip_sep_token": True}}, "cannot be used"),
        ({"tokenizer_mode": "clips"}, "cannot be used"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(
    text: dict[str, Any], found: str, tmp_path: Path
) -> None:
    source = model(tmp_path, "mt5", **text)
    fails(ConfigError, lambda: source.tokenizer, tmp_path, found)


def test_an_added_token_that_the_tower_has_not_is_refused(tmp_path: Path) -> None:
    """Which is known of a text alone."""
    source = model(tmp_path, "nllb", vocab_size=202)
    assert max(source.tokenize(["a cat"])[0]) == 201
    fails(ConfigError, lambda: source.tokenize(["zho_Hans cat"]), "id 203", "below 202")


def test_clips_own_tokenizer_may_have_more_tokens_than_the_tower(tmp_path: Path) -> None:
    source = model(tmp_path, vocab_size=1000)
    fails(ConfigError, lambda: source.tokenizer, "vocab_size 1000", "expected 49408")


def test_byte_pairs_end_where_the_tower_is_read(tmp_path: Path) -> None:
    """open_clip reads the start token otherwise, which is the same for all texts."""
    for end in (2, 49406):
        source = model(tmp_path, pool_type="eos", eos_id=end, vocab_size=49408)
        fails(ConfigError, source.text_tower, source.name, f"eos_id {end}", "expected 49407")
    read = model(tmp_path, pool_type="eos", eos_id=49407, vocab_size=49408)
    vectors = TextBank(source=read, templates=("{}",))(class_list(["cat"], ["sky"]))
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3
    unsaid = model(tmp_path, pool_type="eos", vocab_size=49408)
    fails(ConfigError, unsaid.text_tower, "eos_id 2")


# What class vectors depend on


def test_the_fingerprint_of_class_vectors(tiny_clip_json: str, tmp_path: Path) -> None:
    """Of CLIP's own tokenizer it is what it always was; of others their content is part of it."""
    vocabulary, templates = class_list(["cat"], ["sky"]), ("a {}",)
    own = CLIPSource(tiny_clip_json)
    content = [own.sha256, own.config, templates, vocabulary.prompts]
    expected = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert TextBank(source=own, templates=templates).fingerprint(vocabulary) == expected
    source = model(tmp_path / "a", "xlm")
    before = TextBank(source=source, templates=templates).fingerprint(vocabulary)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    again = CLIPSource(source.name, tokenizer=str(tmp_path / "b"))
    assert TextBank(source=again, templates=templates).fingerprint(vocabulary) == before
    tree = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    tree["model"]["vocab"][10][1] -= 1
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    sides = ("padding_side", "truncation_side")
    contents = [
        ("tokenizer.json", tree),
        *(("tokenizer_config.json", config | {side: "left"}) for side in sides),
        ("tokenizer_config.json", config | {"split_special_tokens": True}),
    ]
    for file, content in contents:
        other = tmp_path / "other"
        shutil.copytree(tmp_path / "a", other)
        write_json(other / file, content)
        found = TextBank(
            source=CLIPSource(source.name, tokenizer=str(other)), templates=templates
        ).fingerprint(vocabulary)
        assert found != before, content
        shutil.rmtree(other)


def test_other_merges_are_another_tokenizer(tmp_path: Path) -> None:
    """Their name, and so the model json, stays the same."""
    vocabulary, found = class_list(["cat"]), []
    for merges in ("a b\nb c", "b c\na b", "b c\na b"):
        (tmp_path / "merges.gz").write_bytes(gzip.compress(f"#version\n{merges}\n".encode()))
        source = model(tmp_path, tokenizer_kwargs={"bpe_path": "merges.gz"}, vocab_size=49408)
        found.append(TextBank(source=source, templates=("a {}",)).fingerprint(vocabulary))
    assert found[0] != found[1] == found[2]
