"""Mixers that know each other inside every encoder that takes them: maps that are lent, weights that are shared."""

import copy

import pytest
import torch
from torch import nn

from ossicle.encoder.base import Encoder
from ossicle.mixer.base import MixerFactory
from ossicle.mixer.disentangled_attention import DisentangledAttentionStack
from ossicle.mixer.pattern import Pattern
from ossicle.mixer.relative_attention import RelativeAttentionStack
from ossicle.mixer.reused_attention import ReusedAttention, ReusedAttentionStack
from ossicle.ops.packing import Packing
from tests.encoder.test_contract import ATTENTION, encoder

ENCODERS = ["transformer", "conformer", "branchformer", "squeezed", "hierarchical", "progressive", "mr_hubert"]
REUSED = ReusedAttentionStack(2, 0.0)
RELATIVE = RelativeAttentionStack(2, 0.0)
MIXERS: dict[str, MixerFactory] = {
    "reused": REUSED,
    "relative": RELATIVE,
    "disentangled": DisentangledAttentionStack(2, 0.0),
    "reused, attention": Pattern([REUSED, ATTENTION]),
    "relative, reused": Pattern([RELATIVE, REUSED]),
}
PLACES = [pytest.param(name, key, id=f"{name}: {key}") for name in ENCODERS for key in MIXERS]


def frames(built: Encoder, rows: int, count: int) -> torch.Tensor:
    return torch.randn(rows, count, built.input_dim)


