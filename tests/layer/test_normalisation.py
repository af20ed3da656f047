import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st

from ossicle.layer.normalisation import GlobalNorm, RunningNorm, UtteranceGroupNorm, UtteranceNorm

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=4)


def padded(lengths: list[int], channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    x_BCT = 3 + 2 * torch.randn(len(lengths), channels, max(lengths), generator=generator)
    return x_BCT, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@hypothesis.given(lengths=LENGTHS)
@hypothesis.settings(max_examples=20, deadline=None)
def test_utterance_norm_gives_every_band_mean_0_and_variance_1_over_real_frames(lengths: list[int]) -> None:
    x_BCT, valid_BT = padded(lengths, 5)
    out = UtteranceNorm()(x_BCT.transpose(1, 2), valid_BT)
    for row, length in enumerate(lengths):
        x = x_BCT[row, :, :length].T.double().numpy()
        expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        np.testing.assert_allclose(out[row, :length].numpy(), expected, atol=1e-4)


def test_utterance_norm_without_padding_equals_that_with_all_frames_real() -> None:
    x_BCT, _ = padded([30, 30], 4)
    x_BTC = x_BCT.transpose(1, 2)
    norm = UtteranceNorm()
    torch.testing.assert_close(norm(x_BTC), norm(x_BTC, torch.ones(2, 30, dtype=torch.bool)))


def test_utterance_norm_of_one_frame_is_zero_rather_than_an_error() -> None:
    norm, x_BTC = UtteranceNorm(), torch.randn(2, 1, 4)
    assert norm(x_BTC, torch.ones(2, 1, dtype=torch.bool)).abs().max() < 1e-3
    assert norm(x_BTC).abs().max() < 1e-3


def test_the_norm_of_all_data_subtracts_a_mean_divides_by_a_deviation_and_is_saved() -> None:
    norm, x_BTC = GlobalNorm(3), torch.randn(2, 5, 3)
    assert torch.equal(norm(x_BTC), x_BTC)
    mean, deviation = [1.5, -2.0, 0.0], [2.0, 0.25, 0.0]
    norm.fit(torch.tensor(mean), torch.tensor(deviation))
    divisors = np.array([2.0, 0.25, 1e-5])  # a channel that never changes
    exact = (x_BTC.double().numpy() - np.array(mean)) / divisors
    np.testing.assert_allclose(norm(x_BTC).numpy(), exact, rtol=1e-5)
    assert not list(norm.parameters())
    twin = GlobalNorm(3)
    twin.load_state_dict(norm.state_dict())
    assert torch.equal(twin(x_BTC), norm(x_BTC))


def test_the_running_norm_is_that_of_all_frames_so_far_after_as_many_of_all_data() -> None:
    norm = RunningNorm(3, prior_frames=7)
    mean, deviation = torch.tensor([1.5, -2.0, 0.0]), torch.tensor([2.0, 0.25, 1.0])
    norm.prior.fit(mean, deviation)
    x_BTC = 3 * torch.randn(2, 300, 3, generator=torch.Generator().manual_seed(0)) + 1
    out_BTC = norm(x_BTC).double().numpy()
    # Seven frames with the mean and deviation of all data: three on each side, and one at the mean.
    spread = deviation.double() * (7 / 6) ** 0.5
    before_7C = mean.double() + torch.tensor([-1.0, -1, -1, 0, 1, 1, 1])[:, None].double() * spread
    for row in range(2):
        heard = before_7C.numpy()
        for frame in range(300):
            heard = np.concatenate([heard, x_BTC[row, frame : frame + 1].double().numpy()])
            # epsilon stands in units of the deviation of all data
            scale = np.sqrt(heard.var(0) + 1e-5 * deviation.double().numpy() ** 2)
            np.testing.assert_allclose(out_BTC[row, frame], (heard[-1] - heard.mean(0)) / scale, atol=1e-4)


def test_the_running_norm_hears_no_later_frame_and_forgets_all_data_in_a_long_row() -> None:
    norm, x_BTC = RunningNorm(4), 5 + 2 * torch.randn(1, 20_000, 4, generator=torch.Generator().manual_seed(1))
    whole = norm(x_BTC)
    torch.testing.assert_close(norm(x_BTC[:, :50]), whole[:, :50])
    torch.testing.assert_close(whole[:, -500:].mean((0, 1)), torch.zeros(4), atol=0.2, rtol=0)
    torch.testing.assert_close(whole[:, -500:].std((0, 1)), torch.ones(4), atol=0.1, rtol=0)
    assert not list(norm.parameters())


@hypothesis.given(lengths=LENGTHS)
@hypothesis.settings(max_examples=20, deadline=None)
def test_group_norm_over_real_frames_is_torchs_of_each_row_alone(lengths: list[int]) -> None:
    x_BCT, valid_BT = padded(lengths, 5)
    x_BCT, norm = x_BCT.double(), UtteranceGroupNorm(5).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    out_BTC = norm(x_BCT.transpose(1, 2), valid_BT)
    for row, length in enumerate(lengths):
        x_1CT = x_BCT[row : row + 1, :, :length]
        expected_1CT = torch.nn.functional.group_norm(x_1CT, 1, norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(out_BTC[row, :length], expected_1CT[0].T)
        torch.testing.assert_close(norm(x_1CT.transpose(1, 2))[0], expected_1CT[0].T)


def test_group_norm_keeps_the_type_and_sums_in_float32() -> None:
    x_BTC = 300 + torch.randn(2, 1000, 4)
    norm = UtteranceGroupNorm(4)
    half_BTC = norm(x_BTC.half())
    assert half_BTC.dtype == torch.float16
    torch.testing.assert_close(half_BTC.float(), norm(x_BTC.half().float()), atol=2e-3, rtol=2e-3)
    assert norm(x_BTC, torch.zeros(2, 1000, dtype=torch.bool)).isfinite().all()
