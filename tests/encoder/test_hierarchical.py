from functools import partial

import pytest
import torch

from ossicle.core.errors import ConfigError
from ossicle.encoder.hierarchical import Hierarchical
from ossicle.mixer.attention import Attention


def small(groups: tuple[int, ...], factors: tuple[int, ...]) -> Hierarchical:
    torch.manual_seed(0)
    return Hierarchical(
        partial(Attention, num_heads=2, dropout=0.0), dim=16, layers_by_group=groups, factors=factors, ffn_dim=32,
        position_kernel=8, position_groups=4, dropout=0.0,
    ).eval()  # fmt: skip


def test_blocks_run_at_the_rate_of_their_group() -> None:
    encoder = small((1, 1, 1, 1, 1), (2, 3))
    seen: list[int] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    assert encoder(torch.randn(1, 24, 16)).last_BTD.shape == (1, 24, 16)
    assert seen == [24, 12, 4, 12, 24]


def test_with_one_group_down_it_is_the_sum_that_it_says() -> None:
    encoder = small((1, 1, 1), (2,)).double()
    x = torch.randn(2, 10, 16, dtype=torch.float64)
    first = encoder.blocks[0](encoder.norm(x + encoder.position(x)))
    pooled = first.unflatten(1, (5, 2)).mean(2)
    low = encoder.blocks[1](encoder.down[0](pooled))
    expected = encoder.blocks[2](first + encoder.up[0](low).repeat_interleave(2, dim=1))
    torch.testing.assert_close(encoder(x).last_BTD, expected)


def test_groups_that_do_not_fit_the_factors_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 positive factors join 3 groups"):
        small((2, 2), (2,))
