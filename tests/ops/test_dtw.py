import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from ossicle.ops.dtw import angular, cosine, dtw, stretch_distances


def brute_force(distances: np.ndarray) -> float:
    """Cost and steps cell by cell, then the way back, as the definition goes."""
    rows, columns = distances.shape
    cost = np.zeros((rows, columns))
    for t in range(rows):
        for u in range(columns):
            before = [cost[p] for p in ((t - 1, u - 1), (t, u - 1), (t - 1, u)) if min(p) >= 0]
            cost[t, u] = distances[t, u] + (min(before) if before else 0)
    t, u, steps = rows - 1, columns - 1, 1
    while t or u:
        ways = [(cost[p], order, p) for order, p in enumerate(((t - 1, u - 1), (t, u - 1), (t - 1, u))) if min(p) >= 0]
        _, _, (t, u) = min(ways)
        steps += 1
    return float(cost[-1, -1] / steps)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8), st.integers(0, 2**20))
def test_batched_warping_equals_loops_in_float64(shapes: list[tuple[int, int]], seed: int) -> None:
    draws = np.random.default_rng(seed)
    padded = np.full((len(shapes), max(t for t, _ in shapes), max(u for _, u in shapes)), 77.0)
    expected = []
    for place, (t, u) in enumerate(shapes):
        padded[place, :t, :u] = draws.random((t, u))
        expected.append(brute_force(padded[place, :t, :u]))
    first, second = torch.tensor(shapes).T
    np.testing.assert_allclose(dtw(torch.from_numpy(padded), first, second).numpy(), expected, rtol=1e-12)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**20))
def test_equal_steps_are_taken_in_the_stated_order(t: int, u: int, seed: int) -> None:
    distances = np.random.default_rng(seed).integers(0, 3, (t, u)).astype(np.float64)  # many ways cost the same
    found = dtw(torch.from_numpy(distances)[None], torch.tensor([t]), torch.tensor([u]))
    assert float(found[0]) == pytest.approx(brute_force(distances), abs=1e-12)


@pytest.mark.parametrize("block", [2**23, 3000])
@pytest.mark.parametrize("kind", ["angular", "cosine"])
def test_distances_of_stretches_are_those_of_scipys_frame_distances(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossicle.ops.dtw._BLOCK_VALUES", block)
    draws = np.random.default_rng(0)
    frames = draws.normal(size=(200, 16))
    starts, lengths = draws.integers(0, 180, 30), draws.integers(1, 20, 30)
    pairs = draws.integers(0, 30, (100, 2))
    distance = {"angular": angular, "cosine": cosine}[kind]
    found = stretch_distances(torch.from_numpy(frames), starts, lengths, pairs, distance)
    for (one, other), value in zip(pairs, found, strict=True):
        cosines = cdist(
            frames[starts[one] : starts[one] + lengths[one]],
            frames[starts[other] : starts[other] + lengths[other]],
            "cosine",
        )
        frame_distances = np.arccos(np.clip(1 - cosines, -1, 1)) / math.pi if kind == "angular" else cosines
        assert value == pytest.approx(brute_force(frame_distances), abs=1e-7)


def test_a_stretch_is_at_distance_nothing_from_itself() -> None:
    frames = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = stretch_distances(frames, np.array([3]), np.array([9]), np.array([[0, 0]]), cosine)
    assert found[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_what_a_cpu_finds() -> None:
    # in float64, since the arc cosine makes 1e-4 of the rounding in float32 of a frame's cosine with itself
    frames = torch.randn(300, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = np.random.default_rng(0)
    starts, lengths, pairs = draws.integers(0, 280, 40), draws.integers(1, 20, 40), draws.integers(0, 40, (200, 2))
    ours = stretch_distances(frames.cuda(), starts, lengths, pairs)
    np.testing.assert_allclose(ours, stretch_distances(frames, starts, lengths, pairs), atol=1e-7)
