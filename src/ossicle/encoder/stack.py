"""What encoders share that run blocks one after another at one rate."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.batch import EncoderOutput, PackedOutput
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int64
from ossicle.encoder.base import Encoder
from ossicle.encoder.block import Block
from ossicle.layer.convolution import ConvolutionPosition, DeepConvolutionPosition
from ossicle.layer.dropout import Dropout
from ossicle.layer.norm import LayerNorm
from ossicle.layer.recompute import recomputed
from ossicle.mixer.base import Lender, Placed, run_lending, run_placed
from ossicle.ops.masking import gather_frames
from ossicle.ops.packing import Packing

Call = TypeVar("Call", bound=Callable[..., Any])


class Stack(Encoder):
    """Convolutional positions, then blocks.

    With norms after the branches, one more stands before the first block; with norms first, one more after the last.

    Args:
        blocks: The blocks, from the first to the last.
        dim: Model width (D).
        norm_first: Whether the blocks' norms stand before their branches.
        dropout: Dropout of what goes into the first block.
        layer_drop: Probability with which a block is skipped for a whole batch in training (arXiv 1909.11556).
        position_kernel: Frames that the position convolution sees.
        position_groups: Groups of the position convolution.
        position_layers: Position convolutions, one after the other: above 1, data2vec's.

    Raises:
        ConfigError: If ``layer_drop`` is no probability below one.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        dim: int,
        norm_first: bool,
        dropout: float,
        layer_drop: float,
        position_kernel: int,
        position_groups: int,
        position_layers: int = 1,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.num_layers = len(blocks)
        self.drops_frames = all(block.drops_frames for block in blocks)
        self.selects = blocks[-1].selects if blocks else False
        self.norm_first = norm_first
        self.layer_drop = check_layer_drop(layer_drop)
        self.position = (
            ConvolutionPosition(dim, position_kernel, position_groups)
            if position_layers == 1
            else DeepConvolutionPosition(dim, position_kernel, position_groups, position_layers)
        )
        self.norm = LayerNorm(dim)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)

    @override
    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        *,
        kept_BM: Int64[Tensor, "B M"] | None = None,
        read_BM: Int64[Tensor, "B M"] | None = None,
        layers: bool = False,
    ) -> EncoderOutput:
        """Encode frames, as :class:`~ossicle.encoder.base.Encoder` says; or those of ``read_BM`` alone, (B, M, D).

        Args:
            x_BTD: Embedded frames, shape (B, T, D).
            valid_BT: True where a frame is real, or None where every frame is.
            kept_BM: Frames that the blocks see, or None for all.
            read_BM: Frames of the output that are read, or None for all. The last block then makes no more than its
                kind of block must.
            layers: Whether every layer's output is wanted too; not with ``read_BM``.
        """
        if valid_BT is not None:
            # The position convolution must see past an utterance's end what it sees there without padding: zeros.
            x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
        x_BTD = x_BTD + self.position(x_BTD, valid_BT)
        if kept_BM is not None:
            x_BTD = gather_frames(x_BTD, kept_BM)
            valid_BT = None if valid_BT is None else valid_BT.gather(1, kept_BM)
        x_BTD = self.dropout(x_BTD if self.norm_first else self.norm(x_BTD))
        outputs = [x_BTD, *run_blocks(self, self.blocks, x_BTD, valid_BT, place_BT=kept_BM, read_BM=read_BM)]
        last_BTD = self.norm(outputs[-1]) if self.norm_first else outputs[-1]
        return EncoderOutput(last_BTD, tuple(outputs) if layers else ())

    @override
    def packed(self, x_PD: Float[Tensor, "P D"], packing: Packing, *, layers: bool = False) -> PackedOutput:
        # zeros between utterances for the position convolution, and for it alone
        padded_BTD, valid_BT = packing.pad(x_PD)
        x_PD = x_PD + packing.unpad(self.position(padded_BTD, valid_BT))
        x_PD = self.dropout(x_PD if self.norm_first else self.norm(x_PD))
        outputs = [x_PD, *run_blocks(self, self.blocks, x_PD, packing=packing)]
        last_PD = self.norm(outputs[-1]) if self.norm_first else outputs[-1]
        return PackedOutput(packing.lengths, last_PD, tuple(outputs) if layers else ())


class DropsLayers(Protocol):
    """What running blocks asks of an encoder, or of one stage of it."""

    training: bool
    layer_drop: float


def run_blocks(
    encoder: DropsLayers,
    blocks: Sequence[nn.Module] | nn.ModuleList,
    x: Tensor,
    valid_BT: Tensor | None = None,
    *,
    packing: Packing | None = None,
    place_BT: Tensor | None = None,
    read_BM: Tensor | None = None,
    sizes: Sequence[tuple[int, ...]] | None = None,
) -> Iterator[Tensor]:
    """The output of each block in turn; a block that is skipped gives its input.

    Frames are padded rows (B, T, D), or with a packing (P, D). Where they do not stand one after another, ``place_BT``
    says where, and mixers that ask for it are told. ``sizes`` has for each block what it is called with besides. Of the
    last block no more is made than ``read_BM``, where it says which frames are read.

    What is skipped is drawn on the host from its default generator, so no device is waited for. Mixers that lend
    to later layers are handed on what they borrow.
    """
    loans: dict[Lender, tuple[Tensor, ...]] = {}
    for block, size in zip(blocks, sizes or [()] * len(blocks), strict=True):
        reads = read_BM is not None and block is blocks[-1]
        dropped = (
            encoder.training and encoder.layer_drop > 0 and bool(torch.rand((), device="cpu") < encoder.layer_drop)
        )
        mixer = getattr(block, "mixer", None)
        call = block if packing is None else _packed(cast("Block", block), packing)
        call = _told(call, size) if size else call
        call = _told(call, (read_BM,)) if reads and block.selects else call
        again = recomputed if encoder.training and getattr(block, "recompute", False) else _kept
        if not dropped and isinstance(mixer, Lender):
            borrowed = () if mixer.creditor is None else loans.get(mixer.creditor, ())
            x, loans[mixer] = again(run_lending)(call, mixer, x, valid_BT, borrowed)
        elif not dropped and place_BT is not None and isinstance(mixer, Placed):
            x = again(run_placed)(call, mixer, x, valid_BT, place_BT)
        elif not dropped:
            x = again(call)(x, valid_BT)
        if reads and (dropped or not block.selects):
            x = gather_frames(x, read_BM)
        yield x


def _kept(call: Call) -> Call:
    return call


def _packed(block: Block, packing: Packing) -> Callable[[Tensor, Tensor | None], Tensor]:
    return lambda x_PD, _: block.packed(x_PD, packing)


def _told(call: Callable[..., Tensor], besides: tuple[object, ...]) -> Callable[[Tensor, Tensor | None], Tensor]:
    return lambda x_BTD, valid_BT: call(x_BTD, valid_BT, *besides)


def check_layer_drop(layer_drop: float) -> float:
    """The probability itself.

    Raises:
        ConfigError: It is none below one.
    """
    if not 0 <= layer_drop < 1:
        raise ConfigError(f"encoder.layer_drop={layer_drop} is no probability", "it lies in [0, 1)")
    return layer_drop
