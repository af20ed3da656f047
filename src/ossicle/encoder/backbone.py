"""A frontend and an encoder as one model."""

from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.batch import EncoderOutput, Frames, PackedOutput
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int, Int64
from ossicle.encoder.base import Encoder
from ossicle.frontend.base import Frontend
from ossicle.layer.dropout import Dropout
from ossicle.layer.spec_augment import SpecAugmentFactory
from ossicle.layer.speech_encoder import SpeechEncoder, real
from ossicle.ops.masking import gather_frames
from ossicle.ops.packing import Packing


@final
class Backbone(SpeechEncoder):
    """Frames, layer norm, linear projection, dropout, encoder (arXiv 2006.11477, figure 1).

    The norm and projection are wav2vec 2.0's and HuBERT's. What takes log-mel frames or is older has no norm, and no
    projection where the encoder's width is the frontend's: MelHuBERT, SPIRAL, ESSL, CPC, wav2vec.

    Args:
        frontend: Turns waveforms into frames.
        encoder: Turns embedded frames into representations.
        input_dropout: Dropout of embedded frames.
        spec_augment: Builds what hides frames and bands of normalised features in training, from ``feature_dim``; None
            hides nothing. Features that an objective takes as its target, before they are embedded, stay whole.
        freeze_frontend_at: Optimiser step from which on the frontend stays as it is, and nothing is kept for its
            gradient; None for never.
        norm: Whether a layer norm stands before the projection.
        project: Whether a projection stands there although the widths are one; None for where the norm does. Where the
            widths differ one always does.
        freeze_projection_at: Optimiser step from which on norm and projection stay as they are too; None for never.

    Raises:
        ConfigError: The encoder has no block.
    """

    def __init__(
        self,
        frontend: Frontend,
        encoder: Encoder,
        input_dropout: float = 0.1,
        spec_augment: SpecAugmentFactory | None = None,
        freeze_frontend_at: int | None = None,
        *,
        norm: bool = True,
        project: bool | None = None,
        freeze_projection_at: int | None = None,
    ) -> None:
        super().__init__()
        if encoder.num_layers < 1:
            raise ConfigError(f"encoder.num_layers = {encoder.num_layers} encodes nothing", "give it one block or more")
        self.frontend = frontend
        projects = norm if project is None else project
        self.norm = nn.LayerNorm(frontend.dim) if norm else nn.Identity()
        self.project = (
            nn.Linear(frontend.dim, encoder.input_dim)
            if projects or frontend.dim != encoder.input_dim
            else nn.Identity()
        )
        self.dropout = Dropout(input_dropout)
        self.spec_augment = None if spec_augment is None else spec_augment(feature_dim=frontend.dim)
        self.encoder = encoder
        self.freeze_frontend_at = freeze_frontend_at
        self.freeze_projection_at = freeze_projection_at
        self.frozen = self.frozen_projection = False
        self.feature_clock = frontend.clock
        self.clock = encoder.clock(frontend.clock)
        self.feature_dim = frontend.dim
        self.dim = encoder.dim
        self.num_layers = encoder.num_layers
        self.drops_frames = encoder.drops_frames
        self.causal = frontend.causal and encoder.causal
        self.quantises = frontend.quantises

    @override
    def anneal(self, step: int) -> None:
        self.frontend.anneal(step)
        self.frozen = self.freeze_frontend_at is not None and step >= self.freeze_frontend_at
        self.frozen_projection = self.freeze_projection_at is not None and step >= self.freeze_projection_at

    @override
    def still(self) -> Iterable[nn.Parameter]:
        frozen: list[nn.Module] = [self.frontend] if self.frozen else []
        if self.frozen_projection:
            frozen += [self.norm, self.project]
        return (parameter for part in frozen for parameter in part.parameters())

    @override
    def layer_factor(self, layer: int) -> int:
        return self.encoder.layer_factor(layer)

    @override
    def local(self, waveform_BS: Float[Tensor, "B S"], lengths_B: Int[Tensor, " B"] | None = None) -> Frames:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.frontend(waveform_BS, lengths_B)

    @override
    def normalise(self, features_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        with self._projecting(features_BTC):
            return self.norm(features_BTC)

    @override
    def embed(self, features_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
        if self.spec_augment is not None:
            features_BTC = self.spec_augment(features_BTC)
        with self._projecting(features_BTC):
            x_BTD = self.project(features_BTC)
        return self.dropout(x_BTD)

    def _projecting(self, features_BTC: Float[Tensor, "B T C"]) -> torch.set_grad_enabled:
        """Keeps nothing for the gradient where norm and projection are frozen and what goes in asks for none either."""
        frozen = self.frozen_projection and not features_BTC.requires_grad
        return torch.set_grad_enabled(torch.is_grad_enabled() and not frozen)

    @override
    def encode(
        self,
        x_BTD: Float[Tensor, "B T D"],
        valid_BT: Bool[Tensor, "B T"] | None = None,
        *,
        kept_BM: Int64[Tensor, "B M"] | None = None,
        read_BM: Int64[Tensor, "B M"] | None = None,
        layers: bool = False,
    ) -> EncoderOutput:
        asked = {} if kept_BM is None else {"kept_BM": kept_BM}
        if read_BM is None:
            return self.encoder(x_BTD, valid_BT, **asked, layers=layers)
        assert not layers, "all frames of a layer are asked for, and some alone"
        if self.encoder.selects:
            return self.encoder(x_BTD, valid_BT, **asked, read_BM=read_BM)
        return EncoderOutput(gather_frames(self.encoder(x_BTD, valid_BT, **asked).last_BTD, read_BM))

    @override
    def forward(
        self, waveform_BS: Float[Tensor, "B S"], lengths_B: Int[Tensor, " B"] | None = None, *, layers: bool = False
    ) -> EncoderOutput:
        frames = self.local(waveform_BS, lengths_B)
        x_BTD = self.embed(self.normalise(frames.features_BTC))
        return self.encode(x_BTD, frames.valid_BT, layers=layers)

    @override
    def packed(
        self, waveform_BS: Float[Tensor, "B S"], lengths: Sequence[int], *, layers: bool = False
    ) -> PackedOutput:
        frames = self.local(waveform_BS, real(lengths, waveform_BS))
        x_BTD = self.embed(self.normalise(frames.features_BTC))
        packing = Packing.of([self.feature_clock.num_frames(length) for length in lengths], waveform_BS.device)
        return self.encoder.packed(packing.unpad(x_BTD), packing, layers=layers)
