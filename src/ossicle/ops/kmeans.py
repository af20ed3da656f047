"""k-means in torch, on any device, in bounded memory: k-means++ on a subsample, then Lloyd's iterations.

Greedy k-means++ (Arthur and Vassilvitskii 2007, with several candidates a step as scikit-learn does) decides most of
the quality, so it is run several times on a subsample, refined there, and the best start is carried to all frames.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ossicle.core.errors import ConfigError
from ossicle.core.seeds import generator
from ossicle.core.shapes import Float

_CHUNK_VALUES = 2**23  # float32 values of one block of distances: 32 MiB
_DRAWN_A_CLUSTER, _FEWEST_DRAWN = 32, 20_000
_REFINED_A_CLUSTER, _FEWEST_REFINED = 128, 20_000
_SPLIT = 0.1  # how far the halves of a split cluster move apart, in its root mean square radius


@dataclass(frozen=True, slots=True)
class KMeans:
    """Fitted centroids.

    Args:
        centroids_VD: Float32, shape (V, D).
        inertia: Mean squared distance of a frame to its centroid.
        iterations: Lloyd iterations over all frames.
        reseeded: Empty clusters that were given a new place on the way.
    """

    centroids_VD: Tensor
    inertia: float
    iterations: int
    reseeded: int


@dataclass(frozen=True, slots=True)
class _Sums:
    """What one pass over the frames adds up, float64: vectors (V, D), counts (V,), squared distances (V,)."""

    vectors_VD: Tensor
    counts_V: Tensor
    inertia_V: Tensor


def assign(
    x_ND: Float[Tensor, "N D"], centroids_VD: Float[Tensor, "V D"], chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each frame.

    The choice is by ||c||^2 - 2 x c in one matrix product; the distance is then taken from the difference itself, which
    does not cancel.

    Args:
        x_ND: Frames, float, shape (N, D).
        centroids_VD: Centroids on the same device, shape (V, D).
        chunk: Frames at a time; None bounds the block of distances to 32 MiB.

    Returns:
        Centroid of each frame, int64, shape (N,), and its squared distance, float32, shape (N,).
    """
    centroids_VD = centroids_VD.float()
    codes_N = torch.empty(len(x_ND), dtype=torch.int64, device=x_ND.device)
    distances_N = torch.empty(len(x_ND), dtype=torch.float32, device=x_ND.device)
    for part, frames in _chunks(x_ND, centroids_VD, chunk):
        codes_N[part], distances_N[part] = _nearest(frames, centroids_VD)
    return codes_N, distances_N


def kmeans(
    x_ND: Float[Tensor, "N D"],
    num_clusters: int,
    *,
    seed: int,
    restarts: int | None = None,
    max_iterations: int = 100,
    tolerance: float = 3e-4,
) -> KMeans:
    """Cluster frames: :func:`start`, then :func:`lloyd`.

    Args:
        x_ND: Frames, float, shape (N, D).
        num_clusters: Clusters (V).
        seed: Determines the result, on one kind of device.
        restarts: Starts that are tried on a subsample; None for 10 where clusters are few, fewer where they are many.
        max_iterations: Most iterations over all frames.
        tolerance: Stop when an iteration lowers the inertia by less than this fraction.

    Raises:
        ConfigError: Fewer frames than clusters.
    """
    centroids_VD = start(x_ND, num_clusters, seed=seed, restarts=restarts)
    return lloyd(x_ND, centroids_VD, seed=seed, max_iterations=max_iterations, tolerance=tolerance)


