from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy import stats

from ossicle.augmentation.base import Augmentation, check_range
from ossicle.augmentation.chain import Chain
from ossicle.augmentation.gain import Gain
from ossicle.augmentation.identity import Identity
from ossicle.core.batch import Batch
from ossicle.core.errors import ConfigError
from tests.augmentation.conftest import CLOCK, PARTS, make_batch

NAMES = pytest.mark.parametrize("name", sorted(PARTS))


def build(name: str, probability: float = 0.6) -> Augmentation:
    return PARTS[name](clock=CLOCK) if name == "chain" else PARTS[name](clock=CLOCK, probability=probability)


def same(first: Batch, second: Batch) -> bool:
    pairs = ((getattr(first, key), getattr(second, key)) for key in ("waveform_BS", "clean_BS", "labels_BT"))
    return all(a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


@NAMES
def test_a_batch_is_changed_as_its_position_and_the_seed_say_whatever_was_drawn_before(name: str) -> None:
    first = build(name)(make_batch(), seed=1)
    torch.manual_seed(12345)
    part = build(name)
    part(make_batch(position=99), seed=1)  # as where another rank, or a run before a kill, had read other batches
    again = part(make_batch(), seed=1)
    assert same(first, again)
    assert not same(first, part(make_batch(position=4), seed=1))
    assert not same(first, part(make_batch(), seed=2))
    assert not same(first, part(make_batch(), seed=1, purpose="other"))


@pytest.mark.parametrize("name", sorted(set(PARTS) - {"mixing", "chain"}))
def test_a_row_depends_on_no_other_row(name: str) -> None:
    batch, part = make_batch(rows=8), build(name, 1.0)
    changed = part(batch, seed=1).waveform_BS
    for row in range(3):
        others = batch.waveform_BS.clone()
        others[torch.arange(8) != row] += 0.1
        after = part(replace(batch, waveform_BS=others), seed=1).waveform_BS
        torch.testing.assert_close(after[row], changed[row], atol=1e-6, rtol=0)


@NAMES
def test_what_is_changed_is_float32_of_its_shape_and_leaves_its_input_alone(name: str) -> None:
    batch = make_batch()
    before = batch.waveform_BS.clone()
    with torch.autocast("cpu", torch.bfloat16):
        changed = build(name)(batch, seed=1)
    assert same(changed, build(name)(batch, seed=1))
    assert changed.waveform_BS.dtype == torch.float32
    assert changed.waveform_BS.isfinite().all()
    assert len(changed.waveform_BS) == len(batch.waveform_BS)
    assert torch.equal(batch.waveform_BS, before)
    assert not changed.waveform_BS.requires_grad
    assert changed.labels_BT.shape == (6, CLOCK.num_frames(changed.waveform_BS.shape[1]))
    if changed.clean_BS is not None:
        assert changed.clean_BS.shape == changed.waveform_BS.shape


@NAMES
def test_gradients_of_a_model_are_those_of_the_changed_waveform(name: str) -> None:
    changed = build(name)(make_batch(), seed=1)
    gradients = []
    for waveform_BS in (changed.waveform_BS, changed.waveform_BS.clone().detach()):
        weight = torch.ones(waveform_BS.shape[1], requires_grad=True)
        (waveform_BS @ weight).square().sum().backward()
        gradients.append(weight.grad)
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("name", sorted(set(PARTS) - {"chain"}))
def test_at_probability_0_the_batch_itself_comes_back(name: str) -> None:
    batch = make_batch()
    assert build(name, 0.0)(batch, seed=0) is batch
    assert Identity(CLOCK)(batch, seed=0) is batch


@pytest.mark.parametrize("name", sorted(set(PARTS) - {"chain", "speed"}))
def test_rows_that_are_not_chosen_stay_to_the_bit_and_the_clean_waveform_is_the_one_before(name: str) -> None:
    batch = make_batch(rows=16)
    changed = build(name, 0.4)(batch, seed=1)
    assert torch.equal(changed.clean_BS, batch.waveform_BS)
    assert torch.equal(changed.labels_BT, batch.labels_BT)
    untouched = (changed.waveform_BS == batch.waveform_BS).all(1)
    assert 0 < int(untouched.sum()) < 16


@pytest.mark.parametrize("name", sorted(set(PARTS) - {"chain", "speed"}))
def test_rows_are_changed_as_often_as_the_probability_says(name: str) -> None:
    part, steps, changed = build(name, 0.3), 150, 0
    for position in range(steps):
        batch = make_batch(rows=10, samples=400, position=position)
        changed += int((part(batch, seed=0).waveform_BS != batch.waveform_BS).any(1).sum())
    low, high = stats.binom.interval(1 - 1e-5, steps * 10, 0.3)
    assert low <= changed <= high


def test_a_chain_hears_its_parts_in_order_and_keeps_the_first_clean_waveform() -> None:
    parts = {"up": partial(Gain, gain_db=(6.0, 6.0)), "down": partial(Gain, gain_db=(-2.0, -2.0))}
    batch = make_batch()
    changed = Chain(CLOCK, parts=parts)(batch, seed=0)
    torch.testing.assert_close(changed.waveform_BS, batch.waveform_BS * 10 ** (4 / 20))
    assert torch.equal(changed.clean_BS, batch.waveform_BS)
    assert Chain(CLOCK, parts={})(batch, seed=0) is batch


def test_two_parts_of_one_kind_draw_by_name_and_a_part_left_out_changes_no_other() -> None:
    wide = partial(Gain, gain_db=(-20.0, 20.0))
    batch = make_batch()
    one = Chain(CLOCK, parts={"a": wide})(batch, seed=0).waveform_BS / batch.waveform_BS
    other = Chain(CLOCK, parts={"b": wide})(batch, seed=0).waveform_BS / batch.waveform_BS
    both = Chain(CLOCK, parts={"a": wide, "b": wide})(batch, seed=0).waveform_BS / batch.waveform_BS
    assert not torch.allclose(one, other)
    torch.testing.assert_close(both, one * other, rtol=1e-4, atol=1e-4)


def test_gains_lie_in_their_range_and_differ_from_row_to_row() -> None:
    batch = make_batch(rows=200)
    ratio = Gain(CLOCK, gain_db=(-12.0, 6.0))(batch, seed=0).waveform_BS.double() / batch.waveform_BS.double()
    decibels = 20 * ratio.mean(1).log10()
    assert float(ratio.std(1).max()) < 1e-5
    assert stats.kstest(decibels.numpy(), stats.uniform(-12, 18).cdf).pvalue > 1e-3


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_probabilities_out_of_range_are_refused(probability: float) -> None:
    with pytest.raises(ConfigError, match="probability"):
        Gain(CLOCK, probability=probability)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (1.0,), (1.0, 2.0, 3.0)])
def test_ranges_that_are_none_are_refused_by_name(bounds: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="snr_db"):
        check_range("snr_db", bounds)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@NAMES
def test_no_change_makes_the_host_wait_for_a_gpu(name: str) -> None:
    part, device = build(name), torch.device("cuda")
    part.load(device)
    batch = make_batch().to(device)
    part(batch, seed=0)  # libraries initialise themselves with waits
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        part(batch, seed=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
