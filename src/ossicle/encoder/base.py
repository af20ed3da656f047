"""The contract of an encoder."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ossicle.core.batch import EncoderOutput, PackedOutput
from ossicle.core.clock import FrameClock
from ossicle.core.shapes import Bool, Float, Int64
from ossicle.ops.packing import Packing


class Encoder(nn.Module, ABC):
    """A stack of blocks: frames of the model's width in, frames of the same width out.

    Attributes:
        dim: Model width (D).
        num_layers: Blocks (L).
        layer_drop: Probability with which a block is skipped for a whole batch in training.
        drops_frames: Whether it can go on with some of the frames alone, once their positions are in them.
        selects: Whether it can be told which frames of its output are read, and make no more than these.
        causal: Whether a frame hears itself and what is before it, and nothing after.
    """

    dim: int
    num_layers: int
    layer_drop: float = 0.0
    drops_frames: bool = False
    selects: bool = False
    causal: bool = False

    @property
    def input_dim(self) -> int:
        """Width of the frames that it takes: the model's, unless a stack grows."""
        return self.dim

    def clock(self, features: FrameClock) -> FrameClock:
        """The clock of what comes out, from the clock of what goes in: the same, unless a stack shortens.

        Args:
            features: The frontend's clock.
        """
        return features

    def layer_factor(self, layer: int) -> int:
        """Frames of the encoder's own clock that a layer makes one: 1, unless the layer lies at a lower rate.

        Args:
            layer: 0 is the input of the first block.
        """
        del layer
        return 1

    @abstractmethod
    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        *,
        kept_BM: Int64[Tensor, "B M"] | None = None,
        layers: bool = False,
    ) -> EncoderOutput:
        """Encode frames.

        Args:
            x_BTD: Embedded frames, shape (B, T, D).
            valid_BT: True where a frame is real, or None where every frame is.
            kept_BM: Frames that the blocks see, in order, the same number in each row, or None for all: positions are
                those of the whole row. Only where ``drops_frames``.
            layers: Whether every layer's output is wanted too. All come on the encoder's own clock: what a layer makes
                at a lower rate is repeated.

        Returns:
            Frames (B, T', D) with T' as :meth:`clock` says, which is T unless the encoder shortens.
        """

    def packed(self, x_PD: Float[Tensor, "P D"], packing: Packing, *, layers: bool = False) -> PackedOutput:
        """Encode utterances that lie end to end, each as if it were alone. By padding, unless a stack can do without.

        Args:
            x_PD: Embedded frames of all utterances, shape (P, D).
            packing: How they lie.
            layers: Whether every layer's output is wanted too.
        """
        x_BTD, valid_BT = packing.pad(x_PD)
        output = self(x_BTD, valid_BT, layers=layers)
        clock = self.clock(FrameClock())  # a frame a sample, so that it counts frames
        after = Packing.of([clock.num_frames(length) for length in packing.lengths], x_PD.device)
        return PackedOutput(after.lengths, after.unpad(output.last_BTD), tuple(map(after.unpad, output.layers)))
