import numpy as np
import pytest
import torch
from torch.nn import functional

from ossicle.ops.linear_attention import attend_features, elu_features


def inputs(*shape: int) -> list[torch.Tensor]:
    torch.manual_seed(sum(shape))
    return [torch.randn(*shape, dtype=torch.float64) for _ in range(3)]


def test_features_are_elu_and_one_and_positive() -> None:
    x = torch.linspace(-80, 5, 50, dtype=torch.float64)
    expected = [value + 1 if value > 0 else np.exp(value) for value in x.tolist()]
    np.testing.assert_allclose(elu_features(x).numpy(), expected, rtol=1e-14)
    torch.testing.assert_close(elu_features(x), functional.elu(x) + 1)
    half = elu_features(x.bfloat16())
    assert half.dtype == torch.float32
    assert (half > 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_it_equals_means_by_written_out_weights(masked: bool) -> None:
    q, k, v = inputs(2, 6, 3, 4)
    q, k = q.abs(), k.abs()
    lengths = [6, 4] if masked else [6, 6]
    valid_BT = torch.arange(6) < torch.tensor(lengths)[:, None] if masked else None
    out = attend_features(q, k, v, valid_BT)
    for b, length in enumerate(lengths):
        for i, h in np.ndindex(6, 3):
            weights = np.array([(q[b, i, h] @ k[b, j, h]).item() for j in range(length)])
            expected = weights / weights.sum() @ v[b, :length, h].numpy()
            np.testing.assert_allclose(out[b, i, h].numpy(), expected, atol=1e-12)


def test_long_sums_stay_exact_in_half_precision() -> None:
    ones = torch.ones(1, 5000, 1, 4, dtype=torch.bfloat16)
    v = torch.arange(5000)[None, :, None, None].expand(1, 5000, 1, 4) % 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend_features(ones, ones, v.to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert (out == 0.5).all()


def test_autocast_rounds_no_sum() -> None:
    q, k, v = (x.float() for x in inputs(2, 50, 3, 4))
    wanted = attend_features(q.abs(), k.abs(), v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attend_features(q.abs(), k.abs(), v), wanted)


def test_the_smallest_weights_of_real_frames_still_make_a_mean() -> None:
    faint = elu_features(torch.full((1, 6, 1, 4), -20.0))  # their products are 1e-17
    v = torch.randn(1, 6, 1, 4)
    torch.testing.assert_close(attend_features(faint, faint, v), v.mean(1, keepdim=True).expand_as(v))


def test_a_row_without_a_real_frame_stays_finite() -> None:
    q, k, v = inputs(1, 3, 1, 2)
    assert attend_features(q.abs(), k.abs(), v, torch.zeros(1, 3, dtype=torch.bool)).isfinite().all()
