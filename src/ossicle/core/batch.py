"""What the data floor hands to a system, and what an encoder and an objective hand back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from ossicle.core.metrics import Metric

_IN_A_MESSAGE: Final = 2**12
"""Bytes up to which a tensor is sent and not shared: a pipe holds sixteen times as many."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Cropped utterances of one length: no padding, so no mask.

    Args:
        waveform_BS: Float32 samples in [-1, 1], shape (B, S).
        position: The batch's place in the endless sequence of global batches; seeds what is random in the step.
        ids_B: Row of each utterance in the dataset index, int64, shape (B,).
        starts_B: First sample of each crop in its utterance, int64, shape (B,).
        labels_BT: Label ids on the model's clock, integer, shape (B, T), where the target is read from disk.
        clean_BS: The speech alone, sample for sample in time with ``waveform_BS``, where augmentation added to it or
            distorted it; None where the waveform is the speech.
    """

    waveform_BS: Tensor
    position: int
    ids_B: Tensor
    starts_B: Tensor
    labels_BT: Tensor | None = None
    clean_BS: Tensor | None = None

    @property
    def speech(self) -> Tensor:
        """The speech without what augmentation did to it: what targets and teachers hear, shape (B, S)."""
        return self.waveform_BS if self.clean_BS is None else self.clean_BS

    def to(self, device: torch.device, *, non_blocking: bool = True) -> Self:
        """The same batch on another device."""
        return replace(self, **{name: x.to(device, non_blocking=non_blocking) for name, x in self.tensors().items()})

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, for copies that overlap with compute."""
        return replace(self, **{name: x.pin_memory() for name, x in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, without those that it has not."""
        return {name: value for name, value in self._values().items() if isinstance(value, Tensor)}

    def _values(self) -> dict[str, object]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __reduce__(self) -> tuple[Callable[[dict[str, object]], "Batch"], tuple[dict[str, object]]]:
        """What goes from process to process: small tensors in the message itself.

        Each tensor in shared memory takes a connection of its own, with its handshake, to the process that made it.
        """
        small = {name: x.numpy() for name, x in self.tensors().items() if x.is_cpu and x.nbytes <= _IN_A_MESSAGE}
        return _unpacked, (self._values() | small,)


def _unpacked(values: dict[str, Any]) -> Batch:
    """The batch that was sent."""
    whole: dict[str, Any] = {n: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for n, x in values.items()}
    return Batch(**whole)


@dataclass(frozen=True, slots=True)
class Frames:
    """What a frontend makes of waveforms.

    Args:
        features_BTC: Frames, shape (B, T, C), before the encoder's input projection.
        valid_BT: True where a frame is real, or None where every frame is.
        penalty: Scalar with gradient that a frontend which quantises adds to a loss a frame, or None.
        code_counts_GV: How often such a frontend took each code, or None.
    """

    features_BTC: Tensor
    valid_BT: Tensor | None = None
    penalty: Tensor | None = None
    code_counts_GV: Tensor | None = None


@dataclass(frozen=True, slots=True)
class EncoderOutput:
    """What an encoder makes of frames.

    Args:
        last_BTD: The encoder's output, shape (B, T, D); (B, M, D) where it was told of M frames of each row that they
            are read.
        layers: Output of the input stage and of each block, L + 1 tensors (B, T, D), where they were asked for. The
            last entry is the last block's output, before any final norm.
    """

    last_BTD: Tensor
    layers: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedOutput:
    """What an encoder makes of frames of several utterances that lie end to end in one row.

    Args:
        lengths: Frames of each utterance.
        last_PD: The encoder's output, shape (P, D) with P the sum of the lengths.
        layers: As in :class:`EncoderOutput`, L + 1 tensors (P, D).
    """

    lengths: tuple[int, ...]
    last_PD: Tensor
    layers: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class ObjectiveOutput:
    """A loss as a sum and a count, so that accumulation, world size and batch shape leave it unchanged.

    Args:
        loss_sum: Scalar with gradient: the loss summed over what it is counted in.
        count: Scalar without gradient: how many frames were summed.
        logs: Additive metrics by full name, such as ``objective/accuracy_masked``.
    """

    loss_sum: Tensor
    count: Tensor
    logs: Mapping[str, Metric] = field(default_factory=dict)
