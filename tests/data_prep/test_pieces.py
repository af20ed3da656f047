import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.pieces import Limits, _Atoms, cut_pieces, speech_spans
from data_prep.vad import HOP

SECOND = 16_000
LIMITS = Limits(2 * SECOND, 8 * SECOND, SECOND // 4)


@st.composite
def recordings(draw: st.DrawFn, longest_speech: int = 900) -> tuple[list[tuple[int, int]], np.ndarray, int]:
    """Spans of speech that begin and end with frames, levels of frames, and the length in samples."""
    lengths = draw(st.lists(st.tuples(st.integers(7, 300), st.integers(3, longest_speech)), min_size=1, max_size=9))
    spans, frame = [], 0
    for silence, speech in lengths:
        spans.append(((frame + silence) * HOP, (frame + silence + speech) * HOP))
        frame += silence + speech
    frame += draw(st.integers(0, 300))
    levels = np.random.default_rng(draw(st.integers(0, 99))).uniform(-80, -5, frame).astype(np.float32)
    return spans, levels, frame * HOP


@settings(max_examples=200, deadline=None)
@given(recordings(), st.floats(0.5, 4), st.floats(2, 5), st.floats(0, 0.5))
def test_pieces_hold_all_speech_in_the_range_of_lengths(
    recording: tuple[list[tuple[int, int]], np.ndarray, int], min_s: float, ratio: float, pad_s: float
) -> None:
    spans, levels, num_samples = recording
    limits = Limits(round(min_s * SECOND), round(min_s * ratio * SECOND) + 1, round(pad_s * SECOND))
    pieces = cut_pieces(spans, levels, num_samples, limits)
    edges = [0, *itertools.chain.from_iterable(pieces), num_samples]
    assert edges == sorted(edges)
    covered = np.zeros(num_samples, bool)
    for start, end in pieces:
        covered[start:end] = True
        assert end - start <= limits.max_samples
    assert all(covered[start:end].all() for start, end in spans)
    # a piece that is too short has no silence left around it, and joined with a neighbour it would be too long
    speech = [
        (min(b for b in (max(start, a) for a, e in spans if e > start)), max(min(end, e) for a, e in spans if a < end))
        for start, end in pieces
    ]
    for n, (start, end) in enumerate(pieces):
        if end - start < limits.min_samples:
            for one, other in ((n - 1, n), (n, n + 1)):
                if one >= 0 and other < len(pieces):
                    assert speech[other][1] - speech[one][0] > limits.max_samples
            assert num_samples < limits.min_samples or len(pieces) > 1


@settings(max_examples=200, deadline=None)
@given(recordings())
def test_speech_is_cut_only_where_it_is_longer_than_the_longest_piece(
    recording: tuple[list[tuple[int, int]], np.ndarray, int],
) -> None:
    spans, levels, num_samples = recording
    for edge in itertools.chain.from_iterable(cut_pieces(spans, levels, num_samples, LIMITS)):
        inside = [end - start for start, end in spans if start < edge < end]
        assert all(length > LIMITS.max_samples for length in inside)


@settings(max_examples=60, deadline=None)
@given(recordings(longest_speech=240))
def test_the_pieces_are_the_cheapest_of_all_ways_to_cut(
    recording: tuple[list[tuple[int, int]], np.ndarray, int],
) -> None:
    spans, levels, num_samples = recording
    atoms = _Atoms.of(spans, levels, num_samples, LIMITS)
    count = len(spans)
    ways: dict[float, list[tuple[int, int]]] = {}
    for chosen in itertools.product([False, True], repeat=count - 1):
        bounds = [0, *(n + 1 for n, cut in enumerate(chosen) if cut), count]
        parts = list(itertools.pairwise(bounds))
        if all(spans[b - 1][1] - spans[a][0] <= LIMITS.max_samples for a, b in parts):
            ways.setdefault(round(sum(atoms.cost(a, b) for a, b in parts), 6), [atoms.extent(a, b) for a, b in parts])
    assert cut_pieces(spans, levels, num_samples, LIMITS) == ways[min(ways)]


def test_without_a_silence_the_least_energetic_place_is_cut() -> None:
    frames = 12 * SECOND // HOP
    levels = np.full(frames, -20, np.float32)
    levels[170] = -35
    levels[40] = -50  # quieter, but it would leave a rest that is too long
    pieces = cut_pieces([(0, frames * HOP)], levels, frames * HOP, LIMITS)
    assert pieces == [(0, 170 * HOP + HOP // 2), (170 * HOP + HOP // 2, frames * HOP)]


def test_long_speech_without_any_silence_gives_pieces_in_the_range() -> None:
    rng = np.random.default_rng(0)
    for seconds in (8.1, 9, 17, 100):
        frames = round(seconds * SECOND / HOP)
        levels = rng.uniform(-40, -10, frames).astype(np.float32)
        pieces = cut_pieces([(0, frames * HOP)], levels, frames * HOP, LIMITS)
        assert all(LIMITS.min_samples <= end - start <= LIMITS.max_samples for start, end in pieces)
        assert [end for _, end in pieces[:-1]] == [start for start, _ in pieces[1:]]
        assert len(pieces) <= seconds / 8 * 1.5 + 1


def test_long_silences_are_left_out_and_short_ones_kept() -> None:
    def span(start: float, end: float) -> tuple[int, int]:
        return round(start * SECOND), round(end * SECOND)

    levels = np.full(30 * SECOND // HOP, -90, np.float32)
    spans = [span(1, 3), span(3.3, 5), span(12, 14.5), span(20, 20.5)]
    pieces = cut_pieces(spans, levels, 30 * SECOND, LIMITS)
    assert pieces == [span(0.75, 5.25), span(11.75, 14.75), span(19.25, 21.25)]  # the last is widened to 2 s


def test_a_silence_parts_where_it_is_quietest() -> None:
    levels = np.full(400, -60, np.float32)
    levels[:100] = levels[112:] = -20
    levels[103] = -90
    spans = [(0, 100 * HOP), (112 * HOP, 350 * HOP)]
    pieces = cut_pieces(spans, levels, 350 * HOP, Limits(2 * SECOND, 8 * SECOND, SECOND))
    assert pieces[0][1] == pieces[1][0] == 103 * HOP + HOP // 2


def test_speech_begins_and_ends_with_hysteresis() -> None:
    def spans(*probabilities: float, min_silence: int = 2 * HOP) -> list[tuple[int, int]]:
        found = speech_spans(np.array(probabilities, np.float32), len(probabilities) * HOP, 0.5, min_silence)
        return [(start // HOP, end // HOP) for start, end in found]

    assert spans(0, 0.6, 0.4, 0.4, 0.6, 0.3, 0, 0) == [(1, 5)]  # 0.4 begins no speech, and does not end it
    assert spans(0.4, 0.4, 0.4, 0.4) == []
    assert spans(0.9, 0.9, 0.9, 0, 0.9, 0.9, 0.9) == [(0, 7)]  # one frame is no silence
    assert spans(0.9, 0.9, 0.9, 0, 0, 0.9, 0.9, 0.9) == [(0, 3), (5, 8)]
    assert spans(0, 0.9, 0.9, 0, 0, 0) == []  # a click
    assert spans(*[0.0] * 5) == []


@pytest.mark.parametrize("rest", [1, 100, HOP - 1])
def test_speech_ends_where_the_recording_does(rest: int) -> None:
    num_samples = 9 * HOP + rest
    spans = speech_spans(np.full(10, 0.9, np.float32), num_samples, 0.5, HOP)
    assert spans == [(0, num_samples)]
    assert cut_pieces(spans, np.zeros(10, np.float32), num_samples, LIMITS) == [(0, num_samples)]
