"""ABX: how often a phone is nearer to another token of itself than to a token of another phone.

The minimal-pair task of Schatz 2016, "ABX-discriminability measures and applications", as Libri-Light takes it
(arXiv 1912.07875, section 4.1): of tokens A and X of one phone and B of another, an error is d(B, X) < d(A, X), half
an error where they are equal. Tokens are compared within a context: they are triphones that differ in their middle
alone, and a token's frames are those of the whole triphone. Without regard to the context ("any") a token's frames are
those of the phone alone (arXiv 2210.15775, section 2). A and B are of one speaker; X is of the same one, or of another
("across").

The error is averaged over the triples of a cell (two phones, a context, a speaker or two), then over contexts and the
speakers of X, then over the speakers of A and B, then over ordered pairs of phones: frequent ones count no more than
rare ones.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.core.seeds import numpy_generator
from ossicle.core.shapes import Float
from ossicle.data.utterance import Phone, Utterance
from ossicle.ops.dtw import FrameDistance, angular, stretch_distances

SILENCES = frozenset({"_", "", "sil", "sp", "spn", "SIL", "SP", "SPN"})
_NONE = ""  # stands beside an utterance's first and last phone


@dataclass(frozen=True, slots=True)
class Token:
    """One spoken phone.

    Args:
        phone: Its symbol, with its language.
        context: The symbols before and after it, empty where contexts are not told apart.
        speaker: Who says it.
        start: First of its frames among all frames.
        length: How many it has.
    """

    phone: str
    context: str
    speaker: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class AbxSetting:
    """Which tokens are compared.

    Args:
        across_speakers: Whether X is of another speaker than A and B.
        any_context: Whether phones are compared without regard to their neighbours.
        most_tokens: Tokens of one phone, context and speaker that are looked at.
        most_speakers: Other speakers that X is taken from, for each speaker of A and B.
        seed: Draws them where there are more.
    """

    across_speakers: bool = False
    any_context: bool = False
    most_tokens: int = 10
    most_speakers: int = 5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class AbxResult:
    """An ABX error.

    Args:
        error: In [0, 1]; 0.5 is chance.
        pairs: The error of each ordered pair of phones (of A and of B).
        cells: Averaged triples' cells.
        triples: Triples in all cells.
    """

    error: float
    pairs: dict[tuple[str, str], float]
    cells: int
    triples: int


@dataclass(frozen=True, slots=True)
class _Cell:
    """Tokens of A and X, and of B: numbers of tokens; X are A's own where the speaker is one."""

    context: str
    speakers: tuple[str, str]
    phones: tuple[str, str]
    a: tuple[int, ...]
    b: tuple[int, ...]
    x: tuple[int, ...]


def tokens_of(
    utterances: Sequence[Utterance], counts: Sequence[int], clock: FrameClock, *, any_context: bool
) -> list[Token]:
    """The spoken phones of utterances whose frames stand end to end.

    Frames belong to a stretch when their centres lie in it. Silences are no tokens, and are contexts like any other.

    Args:
        utterances: With timed phones; those without give no token.
        counts: Frames of each utterance.
        clock: The clock of the frames.
        any_context: Whether a token is the phone alone, rather than the triphone.
    """
    found: list[Token] = []
    first = 0
    for utterance, count in zip(utterances, counts, strict=True):
        outer = Phone(0, 0, _NONE)
        padded = [outer, *utterance.phones, outer]
        for before, phone, after in zip(padded, padded[1:], padded[2:], strict=False):
            if phone.symbol in SILENCES:
                continue
            stretch = (phone.start, phone.end) if any_context else _triphone(before, phone, after)
            low, high = (min(count, max(0, _frame_at(clock, sample))) for sample in stretch)
            if high > low:
                context = "" if any_context else f"{before.symbol}\x1f{after.symbol}"
                name = f"{utterance.language}\x1f{phone.symbol}"
                language_context = f"{utterance.language}\x1f{context}"
                found.append(Token(name, language_context, utterance.speaker, first + low, high - low))
        first += count
    return found


def comparable(utterances: Sequence[Utterance], setting: AbxSetting) -> bool:
    """Whether utterances hold any two phones that can be compared, as far as can be said without their frames."""
    every_sample = FrameClock()
    ends = [max((phone.end for phone in utterance.phones), default=0) for utterance in utterances]
    return bool(_cells(tokens_of(utterances, ends, every_sample, any_context=setting.any_context), setting))


