"""Class vectors from CLIP's text tower: encoded once, cached in memory and on disk."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Sequence
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn

from tagclip.config.checks import check_value
from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.clip.source import CLIPSource
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_class import format_names
from tagclip.utils.files import expand_path, write_atomic
from tagclip.utils.stepping import pause_point
from tagclip.utils.text import error_text, json_text, shortened
from tagclip.utils.untrusted import check_zip

__all__ = ["TextBank", "class_maximum", "prompt_templates"]

logger = logging.getLogger(__name__)

# A name that is a prompt already.
_PROMPT = re.compile(r"\b(?:photo|photograph|picture|image)s? of (?:(?:an?|the) )?(.+)", re.I)
# Characters of a name in a log line.
_SHOWN = 80
# Vocabularies in memory: a long-running server must not grow with every list of words.
_KEPT = 64
# How far the length of a float32 unit vector may be from 1.
_UNIT_TOLERANCE = 1e-5


@cache
def _template_sets() -> dict[str, Any]:
    file = resources.files("tagclip.modeling.clip") / "prompt_templates.json"
    return json.loads(file.read_text(encoding="utf-8"))


def prompt_templates(choice: str | Sequence[str]) -> tuple[str, ...]:
    """Return the templates of a named set, or check a list of them.

    Raises:
        ConfigError: there is no such set, or a template does not hold exactly one ``{}``.
    """
    if isinstance(choice, str):
        sets = _template_sets()
        if choice not in sets:
            raise ConfigError(
                f"MODEL.CLIP.TEMPLATES: found {choice!r}, expected one of {', '.join(sets)} "
                "or a list of templates"
            )
        choice = sets[choice]["templates"]
    wrong = [template for template in choice if template.count("{}") != 1]
    if wrong or not choice:
        raise ConfigError(
            f"MODEL.CLIP.TEMPLATES: found {wrong[0] if wrong else 'an empty list'!r}, expected "
            "templates with exactly one {} each"
        )
    return tuple(choice)


class TextBank(nn.Module):
    """`Vocabulary` -> class vectors. Holds no parameters and never enters a checkpoint.

    The vector of a prompt name is the mean of its unit template vectors, made unit again, that of
    a class the mean over its prompt names, made unit again (CLIP's prompt ensembling, arXiv
    2103.00020). With ``synonyms`` "max" every prompt name keeps a vector of its own, and the
    logits that come of them are brought together by `class_maximum`.
    """

    @configurable
    def __init__(
        self,
        *,
        source: CLIPSource,
        templates: Sequence[str],
        synonyms: str = "mean",
        batch_size: int = 256,
        cache_dir: str = "",
    ) -> None:
        """Prepare; the text tower is built at the first vocabulary that is in no cache.

        Args:
            source: the CLIP model.
            templates: prompts with one ``{}`` each.
            synonyms: what unites the prompt names of a class, "mean" or "max".
            batch_size: prompts per text forward.
            cache_dir: folder of encoded vocabularies; "" keeps them in memory only.
        """
        super().__init__()
        check_value("MODEL.CLIP.SYNONYMS", synonyms)
        self.source, self.templates = source, prompt_templates(templates)
        self.synonyms = synonyms
        self.batch_size, self.cache_dir = batch_size, cache_dir
        self.num_text_forwards = 0
        self._encoded: dict[str, Tensor] = {}
        self.register_buffer("_where", torch.empty(0), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "source": CLIPSource.from_config(cfg),
            "templates": cfg.MODEL.CLIP.TEMPLATES,
            "synonyms": cfg.MODEL.CLIP.SYNONYMS,
            "batch_size": cfg.MODEL.CLIP.TEXT_BATCH,
            "cache_dir": cfg.MODEL.CLIP.TEXT_CACHE,
        }

    def forward(self, vocabulary: Vocabulary) -> Tensor:
        """Return float32 unit vectors on the bank's device.

        Returns:
            (K, D), one row per class; with "max" (P, D), one per prompt name, class after class.
        """
        key = self.fingerprint(vocabulary)
        vectors = self._encoded.get(key)
        if vectors is None:
            names = list(dict.fromkeys(name for names in vocabulary.prompts for name in names))
            self._show_misread(names)
            vectors = self._read_cache(key, len(self._rows(vocabulary)))
            if vectors is not None:
                longest = max(self.templates, key=lambda text: len(self.source.tokenize([text])[0]))
                self._token_ids([longest.replace("{}", name) for name in names])
        if vectors is None:
            vectors = self._encode(self._rows(vocabulary))
            self._write_cache(key, vectors)
        vectors = self._encoded[key] = vectors.to(self._where.device)
        for oldest in list(self._encoded)[:-_KEPT]:
            self._encoded.pop(oldest, None)
        return vectors

    def class_vectors(self, vocabulary: Vocabulary) -> Tensor:
        """Return (K, D) float32 unit vectors, one per class whatever ``synonyms`` says."""
        vectors = self(vocabulary)
        if self.prompt_rows(vocabulary) is None:
            return vectors
        groups = vectors.split([len(names) for names in vocabulary.prompts])
        return _unit(torch.stack([group.mean(dim=0) for group in groups]))

    def prompt_rows(self, vocabulary: Vocabulary) -> Tensor | None:
        """Say which rows of `forward` belong to which class.

        Returns:
            (K, M) int64 for `class_maximum`, M the most prompt names that a class has; a class
            with fewer repeats its last one. None where every row is a class.
        """
        return self._prompt_rows([len(names) for names in vocabulary.prompts])

    def _prompt_rows(self, counts: Sequence[int]) -> Tensor | None:
        if self.synonyms == "mean" or max(counts) == 1:
            return None
        ends = torch.tensor(counts).cumsum(0)
        rows = (ends - torch.tensor(counts))[:, None] + torch.arange(max(counts))
        return rows.minimum(ends[:, None] - 1).to(self._where.device)

    def with_part(
        self, vocabulary: Vocabulary, known: Vocabulary, part: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the vectors of a list and, behind them, of some classes of another one.

        Each list is encoded as a whole, once: asked for other words, the other one stays.

        Args:
            vocabulary: K classes.
            known: S classes.
            part: (S,) bool, the E of them that are wanted.

        Returns:
            `forward` and `prompt_rows` of K + E classes.
        """
        flags, counts = part.tolist(), [len(names) for names in known.prompts]
        rows = counts if self.synonyms == "max" else [1] * len(counts)
        wanted = torch.repeat_interleave(part, torch.tensor(rows, device=part.device))
        kept = [count for count, flag in zip(counts, flags, strict=True) if flag]
        own = [len(names) for names in vocabulary.prompts]
        return torch.cat([self(vocabulary), self(known)[wanted]]), self._prompt_rows([*own, *kept])

    def _rows(self, vocabulary: Vocabulary) -> tuple[tuple[str, ...], ...]:
        """The prompt names of each row of `forward`."""
        if self.synonyms == "mean":
            return vocabulary.prompts
        return tuple((name,) for names in vocabulary.prompts for name in names)

    def fingerprint(self, vocabulary: Vocabulary) -> str:
        """sha256 (hex) of all that the vectors depend on: weights, model, templates, prompts."""
        content = [
            self.source.sha256,
            self.source.config,
            self.templates,
            self._rows(vocabulary),
            *self.source.text_content,
        ]
        return hashlib.sha256(json_text(content, sort_keys=True).encode()).hexdigest()

    @torch.no_grad()
    def _encode(self, groups: Sequence[Sequence[str]]) -> Tensor:
        """Prompt names of each row -> (rows, D)."""
        names = list(dict.fromkeys(name for prompts in groups for name in prompts))
        logger.info("Encoding %d names with %d templates each", len(names), len(self.templates))
        # Names are data: no format directives inside them.
        texts = [template.replace("{}", name) for name in names for template in self.templates]
        with torch.autocast(self._where.device.type, enabled=False):
            vectors = self._encode_texts(texts)
            self._check_directions(texts, vectors)
            vectors = _unit(_unit(vectors).view(len(names), len(self.templates), -1).mean(dim=1))
            index = {name: i for i, name in enumerate(names)}
            rows = [vectors[[index[n] for n in prompts]] for prompts in groups]
            return _unit(torch.stack([row.mean(dim=0) for row in rows]))

    def _check_directions(self, texts: Sequence[str], vectors: Tensor) -> None:
        """Refuse what has no direction, which would make every score of its class nan.

        Raises:
            CheckpointError: names the first such prompt.
        """
        lengths = vectors.norm(dim=-1)
        # Written so that a length that is not a number fails it, too.
        wrong = (~((lengths > 0) & (lengths < torch.inf))).tolist()
        if any(wrong):
            first, pretrained = wrong.index(True), self.source.pretrained
            raise CheckpointError(
                f"{self.source.path or self.source.name}: CLIP's text tower gives the prompt "
                f"{_short(texts[first])} a vector of length {lengths[first]:g}, expected a finite "
                "one above 0; the weights of its text tower are damaged: name others as "
                f"MODEL.CLIP.PRETRAINED (found {pretrained!r:.80})"
            )

    def _show_misread(self, names: Sequence[str]) -> None:
        """Log once what is read otherwise than it is written, hardly known, or lost."""
        tokenizer = self.source.tokenizer
        show = partial(log_first_n, key="message", name=__name__)
        for name in names:
            read = tokenizer.normalize(name)
            if read.lower() != name.lower():
                show(logging.INFO, f"CLIP reads the name {_short(name)} as {_short(read)}")
            if lost := tokenizer.lost_text(name):
                show(
                    logging.WARNING,
                    f"The name {_short(name)}: CLIP's text tower reads nothing of {_short(lost)}; "
                    "use other words",
                )
            elif found := _PROMPT.search(name):
                prompt = self.templates[0].replace("{}", name)
                show(
                    logging.WARNING,
                    f"The name {_short(name)}: templates are put around names, which makes "
                    f"{_short(prompt)} of it; give the name alone, {_short(found[1])}",
                )
        if spelt := {word for name in names for word in tokenizer.spelt_words(name)}:
            short = format_names(shortened(word, _SHOWN) for word in spelt)
            show(
                logging.WARNING,
                "CLIP's tokenizer has no tokens for these words and spells them letter by letter, "
                f"so that its text tower hardly knows them: {short}; use other words",
            )

    def _encode_texts(self, texts: list[str]) -> Tensor:
        """(T,) prompts -> (T, D), in chunks, each truncated to its longest prompt where padding
        changes nothing."""
        tower = self.source.text_tower().to(self._where.device)
        ids = self._token_ids(texts)
        vectors = []
        for start in range(0, len(ids), self.batch_size):
            pause_point()
            chunk = ids[start : start + self.batch_size]
            length = tower.length(chunk)
            padded = [row + [self.source.tokenizer.pad_id] * (length - len(row)) for row in chunk]
            vectors.append(tower(torch.tensor(padded, device=self._where.device)))
            self.num_text_forwards += 1
        return torch.cat(vectors)

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        limit, ids = self.source.context_length, self.source.tokenize(texts)
        for i, row in enumerate(ids):
            if len(row) > limit:
                ids[i], lost = self.source.tokenizer.cut(texts[i], row, limit)
                logger.warning(
                    "Prompt %s has %d tokens, CLIP reads %d: %s is lost; use a shorter name",
                    _short(texts[i]), len(row), limit, _short(lost),
                )  # fmt: skip
        return ids

    def _cache_file(self, key: str) -> Path:
        return Path(expand_path(self.cache_dir)) / f"{key}.npz"

    def _read_cache(self, key: str, num_classes: int) -> Tensor | None:
        if not self.cache_dir:
            return None
        path = self._cache_file(key)
        # Path.is_file raises on names that no file can have.
        if not os.path.isfile(path):
            return None
        try:
            check_zip(path)
            with np.load(path, allow_pickle=False) as file:
                vectors, checksum = file["vectors"], file["sha256"]
            size = (num_classes, self.source.config["embed_dim"])
            if vectors.shape != size or vectors.dtype != np.float32:
                raise ValueError(f"{vectors.dtype} {vectors.shape} instead of float32 {size}")
            # Written so that vectors that are not finite fail it, too.
            if not (abs(np.linalg.norm(vectors, axis=1) - 1) <= _UNIT_TOLERANCE).all():
                raise ValueError("not of length 1")
            if not np.array_equal(checksum, _checksum(key, vectors)):
                raise ValueError("another checksum than that of its content")
        # What zipfile, its decompressors and numpy raise on damaged, unsafe and foreign files is
        # listed nowhere.
        except Exception as error:
            found = shortened(error_text(error), 200)
            logger.warning("%s: damaged (%s); encoding anew", path, found)
            return None
        return torch.from_numpy(vectors)

    def _write_cache(self, key: str, vectors: Tensor) -> None:
        if not self.cache_dir:
            return
        content = io.BytesIO()
        array = vectors.cpu().numpy()
        np.savez(content, vectors=array, sha256=_checksum(key, array))
        try:
            write_atomic(self._cache_file(key), content.getbuffer())
        # A zero byte is a ValueError.
        except (OSError, ValueError) as error:
            logger.warning(
                "MODEL.CLIP.TEXT_CACHE %r: cannot be written (%s); every run will encode the "
                "classes anew: choose another folder",
                shortened(self.cache_dir, 300), error,
            )  # fmt: skip


def class_maximum(logits: Tensor, rows: Tensor | None) -> Tensor:
    """Take the highest logit among the prompt names of each class (FC-CLIP, arXiv 2308.02487).

    Args:
        logits: (N, P, h, w), one plane per row of `TextBank.forward`.
        rows: `TextBank.prompt_rows`.

    Returns:
        (N, K, h, w); ``logits`` itself if ``rows`` is None.
    """
    return logits if rows is None else logits[:, rows].amax(dim=2)


def _short(text: str) -> str:
    return repr(shortened(text, _SHOWN))


def _checksum(key: str, vectors: np.ndarray) -> np.ndarray:
    """Binds vectors to what they are of: a whole file under another's name does not pass either."""
    content = key.encode() + np.ascontiguousarray(vectors).tobytes()
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)
