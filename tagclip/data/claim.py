"""What a run may claim: its protocol in the light of all trainings behind the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tagclip.data.protocol import Protocol
from tagclip.errors import ProtocolError
from tagclip.structures.provenance import Provenance, Stage
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.text import listed

__all__ = ["Claim", "question"]

# Similar names in one question.
_LISTED = 10
# What a stage may have learned about a class without its masks, see `Stage`.
_TRACES = {
    "pseudo_labels": "learned from pseudo-labels of",
    "positions": "read where pixels are of",
}


@dataclass(frozen=True)
class Claim:
    """Whether zero-shot is the word for a run, and what else its results must say.

    Attributes:
        protocol: of the run.
        provenance: of the model that is trained further or evaluated.
        tested: the class list that it is evaluated on, if it is. What a split of its own calls
            unseen counts as well.
    """

    protocol: Protocol
    provenance: Provenance
    tested: Vocabulary | None = None

    @cached_property
    def _trained(self) -> list[str]:
        """Of the classes that training calls unseen, those that had masks."""
        return self._unseen_with_masks(self.protocol.full) if self.protocol.unseen else []

    @cached_property
    def _trained_elsewhere(self) -> list[str]:
        """Of the classes that the tested list's own split calls unseen, those that had masks."""
        is_other = self._is_other and self.tested.seen is not None
        return self._unseen_with_masks(self.tested) if is_other else []

    @property
    def _is_other(self) -> bool:
        full = self.protocol.full
        return self.tested is not None and self.tested.fingerprint != full.fingerprint

    def _unseen_with_masks(self, vocabulary: Vocabulary) -> list[str]:
        trained = self.provenance.trained(vocabulary)
        flags = zip(vocabulary.names, trained, vocabulary.seen_mask, strict=True)
        return [name for name, has_masks, seen in flags if has_masks and not seen]

    @property
    def trained_unseen(self) -> list[str]:
        """Names of classes that are called unseen and had masks in a training of the model."""
        return list(dict.fromkeys([*self._trained, *self._trained_elsewhere]))

    @property
    def is_zero_shot(self) -> bool | None:
        """Whether no mask of an unseen class has ever trained the model; None if nobody knows."""
        if not self.protocol.unseen or self.trained_unseen:
            return False
        return True if self.provenance.is_complete else None

    @cached_property
    def earlier_traces(self) -> dict[str, list[str]]:
        """What trainings before learned about unseen classes without their masks: -> names."""
        own, unseen, found = self.protocol.stage(), self.protocol.unseen, {}
        for kind, what in _TRACES.items():
            touched = self.provenance.touched(self.protocol.full, kind)
            names = [n for n in touched if n in unseen and n not in getattr(own, kind)]
            if names:
                found[what] = names
        return found

    @property
    def text(self) -> str:
        """`Protocol.summary`, and what all trainings of the model add to it or take from it."""
        text = self.protocol.summary
        if trained := self._trained:
            text += (
                f"; NOT zero-shot: trained on masks of {len(trained)} of the "
                f"{len(self.protocol.unseen)} unseen classes ({', '.join(trained)})"
            )
        if others := self._trained_elsewhere:
            text += (
                f"; by split {self.tested.split} of {self.tested.name} NOT zero-shot: trained on "
                f"masks of {len(others)} of its unseen classes ({', '.join(others)})"
            )
        if not self.provenance.is_complete:
            text += "; ancestry unknown"
        for what, names in self.earlier_traces.items():
            text += f"; a training before {what} {len(names)} unseen classes"
        return text

    @cached_property
    def similar_names(self) -> list[tuple[str, str]]:
        """Pairs of a class without masks and a trained one with names alike: `question` asks."""
        full, unseen = self.protocol.full, set(self.protocol.unseen)
        candidates = [(full, unseen)]
        if self._is_other:
            candidates.append((self.tested, set(self.tested.names)))
        pairs = []
        for vocabulary, names in candidates:
            flags = zip(vocabulary.names, self.provenance.trained(vocabulary), strict=True)
            names -= {name for name, trained in flags if trained}
            pairs += self.provenance.similar(vocabulary, names)
        return list(dict.fromkeys(pairs))

    def record(self) -> dict[str, Any]:
        """What results say about the masks behind them.

        Returns:
            ``protocol`` (`text`), ``zero_shot`` (`is_zero_shot`), ``trained_unseen``,
            ``earlier_traces``, ``similar_names``, ``history`` of the model, and of its last
            training ``start`` (a file name, "" for CLIP, None if unknown) and ``start_sha256``.
        """
        stages = self.provenance.stages
        last = stages[-1] if stages else Stage()
        is_known = self.provenance.is_complete or last.fingerprint
        return {
            "protocol": self.text,
            "zero_shot": self.is_zero_shot,
            "trained_unseen": self.trained_unseen,
            "earlier_traces": self.earlier_traces,
            "similar_names": [list(pair) for pair in self.similar_names],
            "history": self.provenance.history,
            "start": last.start if is_known else None,
            "start_sha256": last.start_sha256 if is_known else None,
        }

    def check(self, weights: str) -> None:
        """Refuse weights that have learned from masks of classes that training calls unseen.

        Args:
            weights: what the message calls them.

        Raises:
            ProtocolError: they have, and DATASETS.ZERO_SHOT.ALLOW_TRAINED_UNSEEN is False.
        """
        if not self._trained or self.protocol.allows_trained_unseen:
            return
        fits = [s for s, v in self.protocol.splits().items() if not self._unseen_with_masks(v)]
        advice = f"take DATASETS.ZERO_SHOT.SPLIT {' or '.join(fits)}, " if fits else ""
        raise ProtocolError(
            f"{weights}: found training on masks of {len(self._trained)} of the "
            f"{len(self.protocol.unseen)} classes that split {self.protocol.full.split!r} calls "
            f"unseen ({', '.join(self._trained)}; {self.provenance.history}), expected none; "
            f"{advice}start from other weights (MODEL.WEIGHTS '' is CLIP), or set "
            "DATASETS.ZERO_SHOT.ALLOW_TRAINED_UNSEEN True: the results are then called not "
            "zero-shot"
        )


def question(pairs: Sequence[Sequence[str]] | None) -> str:
    """Ask about `Claim.similar_names`, which decide nothing; "" if there are none."""
    if not pairs:
        return ""
    shown = listed([f"{own!r} and {other!r}" for own, other in pairs], _LISTED)
    return (
        "is a class without masks one that the weights were trained on, under another name? "
        f"{shown} are similar, which decides nothing; if two are the same, write the one "
        "among the prompts of the other"
    )
