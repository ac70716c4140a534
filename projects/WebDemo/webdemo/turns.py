"""Who may work when: one request at a time, in short turns, each within its time and memory.

All visitors share one model. Their requests take turns between the steps of the work (batches of
windows and of prompts, parts of the work on logits, see `tagclip.utils.stepping`): of the address
that has had the least time, whoever of its visitors has had the least goes on. Large pictures are
decoded and encoded beside that, one at a time, in the same order. Knows neither a model nor a page.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tagclip.errors import TagCLIPError
from tagclip.utils.stepping import between_steps

__all__ = ["Place", "RequestError", "Turn", "Turns", "current_turn"]

_MIB = 2**20
# Of the memory and of the places, at most, for all visitors of one address.
_SHARE = 0.75
# Requests that read or write a picture at a time.
_ASIDE = 2
# How often, in seconds, a request that waits looks whether it is still wanted.
_LOOK = 0.2


class RequestError(TagCLIPError):
    """A request asks for more than there is, takes too long, or nobody waits for it any more."""


class Turn:
    """One request: waits for its turn and for memory. By itself it is alone and waits for nothing.

    Attributes:
        used: seconds of work so far, at its first step at least those of the request that has had
            the fewest at its address: who comes later neither starves others nor waits for what
            they had.
        held: bytes of memory that the request has reserved.
    """

    used = 0.0
    held = 0

    @contextmanager
    def work(self) -> Iterator[None]:
        """Work on the model; others have their turns between the steps.

        Raises:
            RequestError: the time is over, or nobody waits for the result.
        """
        yield

    @contextmanager
    def work_aside(self) -> Iterator[None]:
        """Work beside the model: read or write a picture, in one step; not within `work`.

        One request of an address at a time, and two of all.

        Raises:
            RequestError: as `work`.
        """
        yield

    def check(self) -> None:
        """See to it that somebody waits for the result, and may still.

        Raises:
            RequestError: as `work`.
        """

    def reserve(self, nbytes: int) -> None:
        """Wait for memory in addition to what this request holds, which ends with it.

        Args:
            nbytes: an estimate; may be more than it will be.

        Raises:
            RequestError: it is more than a request may take, the time is over, or nobody waits.
        """


_CURRENT: ContextVar[Turn] = ContextVar("turn", default=Turn())  # noqa: B039


def current_turn() -> Turn:
    """Return the turn of the request that this thread works for."""
    return _CURRENT.get()


class _SharedTurn(Turn):
    def __init__(
        self, turns: Turns, visitor: str, is_abandoned: Callable[[], bool], address: str
    ) -> None:
        self._turns, self.visitor, self._is_abandoned = turns, visitor, is_abandoned
        self.address = address
        self._began, self.held = turns.clock(), 0
        self._step_began = 0.0

    def check(self) -> None:
        if self._turns.is_ending:
            raise RequestError("request: found the page ending, expected it to go on; ask it later")
        if self._is_abandoned():
            raise RequestError("request: found nobody waiting for it, expected somebody; ask again")
        seconds = self._turns.seconds
        if self._turns.clock() - self._began > seconds:
            raise RequestError(
                f"request: found it unfinished after {seconds:g} seconds, expected less; ask for "
                "fewer words or a smaller image, or try again when fewer people are here"
            )

    def _wait_until(self, is_ready: Callable[[], bool]) -> None:
        """With the condition held."""
        while not is_ready():
            self.check()
            self._turns.changed.wait(_LOOK)
        self.check()

    def _catch_up(self) -> None:
        """Who has waited for something else has no claim to the time of meanwhile."""
        others, times = self._turns.others(self), self._turns.times
        here = [each.used for each in others if each.address == self.address]
        self.used = max(self.used, min(here, default=0.0))
        elsewhere = [times[each.address] for each in others if each.address != self.address]
        times[self.address] = max(times[self.address], min(elsewhere, default=0.0))

    def _take(self, place: Place) -> None:
        turns = self._turns
        place.waiting.append(self)
        try:
            self._wait_until(lambda: min(place.ready(), key=turns.used, default=None) is self)
            place.working.append(self)
            self._step_began = turns.clock()
        finally:
            place.waiting.remove(self)
            turns.changed.notify_all()

    def _hand_on(self, place: Place) -> None:
        seconds = self._turns.clock() - self._step_began
        self.used += seconds
        self._turns.times[self.address] += seconds
        place.working.remove(self)
        self._turns.changed.notify_all()

    def _step(self) -> None:
        with self._turns.changed:
            self._hand_on(self._turns.model)
            self._take(self._turns.model)

    @contextmanager
    def _at(self, place: Place) -> Iterator[None]:
        with self._turns.changed:
            self._catch_up()
            self._take(place)
        try:
            yield
        finally:
            with self._turns.changed:
                if self in place.working:
                    self._hand_on(place)

    @contextmanager
    def work(self) -> Iterator[None]:
        with self._at(self._turns.model), between_steps(self._step):
            yield

    @contextmanager
    def work_aside(self) -> Iterator[None]:
        with self._at(self._turns.aside):
            yield

    def reserve(self, nbytes: int) -> None:
        turns = self._turns
        allowed = turns.memory // 2
        if self.held + nbytes > allowed:
            raise RequestError(
                f"request: found it to need {(self.held + nbytes) // _MIB + 1} MiB, expected at "
                f"most {allowed // _MIB}; ask for fewer words or a smaller image"
            )
        with turns.changed:
            self._wait_until(
                lambda: (
                    turns.held + nbytes <= turns.memory
                    and turns.held_by(self.address) + nbytes <= turns.memory * _SHARE
                )
            )
            turns.held += nbytes
            self.held += nbytes


class Place:
    """Where some requests work at a time, one of an address.

    Attributes:
        working: the requests at work.
        waiting: those that wait for one to hand on.
    """

    def __init__(self, size: int = 1) -> None:
        """Begin empty.

        Args:
            size: requests at a time.
        """
        self._size = size
        self.working: list[_SharedTurn] = []
        self.waiting: list[_SharedTurn] = []

    def ready(self) -> list[_SharedTurn]:
        """Return those that wait for nothing but their turn."""
        if len(self.working) >= self._size:
            return []
        busy = {turn.address for turn in self.working}
        return [turn for turn in self.waiting if turn.address not in busy]


class Turns:
    """All requests.

    A visitor's requests run one after the other, and addresses share the time alike, so that who
    sends many, under whatever names, has no larger share.

    Attributes:
        model: where they work on the model, in steps.
        aside: where they read and write pictures meanwhile.
        is_ending: whether no request goes on any more, see `end`.
        times: address -> seconds of work, as `Turn.used`, of those that have a request here.
    """

    def __init__(
        self,
        memory: int,
        seconds: float,
        per_visitor: int = 4,
        in_all: int = 24,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the limits.

        Args:
            memory: bytes of all requests together; one may take half of it.
            seconds: of a request, waiting included.
            per_visitor: requests of a visitor that may wait or work.
            in_all: requests that may wait or work; three quarters of these places, and of the
                memory, may be taken from one address.
            clock: seconds.
        """
        self.memory, self.seconds, self.clock = memory, seconds, clock
        self._per_visitor, self._in_all = per_visitor, in_all
        self._at_address = max(1, int(in_all * _SHARE))
        self.changed = threading.Condition()
        self.held, self.is_ending = 0, False
        self.model, self.aside = Place(), Place(_ASIDE)
        self.times: defaultdict[str, float] = defaultdict(float)
        self._requests: list[_SharedTurn] = []

    @contextmanager
    def request(
        self, visitor: str, is_abandoned: Callable[[], bool], address: str = ""
    ) -> Iterator[Turn]:
        """Wait until no earlier request of this visitor is left; `current_turn` inside is its turn.

        Args:
            visitor: a name of the visitor.
            is_abandoned: whether nobody waits for the result any more; asked now and then.
            address: where the visitor is.

        Raises:
            RequestError: too many requests wait already, or as `Turn.work`.
        """
        turn = _SharedTurn(self, visitor, is_abandoned, address)
        with self.changed:
            self._admit(turn)
            try:
                turn._wait_until(lambda: self._of(visitor)[0] is turn)
            except RequestError:
                self._leave(turn)
                raise
        token = _CURRENT.set(turn)
        try:
            yield turn
        finally:
            _CURRENT.reset(token)
            with self.changed:
                self._leave(turn)

    def end(self, seconds: float) -> bool:
        """Let every request go at its next step, and no other one begin.

        Args:
            seconds: to wait for them.

        Returns:
            Whether all have gone.
        """
        with self.changed:
            self.is_ending = True
            self.changed.notify_all()
            return self.changed.wait_for(lambda: not self._requests, seconds)

    def others(self, turn: _SharedTurn) -> list[_SharedTurn]:
        """Return the other requests; `changed` is to be held."""
        return [each for each in self._requests if each is not turn]

    def used(self, turn: _SharedTurn) -> tuple[float, float]:
        """Return what decides who goes on: the seconds of its address, and its own."""
        return self.times[turn.address], turn.used

    def held_by(self, address: str) -> int:
        """Return the bytes of an address; `changed` is to be held."""
        return sum(turn.held for turn in self._requests if turn.address == address)

    def _of(self, visitor: str) -> list[_SharedTurn]:
        return [turn for turn in self._requests if turn.visitor == visitor]

    def _admit(self, turn: _SharedTurn) -> None:
        own = len(self._of(turn.visitor))
        if own >= self._per_visitor:
            raise RequestError(
                f"requests: found {own} of yours unfinished, expected fewer than "
                f"{self._per_visitor}; wait for an answer first"
            )
        if len(self._requests) >= self._in_all:
            raise RequestError(
                f"requests: found {len(self._requests)} unfinished, expected fewer than "
                f"{self._in_all}; try again in a moment"
            )
        here, most = sum(each.address == turn.address for each in self._requests), self._at_address
        if here >= most:
            raise RequestError(
                f"requests: found {here} of your address unfinished, expected fewer than {most}; "
                "wait for an answer first"
            )
        self._requests.append(turn)

    def _leave(self, turn: _SharedTurn) -> None:
        self._requests.remove(turn)
        self.held -= turn.held
        if all(each.address != turn.address for each in self._requests):
            self.times.pop(turn.address, None)
        self.changed.notify_all()
