"""What training drops, and where: with everything dropped what comes out is known; float64's dropout takes it all."""

import pytest
import torch
from torch import Tensor, nn

from ossicle.encoder.base import Encoder
from ossicle.encoder.block import PreNormBlock
from ossicle.encoder.branchformer import BranchformerBlock
from ossicle.encoder.conformer import ConformerBlock
from ossicle.encoder.convolutional import CausalBlock
from ossicle.launch.parts import option
from ossicle.layer.feed_forward import FeedForward
from ossicle.ops.packing import Packing
from tests.encoder.test_contract import COMPOSED, NAMES, encoder

FRAMES = 24


def takers(argument: str) -> list[str]:
    """The encoders that take an argument."""
    return [name for name in NAMES if argument in option(COMPOSED.get(name, (name, {}))[0], "encoder")]


def dropping(name: str, **rates: float) -> Encoder:
    """An encoder in training, with weights that leave nothing at zero."""
    built = encoder(name, **rates).double()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    return built


def frames(built: Encoder) -> Tensor:
    return torch.randn(2, FRAMES, built.input_dim, dtype=torch.float64)


def left(block: nn.Module, x_BTD: Tensor) -> Tensor:
    """What a block makes of frames where its branches say nothing."""
    if isinstance(block, PreNormBlock | BranchformerBlock):
        return x_BTD
    if isinstance(block, ConformerBlock):
        return block.norm(x_BTD)
    if isinstance(block, CausalBlock):
        return block.scale * x_BTD
    return block.feed_forward_norm(block.mixer_norm(x_BTD))


@pytest.mark.parametrize("name", takers("dropout"))
def test_every_branch_of_every_block_is_dropped_and_no_residual(name: str) -> None:
    built = dropping(name, dropout=1.0)
    packing = Packing.of([5, 3])
    for block in built.blocks:
        width = next(block.parameters()).shape[0]
        x_BTD = torch.randn(2, 7, width, dtype=torch.float64)
        torch.testing.assert_close(block(x_BTD), left(block, x_BTD), atol=1e-12, rtol=0)
        x_PD = torch.randn(8, width, dtype=torch.float64)
        torch.testing.assert_close(block.packed(x_PD, packing), left(block, x_PD), atol=1e-12, rtol=0)


def test_both_branches_of_a_branchformer_are_dropped_before_they_meet_and_its_gate_inside() -> None:
    built = dropping("branchformer", dropout=1.0)
    seen = []
    for block in built.blocks:
        for part in (block.merge, block.gating.contract):
            part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    built(frames(built))
    assert len(seen) == 2 * len(built.blocks)
    assert not any(x.any() for x in seen)


@pytest.mark.parametrize(
    "name", [name for name in takers("dropout") if name != "convolutional"]
)  # drops branches alone
def test_what_goes_into_the_first_block_is_dropped(name: str) -> None:
    built = dropping(name, dropout=1.0)
    assert not built(frames(built), layers=True).layers[0].any()
    x_PD = torch.randn(40, built.input_dim, dtype=torch.float64)
    assert not built.packed(x_PD, Packing.of([24, 16]), layers=True).layers[0].any()


@pytest.mark.parametrize("name", ["mr_hubert", "progressive", "progressive, norms first"])
def test_what_goes_into_each_group_is_dropped_where_each_has_a_norm(name: str) -> None:
    built = dropping(name, dropout=1.0)
    seen: list[Tensor] = []
    for block in built.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    built(frames(built))
    silent = [not x.any() for x in seen]
    # the second block of the last group hears the first, whose norms have a bias where they follow
    assert silent == ([True] * 5 if name == "mr_hubert" else [True, True, "first" in name])


@pytest.mark.parametrize("name", takers("activation_dropout"))
def test_dropout_inside_of_feed_forward_networks_is_a_number_of_its_own(name: str) -> None:
    built = dropping(name, activation_dropout=1.0)
    networks = [part for part in built.modules() if isinstance(part, FeedForward)]
    seen: list[Tensor] = []
    for network in networks:
        network.contract.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    built(frames(built))
    assert len(seen) == len(networks)
    assert not any(x.any() for x in seen)


@pytest.mark.parametrize("name", takers("dropout"))
def test_nothing_is_dropped_in_evaluation_nor_where_the_rate_is_zero(name: str) -> None:
    everything, nothing = dropping(name, dropout=1.0).eval(), dropping(name)
    nothing.load_state_dict(everything.state_dict())
    x_BTD, packing = frames(nothing), Packing.of([FRAMES, FRAMES])
    expected = nothing(x_BTD).last_BTD
    assert torch.equal(everything(x_BTD).last_BTD, expected)
    packed_PD = everything.packed(x_BTD.flatten(0, 1), packing).last_PD
    torch.testing.assert_close(packed_PD.view_as(expected), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", takers("layer_drop"))
def test_blocks_are_skipped_as_often_as_stated_and_in_training_alone(name: str) -> None:
    ran: list[int] = []
    for rate in (0.999, 0.0):
        built = encoder(name, layer_drop=rate)
        for block in built.blocks:
            block.register_forward_hook(lambda *_: ran.append(1))
        torch.manual_seed(0)
        built(torch.randn(1, FRAMES, built.input_dim))
        assert len(ran) == (0 if rate else len(built.blocks))
        if rate:
            built.eval()(torch.randn(1, FRAMES, built.input_dim))
            assert len(ran) == len(built.blocks)
            ran.clear()
