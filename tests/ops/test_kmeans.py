from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans as Oracle
from sklearn.cluster import MiniBatchKMeans as MiniBatchOracle
from torch import Tensor

from ossicle.core.errors import ConfigError, DataError
from ossicle.core.peers import Alone
from ossicle.core.seeds import generator
from ossicle.data.index import DatasetIndex
from ossicle.data.utterances import iterate_utterances
from ossicle.ops.kmeans import Refine, assign, kmeans, lloyd, mini_batch, start
from ossicle.ops.spectral import mfcc


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


def test_the_best_of_several_starts_is_taken() -> None:
    x_ND = mixture(1_500, parts=30)
    gains = []
    for seed in range(6):
        one, eight = (lloyd(x_ND, start(x_ND, 30, seed=seed, restarts=n), seed=0).inertia for n in (1, 8))
        gains.append(1 - eight / one)
    assert min(gains) > -0.005  # the first of the eight is the one
    assert max(gains) > 0.005


def test_fewer_starts_are_tried_the_more_clusters_there_are() -> None:
    x_ND = mixture(500)
    alike = 0
    for clusters, restarts in ((20, 10), (100, 4), (300, 2)):
        found, wanted, one = (start(x_ND, clusters, seed=1, restarts=number) for number in (None, restarts, 1))
        assert torch.equal(found, wanted)
        alike += torch.equal(found, one)
    assert alike < 3


@pytest.mark.parametrize("refine", [lloyd, partial(mini_batch, batch_frames=200)])
def test_when_to_stop_does_not_depend_on_the_unit_of_the_frames(refine: Refine) -> None:
    x_ND = mixture(2_000)
    fitted = [refine(scale * x_ND, scale * x_ND[:12], seed=0) for scale in (2.0**-8, 1.0, 2.0**8)]
    assert fitted[0].iterations == fitted[1].iterations == fitted[2].iterations > 2


def test_a_seed_decides_how_clusters_are_split() -> None:
    x_ND = mixture(1_000, parts=5)
    begin = torch.cat([x_ND[:3], torch.full((2, 8), 1e4)])
    split = [lloyd(x_ND, begin, seed=seed, max_iterations=1).centroids_VD for seed in (0, 0, 1)]
    assert torch.equal(split[0], split[1])
    assert not torch.equal(split[0], split[2])


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


def test_ranks_that_share_the_blocks_add_up_to_what_one_rank_adds_up() -> None:
    # each of three ranks in turn, with peers that add what the others would have said
    x_ND = mixture(5_000)
    begin = start(x_ND, 15, seed=0)
    said = [Recorded(rank, 3) for rank in range(3)]
    for peers in said:
        lloyd(x_ND, begin, seed=0, max_iterations=0, peers=peers)
    alone = Recorded(0, 1)
    lloyd(x_ND, begin, seed=0, max_iterations=0, peers=alone)
    assert torch.equal(said[0].heard + said[1].heard + said[2].heard, alone.heard)
    assert all(int(peers.heard[:, -2].sum()) > 1_000 for peers in said)


class Recorded(Alone):
    """A rank whose peers say nothing; what it says is kept."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.heard = torch.zeros(0)

    def total(self, counts: Tensor) -> Tensor:
        self.heard = counts
        return counts


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_fixed_point_sums_follow_the_size_of_the_frames(scale: float) -> None:
    x_ND = mixture(2_000) * scale
    ours = lloyd(x_ND, x_ND[:6], seed=0, max_iterations=4, tolerance=0.0)
    theirs = Oracle(6, init=x_ND[:6].double().numpy(), n_init=1, max_iter=4, tol=0.0, algorithm="lloyd")
    theirs.fit(x_ND.double().numpy())
    np.testing.assert_allclose(ours.centroids_VD.numpy(), theirs.cluster_centers_, atol=1e-4 * scale)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_frames_that_are_not_finite_are_refused(value: float) -> None:
    x_ND = mixture(500)
    x_ND[77, 3] = value
    with pytest.raises(DataError, match="not finite"):
        kmeans(x_ND, 10, seed=0)


@pytest.mark.parametrize(("parts", "clusters"), [(200, 30), (30, 12)])
def test_mini_batches_come_within_one_per_cent_of_scikit_learns(parts: int, clusters: int) -> None:
    x_ND = mixture(20_000, parts=parts)
    ours = kmeans(x_ND, clusters, seed=0, refine=partial(mini_batch, batch_frames=1_000))
    theirs = MiniBatchOracle(clusters, n_init=10, batch_size=1_000, random_state=0).fit(x_ND.numpy())
    assert ours.inertia <= 1.01 * theirs.inertia_ / len(x_ND)
    assert ours.inertia == pytest.approx(float(assign(x_ND, ours.centroids_VD)[1].double().mean()), rel=1e-6)


@pytest.mark.parametrize("passes", [1, 3])
def test_mini_batches_move_a_centroid_to_the_mean_of_all_that_it_was_given(passes: int) -> None:
    x_ND = mixture(4_000, parts=4)
    begin = x_ND[:4]
    means, counts = begin.double().numpy(), np.zeros(4)
    for number in range(1, passes + 1):
        order_N = torch.randperm(4_000, generator=generator(5, number, 0, "kmeans batches"))
        for rows in order_N.split(500):
            part = x_ND[rows].double().numpy()
            codes = cdist(part, means).argmin(1)  # a batch is taken together: its frames see the means of before
            counts += np.bincount(codes, minlength=4)
            for code in range(4):
                if (codes == code).any():
                    share = (codes == code).sum() / counts[code]
                    means[code] += share * (part[codes == code].mean(0) - means[code])
    theirs = lloyd(x_ND, torch.from_numpy(means).float(), seed=5, max_iterations=1)
    ours = mini_batch(x_ND, begin, seed=5, batch_frames=500, max_passes=passes, tolerance=-1.0)
    torch.testing.assert_close(ours.centroids_VD, theirs.centroids_VD, atol=1e-4, rtol=1e-4)
    assert ours.iterations == passes + 1  # the last is Lloyd's


def test_mini_batches_pass_over_the_frames_until_that_hardly_helps() -> None:
    x_ND = mixture(4_000)
    begin = x_ND[:30]
    once, few, many = (
        mini_batch(x_ND, begin, seed=0, batch_frames=200, max_passes=passes, tolerance=tolerance)
        for passes, tolerance in ((1, 1e-3), (20, 0.05), (20, 1e-3))
    )
    assert once.iterations == 2 < few.iterations < many.iterations
    assert once.inertia > 1.001 * many.inertia


def test_clusters_of_real_mfccs_are_as_good_as_scikit_learns(synthetic_dataset: Path) -> None:
    found = iterate_utterances(DatasetIndex.load(synthetic_dataset, "train"))
    x_ND = torch.cat([mfcc(torch.from_numpy(wave_S)[None], hop_ms=20)[0] for _, _, wave_S in found])
    assert len(x_ND) > 5_000
    theirs = Oracle(100, n_init=5, random_state=0).fit(x_ND.numpy()).inertia_ / len(x_ND)
    assert kmeans(x_ND, 100, seed=0).inertia <= 1.01 * theirs
    assert kmeans(x_ND, 100, seed=0, refine=mini_batch).inertia <= 1.01 * theirs


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