def abx(
    frames_PD: Float[Tensor, "P D"],
    tokens: Sequence[Token],
    setting: AbxSetting | None = None,
    frame_distance: FrameDistance = angular,
) -> AbxResult:
    """The ABX error of features.

    Args:
        frames_PD: Frames of many utterances end to end, shape (P, D).
        tokens: Spoken phones: :func:`tokens_of`.
        setting: Which are compared.
        frame_distance: Distance of two frames.

    Raises:
        DataError: No two phones can be compared.
    """
    setting = setting or AbxSetting()
    cells = _cells(tokens, setting)
    if not cells:
        raise DataError(
            "no two phones stand between the same neighbours in the mouth of one speaker"
            + (" and of another" if setting.across_speakers else ""),
            "give more audio with timed phones, or compare phones in any context",
        )
    wanted = sorted({(own, x) for cell in cells for own in (*cell.a, *cell.b) for x in cell.x if own != x})
    starts_N = np.array([token.start for token in tokens], dtype=np.int64)
    lengths_N = np.array([token.length for token in tokens], dtype=np.int64)
    pairs_B2 = np.array(wanted, dtype=np.int64).reshape(-1, 2)
    distances = stretch_distances(frames_PD, starts_N, lengths_N, pairs_B2, frame_distance).tolist()
    known = dict(zip(wanted, distances, strict=True))
    return _averaged(cells, known)


def _frame_at(clock: FrameClock, sample: float) -> int:
    """The first frame whose centre is not before a sample."""
    return math.ceil((sample - clock.centre_samples(0)) / clock.stride_samples)


def _triphone(before: Phone, phone: Phone, after: Phone) -> tuple[int, int]:
    start = phone.start if before.symbol == _NONE else before.start
    end = phone.end if after.symbol == _NONE else after.end
    return start, end


def _cells(tokens: Sequence[Token], setting: AbxSetting) -> list[_Cell]:
    groups: dict[str, dict[str, dict[str, list[int]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for number, token in enumerate(tokens):
        groups[token.context][token.speaker][token.phone].append(number)
    cells: list[_Cell] = []
    for context, speakers in sorted(groups.items()):
        drawn = {
            speaker: {phone: _drawn(found, setting, context, speaker, phone) for phone, found in sorted(phones.items())}
            for speaker, phones in sorted(speakers.items())
        }
        for speaker, phones in drawn.items():
            for a in phones:
                for b in phones:
                    if a != b:
                        cells += _cells_of(context, speaker, (a, b), drawn, setting)
    return cells


def _cells_of(
    context: str,
    speaker: str,
    phones: tuple[str, str],
    drawn: dict[str, dict[str, tuple[int, ...]]],
    setting: AbxSetting,
) -> list[_Cell]:
    a, b = (drawn[speaker][phone] for phone in phones)
    if not setting.across_speakers:
        return [_Cell(context, (speaker, speaker), phones, a, b, a)] if len(a) > 1 else []
    others = [other for other, found in drawn.items() if other != speaker and phones[0] in found]
    if len(others) > setting.most_speakers:
        order = numpy_generator(setting.seed, "abx speakers", context, speaker, *phones).permutation(len(others))
        others = [others[place] for place in sorted(order[: setting.most_speakers].tolist())]
    return [_Cell(context, (speaker, other), phones, a, b, drawn[other][phones[0]]) for other in others]


def _drawn(found: list[int], setting: AbxSetting, *names: str) -> tuple[int, ...]:
    if len(found) <= setting.most_tokens:
        return tuple(found)
    order = numpy_generator(setting.seed, "abx tokens", *names).permutation(len(found))
    return tuple(found[place] for place in sorted(order[: setting.most_tokens].tolist()))


def _averaged(cells: Sequence[_Cell], known: dict[tuple[int, int], float]) -> AbxResult:
    by_context: dict[tuple[tuple[str, str], str], list[float]] = defaultdict(list)
    triples = 0
    for cell in cells:
        error, count = _error(cell, known)
        by_context[cell.phones, cell.speakers[0]].append(error)
        triples += count
    by_speaker: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (phones, _), errors in by_context.items():
        by_speaker[phones].append(float(np.mean(errors)))
    pairs = {phones: float(np.mean(errors)) for phones, errors in by_speaker.items()}
    return AbxResult(float(np.mean(list(pairs.values()))), pairs, len(cells), triples)


def _error(cell: _Cell, known: dict[tuple[int, int], float]) -> tuple[float, int]:
    """The mean error of a cell's triples, and how many there are."""
    same_AX = _matrix(cell.a, cell.x, known)
    other_BX = _matrix(cell.b, cell.x, known)
    wrong_ABX = (other_BX[None] < same_AX[:, None]) + 0.5 * (other_BX[None] == same_AX[:, None])
    kept_AX = np.array([[a != x for x in cell.x] for a in cell.a])
    count = int(kept_AX.sum()) * len(cell.b)
    return float((wrong_ABX * kept_AX[:, None]).sum()) / count, count


def _matrix(rows: Sequence[int], columns: Sequence[int], known: dict[tuple[int, int], float]) -> NDArray[np.float64]:
    return np.array([[known.get((row, column), 0.0) for column in columns] for row in rows])