@pytest.mark.parametrize(("name", "key"), PLACES)
def test_a_padded_row_equals_the_row_alone_and_every_parameter_learns(name: str, key: str) -> None:
    built = encoder(name, MIXERS[key])
    x_BTD, lengths = frames(built, 2, 40), (40, 23)
    valid_BT = torch.arange(40) < torch.tensor(lengths)[:, None]
    padded_BTD = built(x_BTD, valid_BT).last_BTD
    for row, length in enumerate(lengths):
        alone_BTD = built(x_BTD[row : row + 1, :length]).last_BTD
        torch.testing.assert_close(padded_BTD[row, : alone_BTD.shape[1]], alone_BTD[0], atol=2e-5, rtol=2e-5)
    (built(x_BTD).last_BTD * torch.randn_like(padded_BTD)).sum().backward()
    silent = [key for key, p in built.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


BORROWERS: dict[str, dict[str, object]] = {
    **{name: {} for name in ("transformer", "conformer", "branchformer", "squeezed", "progressive")},
    "hierarchical": {"layers_by_group": [2, 2, 2, 2, 2]},  # both of each group at one rate
}


def borrower(name: str) -> tuple[Encoder, list[bool]]:
    """An encoder, and a list that it fills with whether each layer that reuses a map was lent it."""
    built, seen = encoder(name, REUSED, **BORROWERS[name]), []
    for mixer in built.modules():
        if isinstance(mixer, ReusedAttention) and mixer.creditor is not None:
            mixer.register_forward_pre_hook(lambda mixer, _: seen.append(len(mixer.borrowed) == 2))
    return built, seen


@pytest.mark.parametrize("name", BORROWERS)
def test_packed_utterances_borrow_and_equal_each_alone(name: str) -> None:
    built, borrowed = borrower(name)
    built.eval()
    lengths = [33, 16, 25]
    x_PD = torch.randn(sum(lengths), built.input_dim)
    packed = built.packed(x_PD, Packing.of(lengths))
    assert borrowed
    for ours_TD, x_TD in zip(packed.last_PD.split(packed.lengths), x_PD.split(lengths), strict=True):
        torch.testing.assert_close(ours_TD, built(x_TD[None]).last_BTD[0], atol=2e-5, rtol=2e-5)
    assert all(borrowed)


@pytest.mark.parametrize("name", BORROWERS)
def test_what_is_borrowed_in_bfloat16_trains_both_layers(name: str) -> None:
    built, borrowed = borrower(name)
    x_BTD = frames(built, 2, 33)
    valid_BT = torch.arange(33) < torch.tensor([[33], [20]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out_BTD = built(x_BTD, valid_BT).last_BTD
    (out_BTD.float() * torch.randn(out_BTD.shape)).sum().backward()
    assert borrowed
    assert all(borrowed)
    for key, parameter in built.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", BORROWERS)
def test_layers_borrow_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        built, borrowed = borrower(name)
        out_BTD = built(frames(built, 2, 40)).last_BTD
    assert out_BTD.device.type == "meta"
    assert borrowed
    assert all(borrowed)


@pytest.mark.parametrize(
    ("name", "key"), [*((name, "relative, reused") for name in ENCODERS), ("transformer", "disentangled")]
)
# Blocks of a class share one count of versions: two kinds of mixers, each leading or not, at every rate and shape.
@torch._dynamo.config.patch(recompile_limit=64)
def test_blocks_compile_in_place_without_a_break_and_once_a_shape(name: str, key: str) -> None:
    torch._dynamo.reset()
    plain = encoder(name, MIXERS[key]).eval()
    built = copy.deepcopy(plain)
    assert isinstance(built.blocks, nn.ModuleList)
    for block in built.blocks:
        block.compile(backend="eager", fullgraph=True, dynamic=False)
    for rows, count in ((2, 20), (1, 32), (2, 20)):
        x_BTD = frames(built, rows, count)
        torch.testing.assert_close(built(x_BTD).last_BTD, plain(x_BTD).last_BTD, atol=1e-5, rtol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        built(frames(built, 2, 20))


@pytest.mark.parametrize("name", ["transformer", "conformer", "branchformer", "squeezed"])
def test_a_map_is_made_once_for_all_layers_that_reuse_it(name: str) -> None:
    built = encoder(name, Pattern([ReusedAttentionStack(2, 0.0, num_reuses=2), ATTENTION]), num_layers=6).eval()
    leader, *followers = [block.mixer for block in built.blocks][::2]  # ty: ignore[not-iterable]
    assert all(mixer.creditor is leader for mixer in followers)
    borrowed: list[torch.Tensor] = []
    for mixer in followers:
        mixer.register_forward_pre_hook(lambda mixer, _: borrowed.append(mixer.borrowed[0]))
    made: list[torch.Tensor] = []
    leader.query.register_forward_hook(lambda _, __, query_BTD: made.append(query_BTD))
    built(frames(built, 1, 20))
    assert len(made) == 1
    assert [query_BTHK.data_ptr() for query_BTHK in borrowed] == 2 * [made[0].data_ptr()]


def test_layers_reuse_no_map_of_another_rate() -> None:
    # the middle group is at half the rate; layers 0 and 1 are a pair, 2 and 3 another, of which 3 is at the first rate
    stack = ReusedAttentionStack(2, 0.0)
    built = encoder("hierarchical", stack, layers_by_group=[2, 1, 2], factors=[2]).eval()
    borrowed: list[bool] = []
    for block in built.blocks:  # ty: ignore[not-iterable]
        block.mixer.register_forward_pre_hook(lambda mixer, _: borrowed.append(bool(mixer.borrowed)))
    assert built(frames(built, 1, 20)).last_BTD.isfinite().all()
    assert borrowed == [False, True, False, False, False]


@pytest.mark.parametrize("key", MIXERS)
def test_layers_that_are_skipped_in_training_lend_nothing_and_the_others_go_on(key: str) -> None:
    built = encoder("transformer", MIXERS[key], num_layers=6, layer_drop=0.5)
    x_BTD = frames(built, 2, 20)
    for seed in range(8):
        torch.manual_seed(seed)
        out_BTD = built(x_BTD).last_BTD
        assert out_BTD.isfinite().all()
        out_BTD.square().sum().backward()
