"""Conformer and Branchformer blocks beside speechbrain's, with its names for our weights."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from ossicle.encoder.branchformer import BranchformerBlock
from ossicle.encoder.conformer import ConformerBlock
from ossicle.mixer.attention import Attention
from tests.lazy import forget_lazy_modules
from tests.mixer.loops import noisy

pytest.importorskip("speechbrain", reason="speechbrain, which these blocks are held to, is not installed")
from speechbrain.lobes.models.transformer.Branchformer import BranchformerEncoderLayer
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoderLayer

forget_lazy_modules()

DIM, HEADS, INNER, KERNEL = 16, 2, 24, 5
CONFORMER = {
    "first_norm": "ffn_module1.0", "first.expand": "ffn_module1.1.ffn.0", "first.contract": "ffn_module1.1.ffn.3",
    "mixer_norm": "norm1.norm", "convolution_norm": "convolution_module.layer_norm",
    "convolution.gate": "convolution_module.bottleneck.0", "convolution.depthwise": "convolution_module.conv",
    "convolution.norm": "convolution_module.after_conv.0", "convolution.out": "convolution_module.after_conv.2",
    "second_norm": "ffn_module2.0", "second.expand": "ffn_module2.1.ffn.0", "second.contract": "ffn_module2.1.ffn.3",
    "norm": "norm2.norm",
}  # fmt: skip
BRANCHFORMER = {
    "mixer_norm": "norm_mhsa.norm", "gating_norm": "norm_conv.norm",
    "gating.expand": "convolution_branch.pre_channel_proj", "gating.norm": "convolution_branch.csgu.norm.norm",
    "gating.depthwise": "convolution_branch.csgu.conv.conv", "gating.contract": "convolution_branch.post_channel_proj",
    "merge": "merge_proj",
}  # fmt: skip


def hand_over(ours: nn.Module, theirs: nn.Module, names: Mapping[str, str]) -> None:
    """Every weight of ours under its name there; none of theirs keeps its own."""
    own = dict(ours.state_dict())
    weights = {
        "mha_layer.att.in_proj_weight": torch.cat(
            [own.pop(f"mixer.{part}.weight") for part in ("query", "key", "value")]
        ),
        "mha_layer.att.in_proj_bias": torch.cat([own.pop(f"mixer.{part}.bias") for part in ("query", "key", "value")]),
        "mha_layer.att.out_proj.weight": own.pop("mixer.out.weight"),
        "mha_layer.att.out_proj.bias": own.pop("mixer.out.bias"),
    }
    for key, value in own.items():
        part, _, leaf = key.rpartition(".")
        weights[f"{names[part]}.{leaf}"] = value
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    theirs.load_state_dict({key: value.reshape(shapes[key]) for key, value in weights.items()})


def assert_equal(block: nn.Module, theirs: nn.Module) -> None:
    """Both give the same outputs and gradients."""
    x_BTD = torch.randn(2, 11, DIM, requires_grad=True)
    wanted_BTD, _ = theirs(x_BTD)
    torch.testing.assert_close(block(x_BTD), wanted_BTD, atol=1e-5, rtol=1e-5)
    way = torch.randn_like(wanted_BTD)
    wanted = torch.autograd.grad(wanted_BTD, x_BTD, way)
    torch.testing.assert_close(torch.autograd.grad(block(x_BTD), x_BTD, way), wanted, atol=1e-5, rtol=1e-4)


def test_a_conformer_block_equals_speechbrains_in_outputs_and_gradients() -> None:
    mixer = Attention(DIM, HEADS, dropout=0.0)
    block = noisy(ConformerBlock(mixer, DIM, INNER, kernel=KERNEL, dropout=0.0, activation_dropout=0.0))
    theirs = ConformerEncoderLayer(
        DIM, INNER, HEADS, KERNEL, activation=nn.GELU, dropout=0.0, attention_type="regularMHA"
    )
    hand_over(block, theirs, CONFORMER)
    theirs.convolution_module.after_conv[1] = nn.SiLU()  # they have one activation for all
    assert_equal(block, theirs)


def test_a_branchformer_block_equals_speechbrains_in_outputs_and_gradients() -> None:
    block = noisy(BranchformerBlock(Attention(DIM, HEADS, dropout=0.0), DIM, INNER, kernel=KERNEL, dropout=0.0))
    theirs = BranchformerEncoderLayer(
        DIM, HEADS, KERNEL, dropout=0.0, attention_type="regularMHA", csgu_linear_units=INNER
    )
    hand_over(block, theirs, BRANCHFORMER)
    theirs.convolution_branch.csgu.conv.padding_mode = "constant"  # they mirror what lies beyond a row's ends
    assert_equal(block, theirs)


def test_a_branchformers_gate_begins_open_and_its_branch_is_an_mlp() -> None:
    gating = BranchformerBlock(Attention(DIM, HEADS), DIM, INNER, kernel=KERNEL, dropout=0.0).gating
    x_BTD = torch.randn(2, 11, DIM)
    kept_BTF, _ = nn.functional.gelu(gating.expand(x_BTD)).chunk(2, -1)
    torch.testing.assert_close(gating(x_BTD), gating.contract(kept_BTF), atol=1e-6, rtol=1e-3)
