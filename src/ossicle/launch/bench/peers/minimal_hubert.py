"""minimal-hubert: HuBERTPretrain, as its training script runs it."""

import sys
from dataclasses import replace

import torch
from torch import Tensor

from ossicle.core.errors import ConfigError, MissingExtraError
from ossicle.launch.bench.peers.shape import SHAPES, Shape
from ossicle.launch.bench.peers.torch_step import TorchStep
from ossicle.launch.bench.steps import StepWork

NOTE = (
    "HuBERTPretrain with the loss of its training script, the penalty on the frontend's frames included; masks drawn"
    " once, as its loader draws them beforehand; compiled for one shape, where its script compiles for any"
)


def hubert(shape: Shape, work: StepWork) -> TorchStep:
    """HuBERTPretrain on one batch."""
    if sys.version_info < (3, 12):
        raise ConfigError("minimal-hubert needs Python 3.12 or newer", "measure it in an environment of that version")
    try:
        from minimal_hubert import HuBERTPretrain
    except ImportError:
        raise MissingExtraError("minimal-hubert", "bench", "measuring it") from None
    wanted = SHAPES["hubert_base"]
    if replace(shape, classes=wanted.classes, layer_drop=wanted.layer_drop) != wanted:
        raise ConfigError("it builds HuBERT's own sizes alone", "measure model=hubert_base without other sizes")
    torch.manual_seed(work.seed)
    model = HuBERTPretrain(shape.classes, "base").to(work.device)
    model.encoder.layer_drop = shape.layer_drop
    masked_BT = shape.masked_flags(work.batch, work.samples, work.seed, work.device)
    labels_BT = shape.labels(work.batch, work.samples, work.seed, work.device)
    waveform_BS = work.waveforms()
    num_masked = int(masked_BT.sum())
    if work.compile:
        # what serves any shape does not compile in torch 2.11
        model.compile(dynamic=False, mode=work.compile_mode)

    def loss() -> Tensor:
        losses_P, _ = model(waveform_BS, labels_BT, mask=masked_BT, attention_mask=None)
        return losses_P.sum() / num_masked

    return TorchStep(model, loss, work, macs=shape.macs(work.samples), note=NOTE)
