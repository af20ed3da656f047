"""The Branchformer around any token mixer (arXiv 2207.02971): a global and a local branch side by side."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.encoder.block import Block
from ossicle.encoder.stack import Stack
from ossicle.layer.dropout import Dropout
from ossicle.layer.feed_forward import init_linear
from ossicle.layer.norm import LayerNorm
from ossicle.mixer.base import Mixer, MixerFactory, build_mixers


@final
class ConvolutionalGating(nn.Module):
    """The local branch: an MLP whose one half gates the other after a depthwise convolution (section 3.3).

    Args:
        dim: Model width (D).
        inner_dim: Width inside, of both halves together.
        kernel: Frames that the depthwise convolution sees; odd.
        dropout: Dropout inside.

    Raises:
        ConfigError: The inner width or the kernel does not divide as it must.
    """

    def __init__(self, dim: int, inner_dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        if inner_dim % 2 or kernel % 2 == 0:
            raise ConfigError(
                f"encoder.gate_dim={inner_dim} with encoder.kernel={kernel} makes no gate",
                "gate_dim is even and kernel odd",
            )
        half = inner_dim // 2
        self.expand = init_linear(nn.Linear(dim, inner_dim))
        self.norm = LayerNorm(half)
        self.depthwise = nn.Conv1d(half, half, kernel, padding=kernel // 2, groups=half)
        # the gate opens at one: at first the branch is an MLP
        nn.init.normal_(self.depthwise.weight, std=1e-6)
        assert self.depthwise.bias is not None
        nn.init.ones_(self.depthwise.bias)
        self.contract = init_linear(nn.Linear(half, dim))
        self.dropout = Dropout(dropout)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        """Gate frames; those that are not real are heard as zeros."""
        kept_BTF, gate_BTF = functional.gelu(self.expand(x_BTD)).chunk(2, dim=-1)
        gate_BTF = self.norm(gate_BTF)
        if valid_BT is not None:
            gate_BTF = gate_BTF.masked_fill(~valid_BT[..., None], 0)
        gate_BTF = self.depthwise(gate_BTF.transpose(1, 2)).transpose(1, 2)
        return self.contract(self.dropout(kept_BTF * gate_BTF))


@final
class BranchformerBlock(Block):
    """Mixer and convolutional gating side by side, joined by a linear map (section 3.4, concatenation).

    Args:
        mixer: The global branch.
        dim: Model width (D).
        gate_dim: Width inside the local branch.
        kernel: Frames that the local branch sees.
        dropout: Dropout of both branches and of the block.
    """

    def __init__(self, mixer: Mixer, dim: int, gate_dim: int, *, kernel: int, dropout: float) -> None:
        super().__init__()
        self.mixer_norm = LayerNorm(dim)
        self.mixer = mixer
        self.gating_norm = LayerNorm(dim)
        self.gating = ConvolutionalGating(dim, gate_dim, kernel, dropout)
        self.merge = init_linear(nn.Linear(2 * dim, dim))
        self.dropout = Dropout(dropout)

    @override
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        far_BTD = self.dropout(self.mixer(self.mixer_norm(x_BTD), valid_BT))
        near_BTD = self.dropout(self.gating(self.gating_norm(x_BTD), valid_BT))
        return x_BTD + self.dropout(self.merge(torch.cat([far_BTD, near_BTD], dim=-1)))


@final
class Branchformer(Stack):
    """Convolutional positions, then Branchformer blocks.

    Args:
        mixer: Makes a mixer of a width, or all of them: see :func:`~ossicle.mixer.base.build_mixers`.
        dim: Model width (D).
        num_layers: Blocks (L).
        gate_dim: Width inside the local branches.
        kernel: Frames that the local branches see; odd.
        dropout: Dropout of the input and of every branch.
        layer_drop: Probability with which a block is skipped for a whole batch in training.
        position_kernel: Frames that the position convolution sees.
        position_groups: Groups of the position convolution.
    """

    def __init__(
        self,
        mixer: MixerFactory,
        *,
        dim: int = 512,
        num_layers: int = 18,
        gate_dim: int = 3072,
        kernel: int = 31,
        dropout: float = 0.1,
        layer_drop: float = 0.0,
        position_kernel: int = 128,
        position_groups: int = 16,
    ) -> None:
        mixers = build_mixers(mixer, [dim] * num_layers)
        super().__init__(
            [BranchformerBlock(one, dim, gate_dim, kernel=kernel, dropout=dropout) for one in mixers],
            dim=dim,
            norm_first=True,
            dropout=dropout,
            layer_drop=layer_drop,
            position_kernel=position_kernel,
            position_groups=position_groups,
        )
