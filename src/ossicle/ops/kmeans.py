"""k-means in torch, on any device, over any number of ranks, in bounded memory.

Greedy k-means++ (Arthur and Vassilvitskii 2007, with several candidates a step as scikit-learn does) decides most of
the quality, so it is run several times on a subsample, refined there, and the best start is carried to all frames, by
Lloyd's iterations or by mini-batches (Sculley 2010).

Every rank holds the same frames and adds up its share of their blocks. Sums are kept in fixed point: integers add up to
the same in whatever order, so any number of ranks finds the same centroids to the bit.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ossicle.core.errors import ConfigError, DataError
from ossicle.core.peers import Alone, Peers
from ossicle.core.seeds import generator
from ossicle.core.shapes import Float

_BLOCK_VALUES = 2**21  # float32 values of one block of distances on a CPU: 8 MiB stay near its cores
_BLOCK_VALUES_GPU = 2**25
_FEWEST_BLOCKS = 16  # so that several ranks have something to share
_SMALLEST_BLOCK = 256
_DRAWN_A_CLUSTER, _FEWEST_DRAWN = 32, 40_000
_REFINED_A_CLUSTER, _FEWEST_REFINED = 128, 40_000
_SPLIT = 0.1  # how far the halves of a split cluster move apart, in its root mean square radius
_SUM_BITS = 61  # a sum of fixed-point numbers stays below 2 to this


@dataclass(frozen=True, slots=True)
class KMeans:
    """Fitted centroids.

    Args:
        centroids_VD: Float32, shape (V, D).
        inertia: Mean squared distance of a frame to its centroid.
        iterations: Passes over all frames.
        reseeded: Empty clusters that were given a new place on the way.
    """

    centroids_VD: Tensor
    inertia: float
    iterations: int
    reseeded: int


@dataclass(frozen=True, slots=True)
class _Sums:
    """What one pass over the frames adds up: vectors (V, D) and squared distances (V,), float64, and counts (V,)."""

    vectors_VD: Tensor
    counts_V: Tensor
    inertia_V: Tensor
    inertia: float


@dataclass(frozen=True, slots=True)
class _Ruler:
    """Fixed-point scales in which no sum over the frames can overflow: powers of two, by the largest value.

    Args:
        vector: Scale of sums of frames.
        square: Scale of sums of squared distances.
    """

    vector: float
    square: float

    @classmethod
    def of(cls, x_ND: Tensor, centroids_VD: Tensor) -> Self:
        """The scales for frames and centroids that lie no further out than these do."""
        low, high = torch.aminmax(x_ND)
        far = max(-float(low), float(high), float(centroids_VD.abs().max()), 1e-30)
        if not math.isfinite(far):
            raise DataError("frames to be clustered are not finite", "the features have diverged, or audio is damaged")
        largest = 4 * far * len(x_ND)  # split clusters lie a little further out
        return cls(_scale(largest), _scale(4 * far * x_ND.shape[1] * largest))

    def columns(self, dim: int, device: torch.device) -> Tensor:
        """The scale of each column of :func:`_pass`'s sums, shape (D + 2,)."""
        return torch.tensor([self.vector] * dim + [1.0, self.square], dtype=torch.float64, device=device)


Refine = Callable[..., KMeans]
"""From frames and first centroids to better ones: :func:`lloyd` or :func:`mini_batch`."""


