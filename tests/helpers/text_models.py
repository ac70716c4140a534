"""Small stand-ins of the tokenizers and text towers that open_clip's models take from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

# What they are trained on, in several scripts.
SENTENCES = [
    *("a photo of a cat.", "there is a dog in the scene", "the wall of concrete", "sky and sea"),
    *("a dining table", "une photo d'un chat", "ein Foto einer Katze", "traffic light", "zebra"),
    *("фото собаки", "фото кошки", "небо и море", "猫的照片", "狗", "天空", "犬の写真"),
    *("صورة قطة", "고양이 사진", "tv monitor of a very old make", "naïve café", "100% {} x-ray"),
] * 3
# What the towers are compared on: templates, case, punctuation, entities, scripts, too many tokens.
TEXTS = [
    "a photo of a cat.",
    "A Photo of the  Wall-Concrete!",
    "100% {} naïve café &amp; x_ray",
    "фото собаки",
    "猫的照片",
    "",
    "a very long text about the tv monitor " * 20,
]
TRANSFORMERS = {
    "bert": {
        "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
        "intermediate_size": 48, "pad_token_id": 0, "max_position_embeddings": 90,
    },
    "roberta": {
        "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
        "intermediate_size": 48, "pad_token_id": 1, "max_position_embeddings": 90,
    },
    "mt5": {
        "d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 48, "pad_token_id": 0,
        "num_decoder_layers": 1,
    },
    "m2m_100": {
        "d_model": 32, "encoder_attention_heads": 4, "encoder_layers": 2, "encoder_ffn_dim": 48,
        "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
        "pad_token_id": 1, "max_position_embeddings": 90,
    },
}  # fmt: skip
TRANSFORMERS["xlm-roberta"] = TRANSFORMERS["roberta"]
_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_LANGUAGES = ["deu_Latn", "eng_Latn", "fra_Latn", "zho_Hans"]


def _sentencepiece(special: list[str], template: str) -> Tokenizer:
    """A unigram model as sentencepiece makes them: T5, mT5, SigLIP, XLM-R, XLM-V."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.UnigramTrainer(
            vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    _add_template(tokenizer, template)
    return tokenizer


def _add_template(tokenizer: Tokenizer, template: str) -> None:
    tokens = [(t, tokenizer.token_to_id(t)) for t in template.split() if t != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)


def _gemma() -> Tokenizer:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False)
    # Other scripts are spelt in bytes.
    tokenizer.train_from_iterator([s for s in SENTENCES if s.isascii()], trainer)
    # Bytes are tokens of the model, not special ones of the text.
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:4]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    _add_template(tokenizer, "$A <eos>")
    return tokenizer


def _bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    _add_template(tokenizer, "[CLS] $A [SEP]")
    return tokenizer


def _roberta() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=_ROBERTA, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(SENTENCES, trainer)
    _add_template(tokenizer, "<s> $A </s>")
    return tokenizer


def _nllb() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=_ROBERTA[:4], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (*_LANGUAGES, "<mask>")])
    _add_template(tokenizer, "eng_Latn $A </s>")
    return tokenizer


_T5 = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 0}
_FAIRSEQ = {
    "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>",
    "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip
# Kind -> its tokenizer, what tokenizer_config.json says, and the id of its end.
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "siglip": (
        lambda: _sentencepiece(["<pad>", "</s>", "<unk>"], "$A </s>"),
        {"tokenizer_class": "T5Tokenizer", **_T5, "pad_token": "</s>"},
    ),
    "mt5": (
        lambda: _sentencepiece(["<pad>", "</s>", "<unk>"], "$A </s>"),
        {"tokenizer_class": "T5Tokenizer", **_T5},
    ),
    "siglip2": (
        _gemma,
        {
            "tokenizer_class": "GemmaTokenizer", "pad_token": "<pad>", "eos_token": "<eos>",
            "bos_token": "<bos>", "unk_token": "<unk>", "add_bos_token": False,
            "add_eos_token": True, "padding_side": "right",
        },
    ),
    "xlm": (
        lambda: _sentencepiece(_ROBERTA, "<s> $A </s>"),
        {"tokenizer_class": "XLMRobertaTokenizer", **_FAIRSEQ},
    ),
    "bert": (
        _bert,
        {
            "tokenizer_class": "BertTokenizer", "do_lower_case": True, "pad_token": "[PAD]",
            "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
    ),
    "roberta": (_roberta, {"tokenizer_class": "RobertaTokenizer", **_FAIRSEQ}),
    "nllb": (
        _nllb,
        {
            "tokenizer_class": "NllbTokenizer", **_FAIRSEQ, "src_lang": "eng_Latn",
            "additional_special_tokens": _LANGUAGES,
        },
    ),
}  # fmt: skip
_KIND_OF = {
    "siglip2": "siglip2", "siglip": "siglip", "mt5": "mt5", "xlm": "xlm", "bert-base": "bert",
    "roberta": "roberta", "nllb": "nllb",
}  # fmt: skip
_TOWER_OF = {"mt5": "mt5", "xlm": "xlm-roberta", "roberta": "roberta", "nllb": "m2m_100"}


def kind_of(hf_name: str) -> str:
    """Kind of the stand-in for a name of the hub."""
    name = hf_name.lower()
    if "roberta" in name and "xlm" not in name:
        return "roberta"
    return next(kind for part, kind in _KIND_OF.items() if part in name)


def save_tokenizer(kind: str, folder: Path) -> int:
    """Write a tokenizer as transformers does; returns the number of its ids."""
    folder.mkdir(parents=True, exist_ok=True)
    make, config = KINDS[kind]
    tokenizer = make()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def save_text_model(kind: str, folder: Path, **changes: Any) -> None:
    """Write a tokenizer and, beside it, the config of a text tower of transformers."""
    size = save_tokenizer(kind, folder)
    tower = _TOWER_OF[kind]
    config = {"model_type": tower, "vocab_size": size + 100, **TRANSFORMERS[tower], **changes}
    (folder / "config.json").write_text(json.dumps(config))
