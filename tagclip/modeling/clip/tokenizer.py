"""Texts -> token ids, as open_clip's tokenizers give them: CLIP's byte pairs and Hugging Face's."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tagclip.errors import ConfigError, NotInstalledError
from tagclip.utils.text import error_text, json_text
from tagclip.utils.untrusted import load_json

__all__ = ["TOKENIZER_FILES", "VOCABULARY_FILES", "BytePairTokenizer", "HuggingFaceTokenizer",
           "TextTokenizer", "check_no_code", "check_transformers",
           "tokenizer_problems"]  # fmt: skip

# One of them has the tokens; what else a folder of transformers has of a tokenizer.
VOCABULARY_FILES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
                    "vocab.json", "vocab.txt")  # fmt: skip
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
# Several times the largest known, of 901,629 tokens.
_LARGEST_FILE = 1 << 28
_CLEAN = ("canonicalize", "lower", "whitespace")
# Of text_cfg.tokenizer_kwargs, what is known to change no more than ids.
_BYTE_PAIR_OPTIONS = {"bpe_path": str, "clean": str, "additional_special_tokens": list}
_HUGGING_FACE_OPTIONS = {
    "clean": str,
    "strip_sep_token": bool,
    "language": str,
    "src_lang": str,
    "tgt_lang": str,
    "use_fast": bool,
    "legacy": bool,
    "add_prefix_space": bool,
    "add_bos_token": bool,
    "add_eos_token": bool,
    "do_lower_case": bool,
    "extra_ids": int,
    "padding_side": str,
    "truncation_side": str,
}
# Of the pieces of a word, how tokenizers mark its beginning or that it goes on.
_MARKS = "▁Ġ# "
# From here on a character is a word or a syllable (CJK, kana, Hangul), below it is a letter.
_FIRST_SYLLABLE = "\u2e80"
_TRIED, _UNKNOWN = "a photo of a cat", "\u16a0\u2603"
# What its files say of a tokenizer beside its model, and ids depend on.
_ATTRIBUTES = ("special_tokens_map", "padding_side", "truncation_side", "split_special_tokens")


class TextTokenizer(Protocol):
    """What a text bank asks of a tokenizer.

    Attributes:
        pad_id: what fills a row up to the context length.
        fingerprint: sha256 (hex) of what it does; "" for CLIP's byte pairs, which the model's
            config names.
    """

    pad_id: int
    fingerprint: str

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text with start and end token, without padding; a text that is
        longer than the context length keeps all of its ids."""

    def cut(self, text: str, row: list[int], limit: int) -> tuple[list[int], str]:
        """Return what is read of a text whose row is longer than ``limit``, and what is lost."""

    def normalize(self, text: str) -> str:
        """Return what becomes of a text before tokens are looked up: repaired Unicode, no html
        entities, and what the tokenizer does to case, punctuation and accents."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text that token ids stand for."""

    def spelt_words(self, text: str) -> list[str]:
        """Return the words of a text that have no tokens of their own: each takes several, most of
        which stand for a single letter or a part of one."""

    def lost_text(self, text: str) -> str:
        """Return what the text tower never reads of a text: all of it if nothing is left after
        `normalize`, what has no token at all, or what follows an end token that is spelt out."""


def tokenizer_problems(name: str, text: Mapping[str, Any]) -> Iterator[str]:
    """Say which options of a model's tokenizer cannot be used.

    Args:
        name: the model.
        text: its ``text_cfg``.
    """
    is_hugging_face = bool(text.get("hf_tokenizer_name"))
    known = _HUGGING_FACE_OPTIONS if is_hugging_face else _BYTE_PAIR_OPTIONS
    for key, value in (text.get("tokenizer_kwargs") or {}).items():
        is_wrong = key not in known or not isinstance(value, known[key])
        is_wrong |= key == "clean" and value not in _CLEAN
        is_wrong |= key == "bpe_path" and not name.endswith(".json")
        if is_wrong:
            yield f"text tokenizer_kwargs {key} {value!r:.40}"


