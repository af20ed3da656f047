import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from ossicle.layer.batch_norm import FrameBatchNorm


def pair(dim: int) -> tuple[FrameBatchNorm, nn.BatchNorm1d]:
    """Ours and torch's with the same weights."""
    ours, theirs = FrameBatchNorm(dim, momentum=0.3), nn.BatchNorm1d(dim, momentum=0.3)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if key != "num_batches_tracked"})
    return ours, theirs


@hypothesis.given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4), masked=st.booleans())
@hypothesis.settings(max_examples=20, deadline=None)
def test_it_equals_torchs_batch_norm_of_the_real_frames_and_of_no_others(lengths: list[int], masked: bool) -> None:
    torch.manual_seed(sum(lengths))
    ours, theirs = pair(5)
    valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    if not masked:
        valid_BT = torch.ones_like(valid_BT)
    x_BTC = torch.randn(len(lengths), max(lengths), 5, requires_grad=True)
    there_BTC = torch.where(valid_BT[..., None], x_BTC, torch.nan) if masked else x_BTC
    got_PC = ours(there_BTC, valid_BT if masked else None)[valid_BT]
    expected_PC = theirs(x_BTC[valid_BT])
    torch.testing.assert_close(got_PC, expected_PC, atol=1e-5, rtol=1e-5)
    for key in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, key), getattr(theirs, key), atol=1e-6, rtol=1e-5)
    grad_PC = torch.randn_like(expected_PC)
    got, expected = (torch.autograd.grad(y, x_BTC, grad_PC, retain_graph=True)[0] for y in (got_PC, expected_PC))
    torch.testing.assert_close(got[valid_BT], expected[valid_BT], atol=1e-5, rtol=1e-4)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x_BTC, valid_BT)[valid_BT], theirs(x_BTC[valid_BT]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_a_single_frame_leaves_the_running_moments_finite(masked: bool) -> None:
    norm = FrameBatchNorm(3)
    valid_BT = torch.tensor([[True]]) if masked else None
    assert norm(torch.randn(1, 1, 3), valid_BT).isfinite().all()
    assert norm.running_mean.isfinite().all()
    assert norm.running_var.isfinite().all()


def test_in_evaluation_a_frame_is_mapped_alone() -> None:
    norm = FrameBatchNorm(3)
    norm(torch.randn(4, 6, 3) * 3 + 1)
    norm.eval()
    x_BTC = torch.randn(2, 5, 3)
    torch.testing.assert_close(norm(x_BTC)[1:, 2:3], norm(x_BTC[1:, 2:3]))


def test_it_computes_in_float32() -> None:
    assert FrameBatchNorm(3)(torch.randn(2, 4, 3).bfloat16()).dtype == torch.float32
