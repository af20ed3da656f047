import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DebertaV2Config, SEWDConfig
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention as DebertaAttention
from transformers.models.sew_d.modeling_sew_d import DisentangledSelfAttention as SewdAttention

from ossicle.core.errors import ConfigError
from ossicle.mixer import disentangled_attention
from ossicle.mixer.disentangled_attention import DisentangledAttention, DisentangledAttentionStack
from tests.mixer.loops import array, macs, mapped, noisy, num_parameters, softmax_means

DIM, HEADS, BUCKETS, FARTHEST = 24, 3, 4, 12
COMMON = {
    "hidden_size": DIM, "num_attention_heads": HEADS, "relative_attention": True, "position_buckets": BUCKETS,
    "max_relative_positions": FARTHEST, "share_att_key": True, "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0, "norm_rel_ebd": "layer_norm",
}  # fmt: skip


def layers(num_layers: int = 2, head_dim: int | None = None) -> list[DisentangledAttention]:
    stack = DisentangledAttentionStack(HEADS, 0.0, num_buckets=BUCKETS, max_distance=FARTHEST, head_dim=head_dim)
    built = stack.build([DIM] * num_layers)
    noisy(nn.ModuleList(built))
    return [mixer for mixer in built if isinstance(mixer, DisentangledAttention)]


def load(theirs: nn.Module, mixer: DisentangledAttention) -> nn.Module:
    for name in ("query", "key", "value"):
        getattr(theirs, f"{name}_proj").load_state_dict(getattr(mixer, name).state_dict())
    return theirs.eval()


@pytest.mark.parametrize("masked", [False, True])
def test_two_layers_equal_transformers_sew_d(masked: bool) -> None:
    mixers = layers()
    config = SEWDConfig(**COMMON, pos_att_type=("p2c", "c2p"), attention_dropout=0.0, activation_dropout=0.0)
    x_BTD = torch.randn(2, 40, DIM)
    valid_BT = torch.arange(40) < torch.tensor([[40], [23]]) if masked else torch.ones(2, 40, dtype=torch.bool)
    embedding_GD = mixers[0].embedding()
    ours = theirs = x_BTD
    for mixer in mixers:
        ours = mixer(ours, valid_BT if masked else None)
        attention = load(SewdAttention(config), mixer)
        # SEW-D's attention ends before the last map, which stands in its layer
        theirs = mixer.out(attention(theirs, valid_BT[:, None, None, :], rel_embeddings=embedding_GD)[0])
        torch.testing.assert_close(ours[valid_BT], theirs[valid_BT], atol=1e-5, rtol=1e-5)


def test_it_equals_transformers_deberta_v2() -> None:
    (mixer,) = layers(1)
    config = DebertaV2Config(**COMMON, pos_att_type=["p2c", "c2p"])
    attention = load(DebertaAttention(config), mixer)
    x_BTD = torch.randn(2, 30, DIM)
    seen = torch.ones(2, 1, 30, 30, dtype=torch.bool)
    theirs = mixer.out(attention(x_BTD, seen, rel_embeddings=mixer.embedding())[0])
    torch.testing.assert_close(mixer(x_BTD), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", [2**28, HEADS * 9 * 2])
@pytest.mark.parametrize("head_dim", [None, 5])
def test_it_equals_a_loop_in_float64_in_blocks_too(
    budget: int, head_dim: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = disentangled_attention.attend_biased
    monkeypatch.setattr(
        disentangled_attention, "attend_biased", lambda *args, **more: attend(*args, **more, budget=budget)
    )
    owner, mixer = (one.double() for one in layers(head_dim=head_dim))
    frames, width = 9, head_dim or DIM // HEADS
    x_TD = torch.randn(frames, DIM, dtype=torch.float64)
    q_THK, k_THK, v_THK = (mapped(linear, array(x_TD), HEADS) for linear in (mixer.query, mixer.key, mixer.value))
    raw_GD = array(owner.embedding.weight)
    centred_GD = raw_GD - raw_GD.mean(1, keepdims=True)
    normed_GD = centred_GD / np.sqrt(centred_GD.var(1, keepdims=True) + 1e-7)
    normed_GD = normed_GD * array(owner.embedding.norm.weight) + array(owner.embedding.norm.bias)
    from_GHK, to_GHK = mapped(mixer.query, normed_GD, HEADS), mapped(mixer.key, normed_GD, HEADS)
    # four buckets a side: 0, 1 and 2 exact, the third up to 11 frames, then the last, which the right side shares
    bucket = {d: d if abs(d) <= 2 else int(math.copysign(3, d)) for d in range(1 - frames, frames)}

    def score(head: int, query: int, key: int) -> float:
        place = bucket[query - key] + BUCKETS
        content = q_THK[query, head] @ k_THK[key, head]
        position = q_THK[query, head] @ to_GHK[place, head] + k_THK[key, head] @ from_GHK[place, head]
        return (content + position) / math.sqrt(3 * width)

    expected = mapped(mixer.out, softmax_means(score, v_THK).reshape(frames, -1))[:, 0]
    np.testing.assert_allclose(array(mixer(x_TD[None]))[0], expected, atol=1e-12)


def test_layers_of_one_width_share_an_embedding_and_those_of_another_have_their_own() -> None:
    mixers = nn.ModuleList(DisentangledAttentionStack(HEADS, num_buckets=BUCKETS).build([DIM, DIM, 48, 48]))
    owners = sorted(key for key in mixers.state_dict() if key.endswith("distances.weight"))
    assert owners == ["0.distances.weight", "2.distances.weight"]
    assert mixers[1].embedding is mixers[0].embedding
    assert mixers[3].embedding is mixers[2].embedding


@pytest.mark.parametrize(("own", "drops"), [(None, True), (0.0, False), (0.5, True)])
def test_embeddings_of_distances_have_a_dropout_of_their_own_or_attentions(own: float | None, drops: bool) -> None:
    (mixer,) = DisentangledAttentionStack(HEADS, 0.3, BUCKETS, FARTHEST, distance_dropout=own).build([DIM])
    assert isinstance(mixer, DisentangledAttention)
    mixer.train()
    assert bool((mixer.embedding() == 0).any()) == drops
    assert not torch.equal(*(mixer(torch.ones(1, 9, DIM)) for _ in range(2)))  # attention's stays


def test_its_gradients_pass_gradcheck() -> None:
    mixer = layers(1)[0].double()
    x_BTD = torch.randn(1, 3, DIM, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x_BTD,))


def test_parameters_and_multiply_accumulates_are_those_of_the_formula() -> None:
    dim, frames, rows, places = 768, 100, 2, 512
    stack = DisentangledAttentionStack()
    with torch.device("meta"):
        mixers = stack.build([dim] * 12)
    assert num_parameters(*mixers) == 12 * 4 * (dim * dim + dim) + places * dim + 2 * dim
    # the maps of frames and of places, content to content, and both products of content and places
    expected = rows * (4 * frames * dim**2 + 2 * frames**2 * dim + 2 * frames * places * dim) + 2 * places * dim**2
    assert macs(lambda: stack.build([dim])[0], rows, frames, dim) == expected


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(5, 512), (2, 512), (256, 129)])
def test_buckets_that_cannot_be_made_are_refused(num_buckets: int, max_distance: int) -> None:
    with pytest.raises(ConfigError, match="makes no buckets"):
        DisentangledAttention(DIM, HEADS, num_buckets=num_buckets, max_distance=max_distance)
