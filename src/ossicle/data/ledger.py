"""What a stream has taken out of its shards and what has been trained on: how an epoch without an index is resumed.

The shards of all epochs stand in one endless sequence; a place in it is a shard in an epoch. Of each place that has
been begun it is known how many utterances were read and which of them are still held, in the shuffle or in a batch that
is not full. Resumed, such a shard is read again from its start, and utterances that were trained on are passed over
before they are decoded: none is skipped, none comes twice.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

Begun = Mapping[int, tuple[int, tuple[int, ...]]]
"""Of each place that has been begun: how many utterances were read, and the ordinals of those that are held."""


class StreamState(TypedDict):
    """Where all streams of a run stand, in plain values.

    Attributes:
        floor: Every place before this one is finished.
        beyond: Places after it that are finished too.
        begun: Place, utterances read and ordinals held, of each place that has been begun.
    """

    floor: int
    beyond: list[int]
    begun: list[list[int | list[int]]]


def start() -> StreamState:
    """Where a run begins."""
    return {"floor": 0, "beyond": [], "begun": []}


@dataclass(frozen=True, slots=True)
class Mark:
    """Where one stream stands after a batch.

    Args:
        finished: Places that were finished since the mark before.
        begun: Places that have been begun and not finished.
    """

    finished: tuple[int, ...]
    begun: Begun


class Ledger:
    """What one stream has taken and given away.

    Args:
        begun: Places that were begun before the run was resumed.
    """

    def __init__(self, begun: Begun) -> None:
        self._read = {place: read for place, (read, _) in begun.items()}
        self._held = {place: set(held) for place, (_, held) in begun.items()}
        self._found: dict[int, set[int]] = {}
        self._ended: set[int] = set()
        self._finished: list[int] = []

    def take(self, place: int, ordinal: int) -> bool:
        """Note that an utterance was read. False where it was trained on before the run was resumed."""
        self._found.setdefault(place, set())
        held = self._held.setdefault(place, set())
        if ordinal < self._read.get(place, 0) and ordinal not in held:
            return False
        self._read[place] = max(self._read.get(place, 0), ordinal + 1)
        self._found[place].add(ordinal)
        held.add(ordinal)
        return True

    def give(self, place: int, ordinal: int) -> None:
        """Note that an utterance went into a batch, or was found to be of no use."""
        self._held[place].discard(ordinal)
        self._found[place].discard(ordinal)
        self._close(place)

    def end(self, place: int) -> None:
        """Note that a shard has been read to its end."""
        self._ended.add(place)
        # what was held before the run was resumed and is not found again has gone with its shard
        self._held[place] = self._found.setdefault(place, set())
        self._close(place)

    def mark(self) -> Mark:
        """Where the stream stands."""
        finished, self._finished = tuple(self._finished), []
        return Mark(finished, {p: (read, tuple(sorted(self._held[p]))) for p, read in self._read.items()})

    def _close(self, place: int) -> None:
        if place in self._ended and not self._held[place]:
            self._ended.discard(place)
            for table in (self._read, self._held, self._found):
                table.pop(place, None)
            self._finished.append(place)


class Progress:
    """Where the streams of one rank stand, by what has been trained on.

    Args:
        state: Where the run stood when it began or was resumed.
        rank: The rank: places p with p mod ``world`` equal to it are its own.
        world: Number of ranks.
    """

    def __init__(self, state: StreamState, rank: int, world: int) -> None:
        self.rank = rank
        self.world = world
        self._floor = first_place(state["floor"], rank, world)
        self._beyond = {place for place in state["beyond"] if place % world == rank}
        self._resumed = {place: value for place, value in begun_of(state).items() if place % world == rank}
        self._begun: dict[int, Begun] = {}
        self._advance()

    def absorb(self, stream: int, mark: Mark) -> None:
        """Note that a batch of a stream was trained on."""
        for place in mark.finished:
            self._beyond.add(place)
            self._resumed.pop(place, None)
        self._begun[stream] = mark.begun
        self._advance()

    def num_finished(self) -> int:
        """Shards that this rank has finished, counted over all epochs."""
        return (self._floor - self.rank) // self.world + len(self._beyond)

    def state(self) -> StreamState:
        """Where this rank stands; ``floor`` is that of its own places."""
        begun = dict(self._resumed)
        for places in self._begun.values():
            begun.update(places)
        plain: list[list[int | list[int]]] = [
            [place, read, list(held)] for place, (read, held) in sorted(begun.items())
        ]
        return {"floor": self._floor, "beyond": sorted(self._beyond), "begun": plain}

    def _advance(self) -> None:
        while self._floor in self._beyond:
            self._beyond.remove(self._floor)
            self._floor += self.world


def merge(states: Sequence[StreamState]) -> StreamState:
    """Where all ranks stand together.

    Args:
        states: What each rank's :meth:`Progress.state` says, in the order of ranks.
    """
    world = len(states)
    floor = min(state["floor"] for state in states)
    beyond: list[int] = []
    for rank, state in enumerate(states):
        beyond += range(first_place(floor, rank, world), state["floor"], world)
        beyond += state["beyond"]
    return {"floor": floor, "beyond": sorted(beyond), "begun": sorted(_flat(state["begun"] for state in states))}


def begun_of(state: StreamState) -> dict[int, tuple[int, tuple[int, ...]]]:
    """The places that a state says have been begun."""
    found: dict[int, tuple[int, tuple[int, ...]]] = {}
    for place, read, held in state["begun"]:
        assert isinstance(place, int)
        assert isinstance(read, int)
        assert isinstance(held, list)
        found[place] = (read, tuple(held))
    return found


def first_place(floor: int, rank: int, world: int) -> int:
    """The first place of a rank from ``floor`` on."""
    return floor + (rank - floor) % world


def _flat(parts: Iterable[list[list[int | list[int]]]]) -> list[list[int | list[int]]]:
    return [entry for part in parts for entry in part]
