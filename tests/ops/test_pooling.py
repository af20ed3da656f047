import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from torch.nn import functional

from ossicle.ops.pooling import interpolate_grid, pool_frames, relative_places, repeat_frames


@hypothesis.given(frames=st.integers(1, 20), factor=st.integers(1, 5))
@hypothesis.settings(max_examples=40, deadline=None)
def test_it_equals_torchs_pooling_that_leaves_padding_out(frames: int, factor: int) -> None:
    x_BTD = torch.randn(2, frames, 3, dtype=torch.float64)
    expected = functional.avg_pool1d(x_BTD.transpose(1, 2), factor, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(pool_frames(x_BTD, factor), expected.transpose(1, 2))


def test_padding_counts_for_nothing() -> None:
    x_BTD = torch.randn(2, 9, 3)
    valid_BT = torch.arange(9) < torch.tensor([[9], [5]])
    pooled = pool_frames(x_BTD.masked_fill(~valid_BT[..., None], 0), 2, valid_BT)
    torch.testing.assert_close(pooled[1, :3], pool_frames(x_BTD[1:, :5], 2)[0])


def test_repeating_undoes_the_rate() -> None:
    x_BUD = torch.randn(1, 3, 2)
    out = repeat_frames(x_BUD, 2, 5)
    assert torch.equal(out[0], x_BUD[0][[0, 0, 1, 1, 2]])


def test_places_are_the_middles_of_real_frames() -> None:
    valid_BT = torch.tensor([[True] * 4, [True, True, False, False]])
    assert relative_places(valid_BT)[0].tolist() == [0.125, 0.375, 0.625, 0.875]
    assert relative_places(valid_BT)[1, :2].tolist() == [0.25, 0.75]


@hypothesis.given(points=st.integers(1, 6), place=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8))
def test_functions_on_a_grid_equal_numpys_interpolation(points: int, place: list[float]) -> None:
    grid_SG = torch.randn(3, points, dtype=torch.float64)
    read_BST = interpolate_grid(grid_SG, torch.tensor([place], dtype=torch.float64))
    middles = (np.arange(points) + 0.5) / points
    expected = [np.interp(place, middles, values) for values in grid_SG.numpy()]
    np.testing.assert_allclose(read_BST[0].numpy(), expected, atol=1e-6)
