import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.core.batch import Batch
from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.ops.momentum import Linear
from ossicle.target.online_codebook import OnlineCodebook
from tests.objective.teaching import small_batch, small_model, step


def started(num_codes: int = 6, **numbers: float) -> tuple[Backbone, OnlineCodebook]:
    model = small_model()
    torch.manual_seed(5)
    target = OnlineCodebook(
        model.clock, model.feature_dim, momentum=Linear(1.0), num_codes=num_codes, top_layers=2, **numbers
    )
    target.adopt(model)
    return model, target.train()


def halves() -> list[Batch]:
    whole = small_batch(rows=4)
    return [replace(whole, waveform_BS=whole.waveform_BS[rows]) for rows in (slice(2), slice(2, 4))]


def test_a_frames_code_is_the_nearest_by_euclidean_distance() -> None:
    _, target = started()
    batch = small_batch()
    codes_KBT = target.codes(batch)
    frames = torch.stack(target.layers(batch)).double()
    for layer in range(2):
        for row in range(2):
            for frame in range(frames.shape[2]):
                far = [(frames[layer, row, frame] - code).norm() for code in target.codes_KVD[layer].double()]
                assert int(torch.stack(far).argmin()) == int(codes_KBT[layer, row, frame])


def test_codes_are_dinosrs_running_means_of_the_frames_that_chose_them() -> None:
    model, target = started(decay=0.8)
    sums = target.codes_KVD.double().clone()
    counts = torch.ones(2, 6, dtype=torch.float64)
    for number in range(3):
        batch = small_batch(seed=number)
        codes = target.codes(batch).flatten(1)
        frames = torch.stack(target.layers(batch)).double().flatten(1, 2)
        target.follow(model, step=number + 1)
        for layer in range(2):
            for code in range(6):
                mine = frames[layer][codes[layer] == code]
                if len(mine):
                    sums[layer, code] = 0.8 * sums[layer, code] + 0.2 * mine.sum(0)
                    counts[layer, code] = 0.8 * counts[layer, code] + 0.2 * len(mine)
        torch.testing.assert_close(target.codes_KVD.double(), sums / counts[..., None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked_only", [False, True])
def test_codes_are_means_of_the_masked_frames_alone_where_that_is_asked(masked_only: bool) -> None:
    model, target = started(decay=0.8, masked_only=masked_only)
    masked = [[2, 3, 4, 11], [0, 1, 7, 29]]
    sums, counts = target.codes_KVD.double().clone(), torch.ones(2, 6, dtype=torch.float64)
    batch = small_batch()
    frames = torch.stack(target.layers(batch)).double()
    codes = target.codes(batch, None, torch.tensor(masked))
    assert torch.equal(codes, started()[1].codes(batch))  # every frame has its code all the same
    for layer in range(2):
        for code in range(6):
            mine = [
                frames[layer, row, frame]
                for row in range(2)
                for frame in (masked[row] if masked_only else range(30))
                if codes[layer, row, frame] == code
            ]
            if mine:
                sums[layer, code] = 0.8 * sums[layer, code] + 0.2 * sum(mine)
                counts[layer, code] = 0.8 * counts[layer, code] + 0.2 * len(mine)
    target.follow(model, step=1)
    torch.testing.assert_close(target.state_KVE[..., -1].double(), counts)
    torch.testing.assert_close(target.codes_KVD.double(), sums / counts[..., None], rtol=1e-4, atol=1e-5)


def test_a_code_that_nothing_chose_stays() -> None:
    model, target = started()
    with torch.no_grad():
        target.state_KVE[:, 0, :-1] = 1e3  # far from everything
    target.codes(small_batch())
    target.follow(model, step=1)
    assert torch.equal(target.codes_KVD[:, 0], torch.full((2, 16), 1e3))
    assert target.codes_KVD.isfinite().all()


def test_micro_batches_add_up_to_one_step_of_the_whole() -> None:
    model, target = started()
    target.codes(small_batch(rows=4))
    target.follow(model, step=1)
    _, accumulated = started()
    for half in halves():
        accumulated.codes(half)
    accumulated.follow(model, step=1)
    torch.testing.assert_close(accumulated.state_KVE, target.state_KVE, rtol=1e-5, atol=1e-5)
    assert not accumulated.pending_KVE.any()


def test_two_ranks_make_the_codebooks_of_one(tmp_path: Path) -> None:
    model, target = started()
    target.codes(small_batch(rows=4))
    target.follow(model, step=1)
    script = Path(__file__).with_name("codebook_ranks.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path), str(rank)], env=environment) for rank in (0, 1)
    ]
    assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(state, target.state_KVE, rtol=1e-5, atol=1e-5)


def test_evaluation_moves_no_code() -> None:
    model, target = started()
    before = target.state_KVE.clone()
    target.eval().codes(small_batch())
    target.follow(model, step=1)
    assert torch.equal(target.state_KVE, before)


def test_codebooks_and_teacher_are_saved_and_what_is_pending_is_not() -> None:
    model, target = started()
    target.codes(small_batch())
    step(model)
    target.follow(model, step=1)
    keys = target.state_dict().keys()
    assert "state_KVE" in keys
    assert "pending_KVE" not in keys
    _, other = started()
    other.load_state_dict(target.state_dict())
    assert torch.equal(other.eval().codes(small_batch(seed=3)), target.eval().codes(small_batch(seed=3)))


def test_nothing_is_read_on_the_host() -> None:
    model, target = started(masked_only=True)
    batch = small_batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert target.codes(batch).shape == (2, 2, 30)
        assert target.codes(batch, None, torch.tensor([[2, 3], [0, 1]])).shape == (2, 2, 30)
        target.follow(model, step=1)


@pytest.mark.parametrize("changes", [{"num_codes": 1}, {"decay": 1.0}])
def test_what_cannot_be_a_codebook_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"target\.num_codes"):
        started(**changes)  # ty: ignore[invalid-argument-type]
