"""Small real models for tests of objectives that learn from a teacher."""

from functools import partial

import torch
from torch import nn

from ossicle.core.batch import Batch
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.transformer import Transformer
from ossicle.frontend.logmel_conv import LogMelConv
from ossicle.layer.layer_reader import Read
from ossicle.mixer.attention import Attention
from ossicle.ops.momentum import Linear
from ossicle.target.ema_teacher import EmaTeacher

DIM = 16
FRAMES = 30


def small_model(layers: int = 3, dropout: float = 0.0) -> Backbone:
    """A Transformer on convolved log-mel frames, 50 a second."""
    torch.manual_seed(0)
    frontend = LogMelConv([[12, 3, 2]], num_mels=12, low_hz=100.0)
    encoder = Transformer(
        partial(Attention, num_heads=2, dropout=dropout),
        dim=DIM, num_layers=layers, ffn_dim=32, dropout=dropout, layer_drop=dropout,
        position_kernel=4, position_groups=2,
    )  # fmt: skip
    return Backbone(frontend, encoder, input_dropout=dropout)


def small_teacher(model: Backbone, read: Read = "feed_forward", top_layers: int = 2) -> EmaTeacher:
    """A teacher at half momentum, so that it moves fast but is not the student."""
    return EmaTeacher(model.clock, model.feature_dim, momentum=Linear(0.5, 0.5), top_layers=top_layers, read=read)


def small_batch(rows: int = 2, frames: int = FRAMES, position: int = 3, seed: int = 0) -> Batch:
    source = torch.Generator().manual_seed(seed)
    samples = small_model().clock.num_samples(frames)
    index = torch.arange(rows)
    return Batch(torch.randn(rows, samples, generator=source) * 0.1, position, index, torch.zeros_like(index))


def step(model: nn.Module, rate: float = 0.1, seed: int = 1) -> None:
    """Move every weight a little, as an optimiser does."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source, dtype=parameter.dtype), alpha=rate)


def without_gradient(module: nn.Module) -> set[str]:
    """Names of parameters that a backward pass gave nothing, or only zeros."""
    return {name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum()}
