#!/usr/bin/env bash
# Expected: a tokenizer.json says everything, so that transformers makes the same ids of it as
# tokenizers, whose format it is. The classes that tokenizer_config.json names (T5Tokenizer of SigLIP
# and mT5, XLMRobertaTokenizer, NllbTokenizer) take its vocabulary and put a normalizer and a
# pre-tokenizer of their own in place of the file's: full-width letters and several blanks get other
# ids.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment transformers==5.24.0 tokenizers==0.23.3
"$PYTHON" - <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

letters = [(c, -2.0) for c in "▁acdgot"]
special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
differs = {}
for kind in ("PreTrainedTokenizerFast", "T5Tokenizer", "XLMRobertaTokenizer"):
    tokenizer = Tokenizer(models.Unigram([*special, *letters], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    folder = Path(kind)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": kind, "pad_token": "<pad>", "eos_token": "</s>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"unk_token": "<unk>"}))
    loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    texts = ("cat", "ｃａｔ", "a  dog")
    pairs = [
        (tokenizer.encode(t).ids, loaded(t, add_special_tokens=False).input_ids) for t in texts
    ]
    differs[kind] = [a != b for a, b in pairs]
    print(kind, *(f"{text!r}: {a} {b}" for text, (a, b) in zip(texts, pairs)), sep="\n  ")
assert differs["PreTrainedTokenizerFast"] == [False] * 3
assert all(differs[kind] == [False, True, True] for kind in list(differs)[1:])
PYTHON
