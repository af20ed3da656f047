from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.core.batch import Batch, EncoderOutput, Frames
from ossicle.core.clock import FrameClock
from ossicle.layer.speech_encoder import SpeechEncoder
from tests.objective.stand_in import encodes


class Toy(SpeechEncoder):
    """One convolution in front, one over frames behind: rows never meet, frames do."""

    def __init__(self, feature_dim: int = 12, dim: int = 16) -> None:
        super().__init__()
        self.clock = self.feature_clock = FrameClock().then(400, 320)
        self.feature_dim, self.dim, self.num_layers = feature_dim, dim, 1
        self.frontend = nn.Conv1d(1, feature_dim, 400, 320)
        self.norm = nn.LayerNorm(feature_dim)
        self.project = nn.Linear(feature_dim, dim)
        self.encoder = nn.Conv1d(dim, dim, 9, padding=4)

    @override
    def local(self, waveform_BS: Tensor, lengths_B: Tensor | None = None) -> Frames:
        return Frames(functional.gelu(self.frontend(waveform_BS.unsqueeze(1))).transpose(1, 2))

    @override
    def normalise(self, features_BTC: Tensor) -> Tensor:
        return self.norm(features_BTC)

    @override
    def embed(self, features_BTC: Tensor) -> Tensor:
        return self.project(features_BTC)

    @override
    def encode(self, x_BTD: Tensor, valid_BT: Tensor | None = None, **asked: Any) -> EncoderOutput:
        return encodes(lambda x: x + functional.gelu(self.encoder(x.transpose(1, 2))).transpose(1, 2))(x_BTD, **asked)

    @override
    def forward(self, waveform_BS: Tensor, lengths_B: Tensor | None = None, *, layers: bool = False) -> EncoderOutput:
        return self.encode(self.embed(self.normalise(self.local(waveform_BS).features_BTC)))


@pytest.fixture
def model() -> Toy:
    torch.manual_seed(0)
    return Toy()


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    def make(rows: int = 4, frames: int = 49, classes: int = 0, position: int = 3) -> Batch:
        source = torch.Generator().manual_seed(rows * 1000 + frames)
        labels = torch.randint(0, classes, (rows, frames), generator=source) if classes else None
        waveform = torch.randn(rows, 400 + 320 * (frames - 1), generator=source) * 0.1
        index = torch.arange(rows)
        return Batch(waveform, position, index, torch.zeros_like(index), labels)

    return make


@pytest.fixture
def part() -> Callable[[Batch, slice], Batch]:
    def cut(batch: Batch, rows: slice) -> Batch:
        labels = None if batch.labels_BT is None else batch.labels_BT[rows]
        return Batch(batch.waveform_BS[rows], batch.position, batch.ids_B[rows], batch.starts_B[rows], labels)

    return cut