def assign(
    x_ND: Float[Tensor, "N D"], centroids_VD: Float[Tensor, "V D"], chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each frame.

    The choice is by ||c||^2 - 2 x c in one matrix product; the distance is then taken from the difference itself, which
    does not cancel.

    Args:
        x_ND: Frames, float, shape (N, D).
        centroids_VD: Centroids on the same device, shape (V, D).
        chunk: Frames at a time; None bounds the block of distances to 8 MiB, on a GPU 128 MiB.

    Returns:
        Centroid of each frame, int64, shape (N,), and its squared distance, float32, shape (N,).
    """
    centroids_VD = centroids_VD.float()
    codes_N = torch.empty(len(x_ND), dtype=torch.int64, device=x_ND.device)
    distances_N = torch.empty(len(x_ND), dtype=torch.float32, device=x_ND.device)
    for part, frames in _blocks(x_ND, centroids_VD, chunk):
        codes_N[part], distances_N[part] = _nearest(frames, centroids_VD)
    return codes_N, distances_N


def kmeans(
    x_ND: Float[Tensor, "N D"],
    num_clusters: int,
    *,
    seed: int,
    restarts: int | None = None,
    refine: Refine | None = None,
    peers: Peers | None = None,
) -> KMeans:
    """Cluster frames: :func:`start`, then :func:`lloyd` or another refinement.

    Args:
        x_ND: Frames, float, shape (N, D); the same on every rank.
        num_clusters: Clusters (V).
        seed: Determines the result, on one kind of device.
        restarts: Starts that are tried on a subsample; None for 10 where clusters are few, fewer where they are many.
        refine: Carries the start to all frames; None for :func:`lloyd`.
        peers: The ranks that share the work; None where there is one.

    Raises:
        ConfigError: Fewer frames than clusters.
        DataError: A frame is not finite.
    """
    centroids_VD = start(x_ND, num_clusters, seed=seed, restarts=restarts, peers=peers)
    return (refine or lloyd)(x_ND, centroids_VD, seed=seed, peers=peers)


def start(
    x_ND: Float[Tensor, "N D"],
    num_clusters: int,
    *,
    seed: int,
    restarts: int | None = None,
    peers: Peers | None = None,
) -> Float[Tensor, "V D"]:
    """Centroids to start from: the best of several greedy k-means++ draws, each refined on a subsample.

    Args:
        x_ND: Frames, float, shape (N, D); the same on every rank.
        num_clusters: Clusters (V).
        seed: Determines the result.
        restarts: Draws to choose from; None for 10 where clusters are few, down to 2 where they are many.
        peers: The ranks that share the work; None where there is one.

    Raises:
        ConfigError: Fewer frames than clusters.
        DataError: A frame is not finite.
    """
    if num_clusters < 1 or len(x_ND) < num_clusters:
        raise ConfigError(
            f"{len(x_ND)} frames cannot make {num_clusters} clusters", "give more data, or ask for fewer clusters"
        )
    peers = peers or Alone()
    # With many clusters, one draw is as good as the next: their faults average out.
    restarts = restarts or min(10, max(2, 400 // num_clusters))
    # each draw sees its own frames; all are judged on the same ones, after a few iterations
    judged_ND = _subsample(x_ND, max(_FEWEST_REFINED, _REFINED_A_CLUSTER * num_clusters), seed, "refine")
    size = max(_FEWEST_DRAWN, _DRAWN_A_CLUSTER * num_clusters)
    drawn = {
        number: _plus_plus(
            _subsample(x_ND, size, seed, f"draw {number}"), num_clusters, generator(seed, number, 0, "kmeans++")
        ).cpu()
        for number in range(peers.rank, restarts, peers.size)
    }
    best: KMeans | None = None
    for number in range(restarts):
        centroids_VD = peers.told_by(number % peers.size, drawn.get(number, judged_ND[:0])).to(x_ND.device)
        tried = lloyd(judged_ND, centroids_VD, seed=seed, max_iterations=8, tolerance=1e-3, peers=peers)
        if best is None or tried.inertia < best.inertia:
            best = tried
    assert best is not None
    return lloyd(judged_ND, best.centroids_VD, seed=seed, max_iterations=30, tolerance=1e-3, peers=peers).centroids_VD


def lloyd(
    x_ND: Float[Tensor, "N D"],
    centroids_VD: Float[Tensor, "V D"],
    *,
    seed: int,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    peers: Peers | None = None,
) -> KMeans:
    """Move centroids to the means of their frames until the inertia hardly falls.

    A cluster that has lost all frames takes half of the one with the largest inertia.

    Args:
        x_ND: Frames, float, shape (N, D); the same on every rank.
        centroids_VD: Where to start, the same on every rank, shape (V, D).
        seed: Determines how clusters are split.
        max_iterations: Most iterations.
        tolerance: Stop when an iteration lowers the inertia by less than this fraction.
        peers: The ranks that share the work; None where there is one.
    """
    peers = peers or Alone()
    centroids_VD = centroids_VD.float()
    ruler = _Ruler.of(x_ND, centroids_VD)
    sums = _pass(x_ND, centroids_VD, ruler, peers)
    reseeded = 0
    iteration = 0
    for iteration in range(1, max_iterations + 1):
        moved_VD, split = _moved(centroids_VD, sums, generator(seed, iteration, 0, "kmeans split"))
        reseeded += split
        moved = _pass(x_ND, moved_VD, ruler, peers)
        previous, inertia = sums.inertia, moved.inertia
        if inertia <= previous or split:
            centroids_VD, sums = moved_VD, moved
        if not split and previous - inertia <= tolerance * previous:
            break
    return KMeans(centroids_VD, sums.inertia / len(x_ND), iteration, reseeded)


def mini_batch(
    x_ND: Float[Tensor, "N D"],
    centroids_VD: Float[Tensor, "V D"],
    *,
    seed: int,
    batch_frames: int = 10_000,
    max_passes: int = 20,
    tolerance: float = 1e-3,
    peers: Peers | None = None,
) -> KMeans:
    """Move centroids after each batch of frames, to the mean of all frames that they were ever given.

    Sculley 2010, "Web-scale k-means clustering", algorithm 1, with a batch's frames taken together. One iteration of
    :func:`lloyd` comes last: it fills clusters that are left empty and makes centroids the means of their frames.

    Args:
        x_ND: Frames, float, shape (N, D); the same on every rank.
        centroids_VD: Where to start, the same on every rank, shape (V, D).
        seed: Determines the batches.
        batch_frames: Frames of a batch, over all ranks.
        max_passes: Most passes over the frames.
        tolerance: Stop when a pass lowers the mean inertia of its batches by less than this fraction.
        peers: The ranks that share the work; None where there is one.
    """
    peers = peers or Alone()
    means_VD = centroids_VD.double()
    counts_V = torch.zeros(len(means_VD), dtype=torch.float64, device=x_ND.device)
    ruler = _Ruler.of(x_ND, centroids_VD)
    previous = math.inf
    number = 0
    for number in range(1, max_passes + 1):
        order_N = torch.randperm(len(x_ND), generator=generator(seed, number, 0, "kmeans batches")).to(x_ND.device)
        inertia = 0.0
        for rows in order_N.split(batch_frames):
            sums = _pass(x_ND[rows], means_VD.float(), ruler, peers)
            counts_V += sums.counts_V
            means_VD += (sums.vectors_VD - sums.counts_V[:, None] * means_VD) / counts_V.clamp(min=1)[:, None]
            inertia += sums.inertia
        if inertia >= (1 - tolerance) * previous:  # a difference from infinity would be no more than a share of it
            break
        previous = inertia
    last = lloyd(x_ND, means_VD.float(), seed=seed, max_iterations=1, peers=peers)
    return KMeans(last.centroids_VD, last.inertia, number + 1, last.reseeded)


def _pass(x_ND: Tensor, centroids_VD: Tensor, ruler: _Ruler, peers: Peers) -> _Sums:
    """Assign every frame and add up, over all ranks: each takes every size-th block."""
    num_clusters, dim = centroids_VD.shape
    scales_E = ruler.columns(dim, x_ND.device)
    # one tensor, so that one reduction serves: vectors, count and inertia side by side
    totals_VE = torch.zeros(num_clusters, dim + 2, dtype=torch.int64, device=x_ND.device)
    for number, (_, frames) in enumerate(_blocks(x_ND, centroids_VD, None)):
        if number % peers.size != peers.rank:
            continue
        codes_N, distances_N = _nearest(frames, centroids_VD)
        columns = torch.cat([frames, torch.ones_like(frames[:, :1]), distances_N[:, None]], 1)
        totals_VE += (_sum_by_code(columns, codes_N, num_clusters).double() * scales_E).round_().to(torch.int64)
    totals_VE = peers.total(totals_VE)
    sums_VE = totals_VE.double() / scales_E
    # added up as integers, so that every rank sees one number and stops in the same iteration
    inertia = int(totals_VE[:, dim + 1].sum()) / ruler.square
    return _Sums(sums_VE[:, :dim], totals_VE[:, dim], sums_VE[:, dim + 1], inertia)


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


def _blocks(x_ND: Tensor, centroids_VD: Tensor, chunk: int | None) -> Iterator[tuple[slice, Tensor]]:
    """The frames in blocks that depend on their number and the device, and not on how many ranks there are."""
    values = _BLOCK_VALUES_GPU if x_ND.is_cuda else _BLOCK_VALUES
    bound = min(values // max(centroids_VD.shape), -(-len(x_ND) // _FEWEST_BLOCKS))
    size = chunk or max(_SMALLEST_BLOCK, bound)
    for first in range(0, len(x_ND), size):
        part = slice(first, first + size)
        yield part, x_ND[part].float()


def _scale(largest: float) -> float:
    """The power of two that brings a number just below 2 to :data:`_SUM_BITS`; at most 2^40."""
    return math.ldexp(1.0, min(40, _SUM_BITS - math.frexp(largest)[1]))
