import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from ossicle.core.errors import ConfigError
from ossicle.mixer.attention import Attention
from tests.mixer.loops import attention, check_padded_rows, macs, num_parameters


def twin(mixer: Attention, dim: int) -> nn.MultiheadAttention:
    """torch's own module with the mixer's weights."""
    theirs = nn.MultiheadAttention(dim, mixer.num_heads, batch_first=True)
    parts = (mixer.query, mixer.key, mixer.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(mixer.out.state_dict())
    return theirs


def noisy(mixer: Attention) -> Attention:
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return mixer.eval()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@hypothesis.given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4))
@hypothesis.settings(max_examples=15, deadline=None)
def test_it_equals_torchs_multihead_attention_with_and_without_padding(backend: str, lengths: list[int]) -> None:
    torch.manual_seed(sum(lengths))
    mixer = noisy(Attention(24, num_heads=3, backend=backend))
    theirs = twin(mixer, 24)
    x_BTD = torch.randn(len(lengths), max(lengths), 24)
    torch.testing.assert_close(mixer(x_BTD), theirs(x_BTD, x_BTD, x_BTD)[0], atol=1e-5, rtol=1e-5)
    valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    expected = theirs(x_BTD, x_BTD, x_BTD, key_padding_mask=~valid_BT)[0]
    torch.testing.assert_close(mixer(x_BTD, valid_BT)[valid_BT], expected[valid_BT], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_padded_rows_equal_a_float64_loop_over_each_alone(backend: str) -> None:
    torch.manual_seed(0)
    mixer = noisy(Attention(12, num_heads=3, backend=backend)).double()
    check_padded_rows(mixer, 12, lambda x_TD: attention(mixer, x_TD))


@hypothesis.given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=4))
@hypothesis.settings(max_examples=15, deadline=None)
def test_a_padded_row_equals_the_row_alone(lengths: list[int]) -> None:
    torch.manual_seed(sum(lengths))
    mixer = noisy(Attention(16, num_heads=2))
    x_BTD = torch.randn(len(lengths), max(lengths), 16)
    valid_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    out = mixer(x_BTD, valid_BT)
    for row, length in enumerate(lengths):
        alone = mixer(x_BTD[row : row + 1, :length])[0]
        torch.testing.assert_close(out[row, :length], alone, atol=1e-5, rtol=1e-5)


def test_its_gradients_pass_gradcheck() -> None:
    mixer = noisy(Attention(4, num_heads=2)).double()
    x_BTD = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_the_formula() -> None:
    dim, rows, frames = 768, 2, 100
    with torch.device("meta"):
        assert num_parameters(Attention(dim)) == 4 * (dim * dim + dim)
    # four maps, scores and means; the number of heads changes nothing
    for heads in (1, 12):
        made = macs(lambda heads=heads: Attention(dim, heads), rows, frames, dim)
        assert made == rows * (4 * frames * dim**2 + 2 * frames**2 * dim)


def test_adapters_that_wrap_its_linear_maps_are_in_the_path() -> None:
    mixer = Attention(8, num_heads=2).eval()
    called = []
    for name in ("query", "key", "value", "out"):
        getattr(mixer, name).register_forward_hook(lambda *_, name=name: called.append(name))
    mixer(torch.randn(1, 3, 8))
    assert called == ["query", "key", "value", "out"]


def test_dropout_acts_only_in_training() -> None:
    mixer = Attention(8, num_heads=2, dropout=0.5)
    x_BTD = torch.randn(1, 9, 8)
    assert not torch.equal(mixer(x_BTD), mixer(x_BTD))
    mixer.eval()
    assert torch.equal(mixer(x_BTD), mixer(x_BTD))


def test_heads_that_do_not_divide_the_width_are_refused_naming_the_nearest_that_do() -> None:
    with pytest.raises(ConfigError, match="num_heads=5 does not divide the width 192") as caught:
        Attention(192, num_heads=5)
    assert caught.value.mend.endswith("is 4")


def test_an_unknown_backend_is_refused_when_the_model_is_built() -> None:
    with pytest.raises(ConfigError, match="no backend 'fused'"):
        Attention(8, num_heads=2, backend="fused")
