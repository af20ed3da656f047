import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from ossicle.core.errors import ConfigError
from ossicle.mixer.local_attention import LocalAttention
from tests.mixer.loops import array, dependence, macs, mapped, noisy, num_parameters, softmax_means

DIM, HEADS = 24, 3


def twin(mixer: LocalAttention) -> LongformerSelfAttention:
    """transformers' attention of Longformer with the mixer's weights."""
    config = LongformerConfig(
        hidden_size=DIM, num_attention_heads=HEADS, num_hidden_layers=1, attention_window=[2 * mixer.window],
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = LongformerSelfAttention(config, layer_id=0)
    for name in ("query", "key", "value"):
        getattr(theirs, name).load_state_dict(getattr(mixer, name).state_dict())
        source = getattr(mixer, f"{name}_global") if mixer.num_global else getattr(mixer, name)
        getattr(theirs, f"{name}_global").load_state_dict(source.state_dict())
    return theirs.eval()


@pytest.mark.parametrize("num_global", [0, 1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_it_equals_transformers_longformer(masked: bool, num_global: int) -> None:
    mixer = noisy(LocalAttention(DIM, HEADS, window=4, num_global=num_global))
    x_BTD = torch.randn(2, 48, DIM)
    valid_BT = torch.arange(48) < torch.tensor([[48], [29 if masked else 48]])
    is_global = torch.zeros(2, 48, dtype=torch.bool)
    is_global[:, :num_global] = True
    kinds_BT = torch.zeros(2, 48).masked_fill(is_global, 10_000).masked_fill(~valid_BT, -10_000)
    theirs = twin(mixer)(
        x_BTD,
        kinds_BT,
        is_index_masked=~valid_BT,
        is_index_global_attn=is_global,
        is_global_attn=num_global > 0,
    )[0]
    ours = mixer(x_BTD, valid_BT if masked else None)
    torch.testing.assert_close(ours[valid_BT], mixer.out(theirs)[valid_BT], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_global", [0, 2])
def test_it_equals_a_loop_in_float64(num_global: int) -> None:
    mixer = noisy(LocalAttention(DIM, HEADS, window=3, num_global=num_global)).double()
    x_TD = torch.randn(40, DIM, dtype=torch.float64)
    names = ("query", "key", "value")
    near = [mapped(getattr(mixer, name), array(x_TD), HEADS) for name in names]
    far = [mapped(getattr(mixer, f"{name}_global"), array(x_TD), HEADS) for name in names] if num_global else near

    def mixed(parts: list[np.ndarray]) -> np.ndarray:
        q_THK, k_THK, v_THK = parts
        return softmax_means(
            lambda h, i, j: q_THK[i, h] @ k_THK[j, h] / math.sqrt(DIM // HEADS),
            v_THK,
            lambda i, j: abs(i - j) <= 3 or j < num_global or i < num_global,
        )

    mixed_THK = np.concatenate([mixed(far)[:num_global], mixed(near)[num_global:]])
    expected = mapped(mixer.out, mixed_THK.reshape(40, DIM))[:, 0]
    np.testing.assert_allclose(array(mixer(x_TD[None]))[0], expected, atol=1e-12)


@pytest.mark.parametrize("num_global", [0, 2])
def test_a_frame_depends_on_its_window_and_on_global_frames_alone(num_global: int) -> None:
    mixer = noisy(LocalAttention(DIM, HEADS, window=3, num_global=num_global))
    place = np.arange(70)
    expected = np.abs(place[:, None] - place) <= 3
    expected[:, :num_global] = expected[:num_global] = True
    np.testing.assert_array_equal(dependence(mixer, 70, DIM), expected)


def test_its_gradients_pass_gradcheck() -> None:
    mixer = noisy(LocalAttention(4, num_heads=2, window=1, num_global=1)).double()
    x_BTD = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_the_formula() -> None:
    dim, rows, window = 768, 2, 64
    with torch.device("meta"):
        plain: nn.Module = LocalAttention(dim)
        with_global: nn.Module = LocalAttention(dim, num_global=1)
    assert num_parameters(plain) == 4 * (dim * dim + dim)
    assert num_parameters(with_global) == 7 * (dim * dim + dim)
    for frames in (640, 6400):
        # each frame's products with the three blocks around it
        maps = 4 * frames * dim**2
        expected = rows * (maps + 2 * frames * 3 * window * dim)
        assert macs(lambda: LocalAttention(dim), rows, frames, dim) == expected
        # one more key each, and one frame that sees all by maps of its own
        more = 2 * frames * dim + (2 * frames + 1) * dim**2 + 2 * frames * dim
        assert macs(lambda: LocalAttention(dim, num_global=1), rows, frames, dim) == expected + rows * more


def test_numbers_that_make_no_window_and_backends_that_serve_no_global_frames_are_refused() -> None:
    with pytest.raises(ConfigError, match="window=-1"):
        LocalAttention(DIM, HEADS, window=-1)
    with pytest.raises(ConfigError, match="backend=sdpa with"):
        LocalAttention(DIM, HEADS, num_global=1, backend="sdpa")
