import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans as Oracle
from torch import Tensor

from ossicle.core.errors import ConfigError
from ossicle.ops.kmeans import assign, kmeans, lloyd, start


def mixture(num_frames: int = 6_000, dim: int = 8, parts: int = 30, seed: int = 0, far: float = 0.0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    centres = torch.randn(parts, dim, generator=draws) * 3 + far
    which = torch.randint(0, parts, (num_frames,), generator=draws)
    return centres[which] + torch.randn(num_frames, dim, generator=draws)


@pytest.mark.parametrize(("parts", "clusters"), [(30, 30), (30, 12), (5, 40)])
def test_inertia_is_within_one_per_cent_of_scikit_learns(parts: int, clusters: int) -> None:
    x_ND = mixture(parts=parts)
    ours = kmeans(x_ND, clusters, seed=0)
    theirs = Oracle(clusters, n_init=10, random_state=0).fit(x_ND.double().numpy())
    assert ours.inertia <= 1.01 * theirs.inertia_ / len(x_ND)


def test_the_inertia_that_is_told_is_that_of_the_centroids() -> None:
    x_ND = mixture(1_000)
    fitted = kmeans(x_ND, 20, seed=0)
    squares = cdist(x_ND.double().numpy(), fitted.centroids_VD.double().numpy(), "sqeuclidean")
    assert fitted.inertia == pytest.approx(squares.min(1).mean(), rel=1e-6)


def test_lloyd_takes_the_steps_that_scikit_learn_takes() -> None:
    x_ND = mixture(2_000, parts=6)
    begin = x_ND[:6]
    ours = lloyd(x_ND, begin, seed=0, max_iterations=4, tolerance=0.0)
    theirs = Oracle(6, init=begin.double().numpy(), n_init=1, max_iter=4, tol=0.0, algorithm="lloyd")
    theirs.fit(x_ND.double().numpy())
    np.testing.assert_allclose(ours.centroids_VD.numpy(), theirs.cluster_centers_, atol=1e-4)


@pytest.mark.parametrize("chunk", [None, 1, 7, 5_000])
@pytest.mark.parametrize("far", [0.0, 1_000.0])
def test_each_frame_goes_to_the_nearest_centroid(chunk: int | None, far: float) -> None:
    x_ND = mixture(500, far=far)
    centroids_VD = mixture(23, seed=1, far=far)
    codes_N, distances_N = assign(x_ND, centroids_VD, chunk)
    squares = cdist(x_ND.double().numpy(), centroids_VD.double().numpy(), "sqeuclidean")
    assert codes_N.dtype == torch.int64
    assert codes_N.tolist() == squares.argmin(1).tolist()
    np.testing.assert_allclose(distances_N.numpy(), squares.min(1), rtol=1e-5)


def test_a_seed_decides_the_result_to_the_bit() -> None:
    x_ND = mixture(3_000)
    again = [kmeans(x_ND, 25, seed=seed).centroids_VD for seed in (3, 3, 4)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    x_ND = mixture(1_000)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = kmeans(x_ND, 10, seed=0).centroids_VD
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(kmeans(x_ND, 10, seed=0).centroids_VD, first)


def test_clusters_that_start_empty_are_given_frames() -> None:
    x_ND = mixture(2_000, parts=10)
    begin = torch.cat([x_ND[:1], torch.full((9, 8), 1e4)])
    fitted = lloyd(x_ND, begin, seed=0)
    codes_N, _ = assign(x_ND, fitted.centroids_VD)
    assert fitted.reseeded > 0
    assert int(torch.bincount(codes_N, minlength=10).min()) > 0
    one = float((x_ND - x_ND.mean(0)).square().sum(1).mean())
    best = Oracle(10, n_init=10, random_state=0).fit(x_ND.numpy()).inertia_ / len(x_ND)
    assert fitted.inertia < best + 0.3 * (one - best)


def test_fewer_distinct_frames_than_clusters_come_to_an_end() -> None:
    x_ND = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]).repeat(50, 1)
    fitted = kmeans(x_ND, 8, seed=0)
    assert fitted.inertia == pytest.approx(0.0, abs=1e-10)
    assert bool(fitted.centroids_VD.isfinite().all())


def test_ranks_that_share_the_frames_find_what_one_rank_finds() -> None:
    x_ND = mixture(2_000)
    begin = start(x_ND, 15, seed=0)
    alone = lloyd(x_ND, begin, seed=0, max_iterations=5, tolerance=0.0)
    halves = (x_ND[:700], x_ND[700:])
    # two ranks in lock step: each adds the sums of the other, which takes the same centroids to the same place
    centroids_VD = begin
    for _ in range(5):
        sums = []
        for half in halves:
            lloyd(half, centroids_VD, seed=0, max_iterations=0, reduce=lambda t, sums=sums: sums.append(t) or t)
        moved = lloyd(
            halves[0], centroids_VD, seed=0, max_iterations=1, tolerance=0.0, reduce=Total(halves[1], sums[1])
        )
        centroids_VD = moved.centroids_VD
    torch.testing.assert_close(centroids_VD, alone.centroids_VD, atol=1e-5, rtol=1e-5)


class Total:
    """Stands for the sum over two ranks: adds the other rank's sums, first those given, later those it would send."""

    def __init__(self, other_ND: Tensor, first: Tensor) -> None:
        self.other_ND = other_ND
        self.first: Tensor | None = first
        self.total: Tensor | None = None

    def __call__(self, own: Tensor) -> Tensor:
        if self.first is not None:
            other, self.first = self.first, None
        else:
            assert self.total is not None
            moved_VD = (self.total[:, :-2] / self.total[:, -2:-1]).float()
            sent: list[Tensor] = []
            lloyd(self.other_ND, moved_VD, seed=0, max_iterations=0, reduce=lambda t: sent.append(t) or t)
            other = sent[0]
        self.total = own + other
        return self.total


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 frames cannot make 6 clusters"):
        kmeans(torch.randn(5, 2), 6, seed=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_what_a_cpu_finds() -> None:
    x_ND = mixture()
    cpu = kmeans(x_ND, 30, seed=0)
    gpu = kmeans(x_ND.cuda(), 30, seed=0)
    assert gpu.inertia == pytest.approx(cpu.inertia, rel=0.01)
    assert torch.equal(gpu.centroids_VD, kmeans(x_ND.cuda(), 30, seed=0).centroids_VD)
    codes_N, _ = assign(x_ND.cuda(), cpu.centroids_VD.cuda())
    assert (codes_N.cpu() == assign(x_ND, cpu.centroids_VD)[0]).double().mean() > 0.999
