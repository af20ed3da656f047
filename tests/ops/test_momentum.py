import math

import pytest

from ossicle.core.errors import ConfigError
from ossicle.ops.momentum import Cosine, Exponential, Linear


def test_a_linear_rise_ends_and_stays() -> None:
    momentum = Linear(0.999, 0.9999, 30_000)
    assert momentum(0) == pytest.approx(0.999)
    assert momentum(15_000) == pytest.approx(0.99945)
    assert momentum(30_000) == momentum(400_000) == pytest.approx(0.9999)


def test_a_frozen_teacher_keeps_all_of_itself() -> None:
    momentum = Linear(0.999, 0.9999, 30_000, freeze_at=200_000)
    assert momentum(199_999) == pytest.approx(0.9999)
    assert momentum(200_000) == 1.0


def test_the_cosine_is_byols() -> None:
    momentum = Cosine(0.995, 1.0, 15_000)
    for step in (0, 3_000, 7_500, 15_000):  # 1 - (1 - start) * (cos(pi k / K) + 1) / 2
        assert momentum(step) == pytest.approx(1 - 0.005 * (math.cos(math.pi * step / 15_000) + 1) / 2)
    assert momentum(20_000) == 1.0


def test_the_exponential_misses_one_by_a_factor_e_less_each_time() -> None:
    momentum = Exponential(0.999, 20_000)
    assert momentum(0) == pytest.approx(0.999)
    assert 1 - momentum(20_000) == pytest.approx(0.001 / math.e)
    assert 1 - momentum(200_000) == pytest.approx(0.001 * math.exp(-10))


@pytest.mark.parametrize("arguments", [(1.1,), (0.9, 1.2), (0.9, 0.9, -1)])
def test_what_is_no_momentum_is_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="momentum"):
        Linear(*arguments)