def start(
    x_ND: Float[Tensor, "N D"], num_clusters: int, *, seed: int, restarts: int | None = None
) -> Float[Tensor, "V D"]:
    """Centroids to start from: the best of several greedy k-means++ draws, each refined on a subsample.

    Args:
        x_ND: Frames, float, shape (N, D).
        num_clusters: Clusters (V).
        seed: Determines the result.
        restarts: Draws to choose from; None for 10 where clusters are few, down to 2 where they are many.

    Raises:
        ConfigError: Fewer frames than clusters.
    """
    if num_clusters < 1 or len(x_ND) < num_clusters:
        raise ConfigError(
            f"{len(x_ND)} frames cannot make {num_clusters} clusters", "give more data, or ask for fewer clusters"
        )
    # With many clusters, one draw is as good as the next: their faults average out.
    restarts = restarts or min(10, max(2, 400 // num_clusters))
    # each draw sees its own frames; all are judged on the same ones, after a few iterations
    judged_ND = _subsample(x_ND, max(_FEWEST_REFINED, _REFINED_A_CLUSTER * num_clusters), seed, "refine")
    best: KMeans | None = None
    for restart in range(restarts):
        drawn_ND = _subsample(x_ND, max(_FEWEST_DRAWN, _DRAWN_A_CLUSTER * num_clusters), seed, f"draw {restart}")
        centroids_VD = _plus_plus(drawn_ND, num_clusters, generator(seed, restart, 0, "kmeans++"))
        tried = lloyd(judged_ND, centroids_VD, seed=seed, max_iterations=4, tolerance=1e-3)
        if best is None or tried.inertia < best.inertia:
            best = tried
    assert best is not None
    return lloyd(judged_ND, best.centroids_VD, seed=seed, max_iterations=30, tolerance=1e-3).centroids_VD


def lloyd(
    x_ND: Float[Tensor, "N D"],
    centroids_VD: Float[Tensor, "V D"],
    *,
    seed: int,
    max_iterations: int = 100,
    tolerance: float = 3e-4,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> KMeans:
    """Move centroids to the means of their frames until the inertia hardly falls.

    A cluster that has lost all frames takes half of the one with the largest inertia.

    Args:
        x_ND: Frames of this rank, float, shape (N, D).
        centroids_VD: Where to start, the same on every rank, shape (V, D).
        seed: Determines how clusters are split.
        max_iterations: Most iterations.
        tolerance: Stop when an iteration lowers the inertia by less than this fraction.
        reduce: Sums a float64 tensor over the ranks, each of which holds other frames; None where this rank is alone.
    """
    centroids_VD = centroids_VD.float()
    sums = _pass(x_ND, centroids_VD, reduce)
    reseeded = 0
    iteration = 0
    for iteration in range(1, max_iterations + 1):
        previous = float(sums.inertia_V.sum())
        moved_VD, split = _moved(centroids_VD, sums, generator(seed, iteration, 0, "kmeans split"))
        reseeded += split
        moved = _pass(x_ND, moved_VD, reduce)
        inertia = float(moved.inertia_V.sum())
        if inertia <= previous or split:
            centroids_VD, sums = moved_VD, moved
        if not split and previous - inertia <= tolerance * previous:
            break
    inertia = float(sums.inertia_V.sum() / sums.counts_V.sum())
    return KMeans(centroids_VD, inertia, iteration, reseeded)


def _pass(x_ND: Tensor, centroids_VD: Tensor, reduce: Callable[[Tensor], Tensor] | None) -> _Sums:
    """Assign every frame and add up, over all ranks."""
    num_clusters, dim = centroids_VD.shape
    # one tensor, so that one reduction serves: vectors, count and inertia side by side
    totals = torch.zeros(num_clusters, dim + 2, dtype=torch.float64, device=x_ND.device)
    for _, frames in _chunks(x_ND, centroids_VD, None):
        codes_N, distances_N = _nearest(frames, centroids_VD)
        columns = torch.cat([frames, torch.ones_like(frames[:, :1]), distances_N[:, None]], 1)
        totals += _sum_by_code(columns, codes_N, num_clusters)
    if reduce is not None:
        totals = reduce(totals)
    return _Sums(totals[:, :dim], totals[:, dim], totals[:, dim + 1])


def _sum_by_code(values_NE: Tensor, codes_N: Tensor, num_clusters: int) -> Tensor:
    """Sum the rows that have each code, shape (V, E): float32 within a chunk, which the caller adds up in float64."""
    if values_NE.is_cuda:
        # atomic additions come in any order; a product with the one-hot codes always in the same
        one_hot_VN = torch.nn.functional.one_hot(codes_N, num_clusters).T.to(values_NE.dtype)
        return one_hot_VN @ values_NE
    return torch.zeros(num_clusters, values_NE.shape[1]).index_add_(0, codes_N, values_NE)


def _moved(centroids_VD: Tensor, sums: _Sums, draws: torch.Generator) -> tuple[Tensor, int]:
    """The means of all clusters; empty ones split those of the largest inertia."""
    means_VD = (sums.vectors_VD / sums.counts_V.clamp(min=1)[:, None]).float()
    moved_VD = torch.where((sums.counts_V > 0)[:, None], means_VD, centroids_VD)
    empty = torch.nonzero(sums.counts_V == 0).flatten()
    if len(empty) == 0:
        return moved_VD, 0
    inertia_V, donors = sums.inertia_V.sort(descending=True, stable=True)
    num_split = min(len(empty), int((inertia_V > 0).sum()))
    empty, donors = empty[:num_split], donors[:num_split]
    directions = torch.nn.functional.normalize(torch.randn(num_split, centroids_VD.shape[1], generator=draws), dim=1)
    radius = (sums.inertia_V[donors] / sums.counts_V[donors]).sqrt().float()
    apart = _SPLIT * radius[:, None] * directions.to(moved_VD.device)
    moved_VD[empty] = moved_VD[donors] + apart
    moved_VD[donors] = moved_VD[donors] - apart
    return moved_VD, num_split


def _plus_plus(x_ND: Tensor, num_clusters: int, draws: torch.Generator) -> Tensor:
    """Greedy k-means++: each next centroid is the best of a few frames drawn by their squared distance."""
    frames_ND, x_ND = x_ND, x_ND - x_ND.mean(0)
    num_candidates = 2 + int(math.log(num_clusters))
    draws_VC = torch.rand(num_clusters, num_candidates, generator=draws, dtype=torch.float64).to(x_ND.device)
    squares_N = x_ND.square().sum(1)
    chosen = torch.empty(num_clusters, dtype=torch.int64, device=x_ND.device)
    chosen[0] = (draws_VC[0, 0] * len(x_ND)).long()
    closest_N = (x_ND - x_ND[chosen[0]]).square().sum(1)
    for number in range(1, num_clusters):
        reached_N = closest_N.double().cumsum(0)
        candidates_C = torch.searchsorted(reached_N, draws_VC[number] * reached_N[-1], right=True).clamp(
            max=len(x_ND) - 1
        )
        distances_NC = torch.addmm(squares_N[:, None], x_ND, x_ND[candidates_C].T, alpha=-2) + squares_N[candidates_C]
        distances_NC = torch.minimum(distances_NC.clamp(min=0), closest_N[:, None])
        best = distances_NC.sum(0, dtype=torch.float64).argmin()
        chosen[number] = candidates_C[best]
        closest_N = distances_NC[:, best]
    return frames_ND[chosen]


def _subsample(x_ND: Tensor, size: int, seed: int, purpose: str) -> Tensor:
    if len(x_ND) <= size:
        return x_ND.float()
    rows = torch.randperm(len(x_ND), generator=generator(seed, 0, 0, f"kmeans {purpose}"))[:size]
    return x_ND[rows.to(x_ND.device)].float()


def _nearest(frames_ND: Tensor, centroids_VD: Tensor) -> tuple[Tensor, Tensor]:
    # about the centroids' mean, so that data far from the origin lose no digits
    offset_D = centroids_VD.mean(0)
    near_VD = centroids_VD - offset_D
    scores_NV = torch.addmm(near_VD.square().sum(1), frames_ND - offset_D, near_VD.T, alpha=-2)
    codes_N = scores_NV.argmin(1)
    return codes_N, (frames_ND - centroids_VD[codes_N]).square().sum(1)


def _chunks(x_ND: Tensor, centroids_VD: Tensor, chunk: int | None) -> Iterator[tuple[slice, Tensor]]:
    size = chunk or max(256, _CHUNK_VALUES // max(centroids_VD.shape))
    for first in range(0, len(x_ND), size):
        part = slice(first, first + size)
        yield part, x_ND[part].float()
