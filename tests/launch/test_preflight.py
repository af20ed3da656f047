import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossicle.core.errors import ConfigError
from ossicle.launch.preflight import check_crops, share_batch


def test_a_batch_that_divides_is_shared() -> None:
    share = share_batch(2800, 87.5, 8)
    assert share.accumulate == 4
    assert "8 rank(s) x 4 micro-batch(es) x 87.5 s" in str(share)


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do() -> None:
    with pytest.raises(ConfigError, match="batch_s=640 or batch_s=960"):
        share_batch(700, 40, 8)


@pytest.mark.parametrize(("batch", "micro"), [(0, 10), (10, 0), (-5, 10)])
def test_batches_without_audio_are_refused(batch: float, micro: float) -> None:
    with pytest.raises(ConfigError, match="positive"):
        share_batch(batch, micro, 1)


@given(st.integers(1, 64), st.integers(1, 64), st.floats(0.5, 300))
def test_whatever_is_shared_adds_up(world: int, accumulate: int, micro_batch_s: float) -> None:
    share = share_batch(world * accumulate * micro_batch_s, micro_batch_s, world)
    assert share.accumulate == accumulate


def test_a_global_batch_smaller_than_one_micro_batch_a_rank_names_one_that_fits() -> None:
    with pytest.raises(ConfigError, match="batch_s=320"):
        share_batch(100, 40, 8)


def test_crops_that_cannot_be_made_are_refused() -> None:
    check_crops({"max_crop_s": 1.28, "min_crop_s": 1.28, "max_cut": 0.1})
    with pytest.raises(ConfigError, match=r"min_crop_s=2.0 to data.max_crop_s=1.28 seconds are impossible"):
        check_crops({"max_crop_s": 1.28, "min_crop_s": 2.0, "max_cut": 0.1})
