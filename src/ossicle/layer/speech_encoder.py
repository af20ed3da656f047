"""What an objective sees of the model it trains: steps from waveforms to encoded frames, and nothing of its parts."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ossicle.core.batch import EncoderOutput, Frames, PackedOutput
from ossicle.core.clock import FrameClock
from ossicle.core.shapes import Bool, Float, Int, Int64
from ossicle.ops.packing import Packing


class SpeechEncoder(nn.Module, ABC):
    """A frontend and an encoder as one model, open at the places where objectives mask, quantise or penalise.

    ``forward`` is ``encode(embed(normalise(local(waveform))))`` without masks.

    Attributes:
        clock: The clock of the encoder's frames, on which labels are.
        feature_clock: The clock of the frontend's frames, on which masks are. Most encoders keep it.
        feature_dim: Channels of the frontend's frames (C).
        dim: Width of the encoder's frames (D).
        num_layers: Blocks of the encoder (L).
        drops_frames: Whether :meth:`encode` can go on with some of the frames alone.
        causal: Whether an encoded frame hears itself and what is before it, and nothing after, a norm over the row
            neither.
        quantises: Whether the frontend's frames are codes, and come with a penalty that an objective must add.
    """

    clock: FrameClock
    feature_clock: FrameClock
    feature_dim: int
    dim: int
    num_layers: int
    drops_frames: bool
    causal: bool = False
    quantises: bool = False

    def anneal(self, step: int) -> None:
        """Follow the optimiser steps taken, a host integer told before each step, where something depends on them."""
        del step

    def still(self) -> Iterable[nn.Parameter]:
        """Parameters that training leaves as they are at the step that :meth:`anneal` was told: none."""
        return ()

    def layer_factor(self, layer: int) -> int:
        """Encoded frames that a layer makes one: 1, unless it lies at a lower rate. 0 is the first block's input."""
        del layer
        return 1

    @abstractmethod
    def local(self, waveform_BS: Float[Tensor, "B S"], lengths_B: Int[Tensor, " B"] | None = None) -> Frames:
        """The frontend's frames (B, T, C), before normalisation."""

    @abstractmethod
    def normalise(self, features_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Layer norm of the frontend's frames: what wav2vec 2.0 quantises."""

    @abstractmethod
    def embed(self, features_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
        """Normalised frames projected to the model's width, with dropout."""

    @abstractmethod
    def encode(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        *,
        kept_BM: Int64[Tensor, "B M"] | None = None,
        read_BM: Int64[Tensor, "B M"] | None = None,
        layers: bool = False,
    ) -> EncoderOutput:
        """Embedded frames through the encoder.

        Args:
            x_BTD: Embedded frames, shape (B, T, D).
            valid_BT: True where a frame is real, or None where every frame is.
            kept_BM: Frames that go on alone, at the places that they had; None for all.
            read_BM: Frames of the output that are read, in order, the same number in each row: no others are returned,
                nor made where the encoder can do without. None for all.
            layers: Whether every layer's output is wanted too; not with ``read_BM``.
        """

    @abstractmethod
    def forward(
        self, waveform_BS: Float[Tensor, "B S"], lengths_B: Int[Tensor, " B"] | None = None, *, layers: bool = False
    ) -> EncoderOutput:
        """Waveforms through everything, nothing masked: how features are extracted."""

    def packed(
        self, waveform_BS: Float[Tensor, "B S"], lengths: Sequence[int], *, layers: bool = False
    ) -> PackedOutput:
        """Whole utterances through everything, each as if it were alone, their frames end to end.

        This is how features are extracted and a model is fine-tuned.

        Args:
            waveform_BS: Utterances in padded rows, shape (B, S).
            lengths: Samples of each that are real; every one gives a frame.
            layers: Whether every layer's output is wanted too.
        """
        output = self(waveform_BS, real(lengths, waveform_BS), layers=layers)
        packing = Packing.of([self.clock.num_frames(length) for length in lengths], waveform_BS.device)
        return PackedOutput(packing.lengths, packing.unpad(output.last_BTD), tuple(map(packing.unpad, output.layers)))


def real(lengths: Sequence[int], waveform_BS: Float[Tensor, "B S"]) -> Int[Tensor, " B"] | None:
    """The lengths as a model takes them: on its device, or None where nothing is padding."""
    if all(length == waveform_BS.shape[1] for length in lengths):
        return None
    return torch.tensor(lengths).to(waveform_BS.device, non_blocking=True)
