from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ossicle.core.errors import ConfigError
from ossicle.encoder.hierarchical import Hierarchical
from ossicle.layer.sampling import ConvolutionSampling
from ossicle.mixer.attention import Attention
from tests.layer.test_sampling import adapter

AUTHORS: dict[str, Any] = {
    "sampling": ConvolutionSampling, "skip": "after", "middle_residual": True, "group_norms": True,
}  # fmt: skip
"""As the authors of MR-HuBERT have it."""


def small(groups: tuple[int, ...], factors: tuple[int, ...], **more: Any) -> Hierarchical:
    torch.manual_seed(0)
    sizes = {"dim": 16, "ffn_dim": 32, "position_kernel": 8, "position_groups": 4, "dropout": 0.0}
    attention = partial(Attention, num_heads=2, dropout=0.0)
    built = Hierarchical(attention, layers_by_group=groups, factors=factors, **(sizes | more)).eval()
    for parameter in built.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0, 0.2)  # no two norms are alike
    return built


def authors(encoder: Hierarchical, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The order of MR-HuBERT's authors, for blocks, norms and weights of ours: the output, and what each rate leaves.

    Frames of two numbers of groups of different lengths are cut to the shorter before they are added.
    """
    blocks, groups, num_down = list(encoder.blocks), encoder.layers_by_group, len(encoder.factors)
    norms = [encoder.norm, *encoder.other_norms]
    if encoder.norm_first:
        norms = [*encoder.other_norms, encoder.norm]

    def transformer(group: int, x: Tensor) -> Tensor:
        x = x if encoder.norm_first else norms[group](x)
        for block in blocks[sum(groups[:group]) : sum(groups[: group + 1])]:
            x = block(x)
        return norms[group](x) if encoder.norm_first else x

    def summed(x: Tensor, y: Tensor) -> Tensor:
        common = min(x.shape[1], y.shape[1])
        return x[:, :common] + y[:, :common]

    x, residuals, left = x + encoder.position(x), [], []
    for group in range(num_down):
        x = transformer(group, x)
        residuals.append(x)
        x = adapter(encoder.down[group], x)  # ty: ignore[invalid-argument-type]
    x = x + transformer(num_down, x)
    left.append(x)
    for group in range(num_down):
        x = adapter(encoder.up[num_down - 1 - group], x)  # ty: ignore[invalid-argument-type]
        x = summed(transformer(num_down + 1 + group, x), residuals.pop())
        left.append(x)
    return x, left


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
    low = encoder.blocks[1](encoder.down[0].linear(pooled))  # ty: ignore[call-non-callable, unresolved-attribute]
    raised = encoder.up[0].linear(low).repeat_interleave(2, dim=1)  # ty: ignore[call-non-callable, unresolved-attribute]
    torch.testing.assert_close(encoder(x).last_BTD, encoder.blocks[2](first + raised))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("frames", [1, 7, 12, 25])
@pytest.mark.parametrize(("groups", "factors"), [((2, 2, 2), (2,)), ((1, 2, 1, 1, 2), (2, 3)), ((1, 1, 1), (4,))])
def test_it_can_be_what_the_authors_of_mr_hubert_compute(
    groups: tuple[int, ...], factors: tuple[int, ...], frames: int, norm_first: bool
) -> None:
    encoder = small(groups, factors, norm_first=norm_first, **AUTHORS).double()
    x = torch.randn(2, frames, 16, dtype=torch.float64)
    expected, left = authors(encoder, x)
    output = encoder(x, layers=True)
    torch.testing.assert_close(output.last_BTD, expected)
    assert len(output.layers) == sum(groups) + 1
    middle, ends = len(factors), [sum(groups[: group + 1]) for group in range(len(groups))]
    for end, at_its_rate in zip(ends[middle:], left, strict=True):
        factor = encoder.layer_factor(end)
        torch.testing.assert_close(output.layers[end], at_its_rate.repeat_interleave(factor, dim=1)[:, :frames])


@pytest.mark.parametrize(
    "other", [{"skip": "before"}, {"middle_residual": False}, {"group_norms": False}, {"norm_first": True}]
)
def test_each_of_the_authors_choices_changes_what_comes_out(other: dict[str, Any]) -> None:
    x = torch.randn(2, 7, 16)
    theirs, ours = small((1, 1, 1), (2,), **AUTHORS), small((1, 1, 1), (2,), **(AUTHORS | other))
    ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not torch.allclose(ours(x).last_BTD, theirs(x).last_BTD)


def test_with_the_skip_after_it_the_last_group_hears_all_frames_that_the_rate_below_makes() -> None:
    encoder = small((1, 1, 1, 1, 1), (2, 3), **AUTHORS)
    seen: list[int] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    assert encoder(torch.randn(1, 25, 16)).last_BTD.shape == (1, 25, 16)
    assert seen == [25, 13, 5, 15, 26]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(("group_norms", "times"), [(False, 1), (True, 3)])
def test_frames_are_dropped_out_where_a_group_begins(norm_first: bool, group_norms: bool, times: int) -> None:
    encoder = small((1, 1, 1), (2,), group_norms=group_norms, norm_first=norm_first)
    calls: list[int] = []
    encoder.dropout.register_forward_hook(lambda *_: calls.append(1))
    encoder(torch.randn(1, 6, 16))
    assert len(calls) == times


def test_a_skip_at_no_place_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.skip=between names no place"):
        small((1, 1, 1), (2,), skip="between")


def test_groups_that_do_not_fit_the_factors_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 positive factors join 3 groups"):
        small((2, 2), (2,))