class BytePairTokenizer:
    """CLIP's own tokenizer, open_clip's ``SimpleTokenizer``."""

    pad_id, fingerprint = 0, ""

    def __init__(self, merges: BinaryIO | None = None, **options: Any) -> None:
        """Build it.

        Args:
            merges: gzipped merges; None means CLIP's own.
            options: ``clean`` and ``additional_special_tokens`` of open_clip.
        """
        from tagclip.modeling.clip.library import open_clip

        # gzip.open, to which it goes, takes files as well as paths.
        options |= {} if merges is None else {"bpe_path": merges}
        self._tokenizer = open_clip.SimpleTokenizer(**options)

    def __len__(self) -> int:
        return len(self._tokenizer.encoder)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = self._tokenizer
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        return [[start, *tokenizer.encode(text), end] for text in texts]

    def cut(self, text: str, row: list[int], limit: int) -> tuple[list[int], str]:
        return [*row[: limit - 1], row[-1]], self.decode(row[limit - 1 : -1]).strip()

    def normalize(self, text: str) -> str:
        return self._tokenizer.clean_fn(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def spelt_words(self, text: str) -> list[str]:
        tokenizer, words, word = self._tokenizer, [], []
        for token in tokenizer.encode(text):
            word.append(token)
            if tokenizer.decoder[token].endswith("</w>"):
                single = sum(len(tokenizer.decode([part]).strip()) < 2 for part in word)
                found = tokenizer.decode(word).strip()
                # A token of its own may be out of reach: merges come in their order.
                is_known = f"{found}</w>" in tokenizer.encoder
                if len(word) > 1 and 2 * single > len(word) and not is_known:
                    words.append(found)
                word = []
        return words

    def lost_text(self, text: str) -> str:
        ids, end = self._tokenizer.encode(text), self._tokenizer.eot_token_id
        if not ids:
            return text
        return self._tokenizer.decode(ids[ids.index(end) :]).strip() if end in ids else ""


class HuggingFaceTokenizer:
    """A tokenizer of transformers, through open_clip's ``HFTokenizer``; no code is executed."""

    def __init__(
        self,
        label: str,
        folder: Path,
        text: Mapping[str, Any],
        *,
        context_length: int,
        vocab_size: int,
    ) -> None:
        """Load it.

        Args:
            label: the model, for messages.
            folder: with the files of the tokenizer.
            text: ``text_cfg`` of the model.
            context_length: ids that the text tower reads.
            vocab_size: ids that it knows.

        Raises:
            ConfigError: the files are damaged, want code to be executed, or are of another model.
            NotInstalledError: transformers is missing.
        """
        # Otherwise transformers looks for another package, or makes a tokenizer without tokens.
        is_model = not (folder / "tokenizer.json").is_file() and any(folder.glob("*.model"))
        check_transformers(label, *["sentencepiece"] * is_model)
        self._label, self._folder, self._limit = label, folder, context_length
        options = dict(text.get("tokenizer_kwargs") or {})
        mode, language = text.get("tokenizer_mode"), options.pop("language", None)
        files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
        for file in files:
            if file.name == "tokenizer_config.json":
                check_no_code(file)
            if file.stat().st_size > _LARGEST_FILE:
                raise self._damaged(f"{file.name} has {file.stat().st_size} bytes")
        try:
            from tagclip.modeling.clip.library import open_clip

            self._open_clip = open_clip.tokenizer.HFTokenizer(
                str(folder), context_length, tokenizer_mode=mode, trust_remote_code=False,
                local_files_only=True, **options,
            )  # fmt: skip
            self._tokenizer = self._open_clip.tokenizer
            if language:
                self._set_language(language)
            self.fingerprint = self._content()
            self.pad_id = self._tokenizer.pad_token_id
            # A tokenizer may fail at the first word that it does not know.
            tried, _ = self._read([_TRIED, _UNKNOWN])
            unknown = tried.count(self._tokenizer.unk_token_id)
            if 2 * unknown >= len(self._without_padding(tried)) - 1:
                raise ValueError(f"most of {_TRIED!r} has no tokens")
        except ConfigError:
            raise
        # Whatever its files make transformers say.
        except Exception as error:
            raise self._damaged(error_text(error)) from error
        if self._tokenizer.vocab_size > vocab_size or max(tried) >= vocab_size:
            raise ConfigError(
                f"{label}: found a tokenizer of {self._tokenizer.vocab_size} tokens in {folder}, "
                f"expected at most {vocab_size}, as the text tower has; name the folder of its own "
                "as MODEL.CLIP.TOKENIZER"
            )
        self._vocab_size = vocab_size
        # Read at its first place: behind it nothing counts.
        self._end = text.get("eos_id", 2) if text.get("pool_type") == "eos" else None
        if self._end is not None and self._end not in tried:
            raise ConfigError(
                f"{label}: found no end token {self._end} (text_cfg.eos_id) among the ids {tried} "
                f"that the tokenizer in {folder} makes of a text, expected one, where the text "
                "tower is read; name the folder of its own as MODEL.CLIP.TOKENIZER"
            )

    def _damaged(self, found: str) -> ConfigError:
        return ConfigError(
            f"{self._label}: the tokenizer in {self._folder} cannot be used ({found}), expected "
            "undamaged files as transformers saves them; fetch it again, or name another folder as "
            "MODEL.CLIP.TOKENIZER"
        )

    def _set_language(self, language: str) -> None:
        known = self._tokenizer.get_vocab()
        if language not in known or not hasattr(self._open_clip, "set_lang_fn"):
            raise self._damaged(f"no language {language!r:.40}")
        self._open_clip.set_language(language)

    def _content(self) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        content = json_text(
            backend.to_str() if backend else sorted(self._tokenizer.get_vocab().items())
        )
        others = [getattr(self._tokenizer, key, None) for key in _ATTRIBUTES]
        special = json_text(others, default=str, sort_keys=True)
        return hashlib.sha256(f"{content}{special}".encode()).hexdigest()

    def _read(self, texts: Sequence[str]) -> list[list[int]]:
        """Rows of the context length, padding included."""
        return self._open_clip(list(texts), self._limit).tolist()

    def _without_padding(self, row: list[int]) -> list[int]:
        length = len(row)
        while length > 1 and row[length - 1] == self.pad_id:
            length -= 1
        return row[:length]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        rows = [self._without_padding(row) for row in self._read(texts)]
        for row, text in zip(rows, texts, strict=True):
            if max(row) >= self._vocab_size:
                raise ConfigError(
                    f"{self._label}: the tokenizer in {self._folder} makes the id {max(row)} of "
                    f"{text!r:.80}, expected one below {self._vocab_size}, as the text tower has; "
                    "name the folder of its own as MODEL.CLIP.TOKENIZER"
                )
        clips = self._open_clip.tokenizer_mode == "clips"
        whole = self._encoded(texts, add_special_tokens=not clips)["input_ids"]
        if clips:
            # Start, end and class token.
            whole = [[0, *ids, 0, 0] for ids in whole]
        return [a if len(a) > self._limit else b for a, b in zip(whole, rows, strict=True)]

    def _encoded(self, text: str | Sequence[str], **options: Any) -> Mapping[str, Any]:
        """What transformers makes of a text, or of each of several, of any length."""
        options = {"truncation": False, "padding": False, "verbose": False} | options
        clean = self._open_clip.clean_fn
        texts = clean(text) if isinstance(text, str) else [clean(one) for one in text]
        return self._tokenizer(texts, **options)

    def cut(self, text: str, row: list[int], limit: int) -> tuple[list[int], str]:
        kept = self._without_padding(self._read([text])[0])
        special = len(row) - len(self._encoded(text, add_special_tokens=False)["input_ids"])
        pieces = self._pieces(text)
        cleaned = self._open_clip.clean_fn(text)
        if pieces is None:
            return kept, self.decode(row[limit - special :])
        first = limit - special
        return kept, cleaned[pieces[first][1] :].strip() if first < len(pieces) else ""

    def normalize(self, text: str) -> str:
        text = self._open_clip.clean_fn(text)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None and backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        return " ".join(text.replace("▁", " ").split())

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def _pieces(self, text: str) -> list[tuple[int, int, int]] | None:
        """(Id, begin, end) of each token in the text that `clean_fn` makes; None if unknown."""
        if not self._tokenizer.is_fast:
            return None
        found = self._encoded(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return [(i, *span) for i, span in pairs]

    def spelt_words(self, text: str) -> list[str]:
        cleaned, tokenizer = self._open_clip.clean_fn(text), self._tokenizer
        begin, words = 0, []
        # What marks the beginning of a word is no part of it.
        pieces = [
            piece for piece in self._pieces(text) or ()
            if tokenizer.convert_ids_to_tokens(piece[0]).strip(_MARKS)
            or piece[0] == tokenizer.unk_token_id
        ]  # fmt: skip
        for word in cleaned.split():
            begin = cleaned.index(word, begin)
            end = begin + len(word)
            spans = [(b, e) for _, b, e in pieces if b < end and e > begin]
            single = sum(_is_letter(cleaned, span, spans) for span in spans)
            is_word = any(map(str.isalpha, word))
            if is_word and len(spans) > 1 and 2 * single > len(spans):
                words.append(word)
            begin = end
        return words

    def lost_text(self, text: str) -> str:
        pieces, cleaned = self._pieces(text), self._open_clip.clean_fn(text)
        ids = self._encoded(text, add_special_tokens=False)["input_ids"]
        unknown = self._tokenizer.unk_token_id
        if not ids or all(i == unknown for i in ids):
            return text
        if pieces is None:
            return ""
        if self._end in ids:
            return cleaned[pieces[ids.index(self._end)][1] :].strip()
        return " ".join(cleaned[b:e].strip() for i, b, e in pieces if i == unknown)


def _is_letter(text: str, span: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    """Whether a token stands for one letter, or for a part of a character."""
    piece = text[slice(*span)].strip()
    return len(piece) < 2 and (piece < _FIRST_SYLLABLE or spans.count(span) > 1)


def check_transformers(label: str, *packages: str) -> None:
    """Look for transformers and for other packages of the extra ``hf``, without importing them.

    Raises:
        NotInstalledError: one is missing.
    """
    for package in ("transformers", *packages):
        if importlib.util.find_spec(package) is None:
            raise NotInstalledError(
                f"{label}: found no {package}, expected the packages of the extra hf, which read "
                "the tokenizer of this model; run: pip install transformers sentencepiece protobuf"
            )


def check_no_code(file: Path) -> dict[str, Any]:
    """Return a json of transformers, unless it asks for code of its repository.

    Raises:
        ConfigError: it does, or is none.
    """
    try:
        content = load_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: cannot be read ({error_text(error)}), expected a json of transformers; fetch "
            "it again, or name another folder as MODEL.CLIP.TOKENIZER"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file}: found a {type(content).__name__}, expected a json object of transformers; "
            "fetch it again, or name another folder as MODEL.CLIP.TOKENIZER"
        )
    if "auto_map" in content:
        raise ConfigError(
            f"{file}: found auto_map, which names code to execute, expected a tokenizer and text "
            "tower of transformers itself; name the folder of such as MODEL.CLIP.TOKENIZER"
        )
    return content
