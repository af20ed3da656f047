"""Utterances end to end in one row, and back to padded rows: by index arithmetic, with no wait for the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ossicle.core.shapes import Bool, Float, Int, Int64


def pad_packed(
    x_PD: Float[Tensor, "P D"], cu_seqlens: Int[Tensor, " edges"], max_frames: int
) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]]:
    """Padded rows of packed utterances.

    Args:
        x_PD: Frames of all utterances, shape (P, D).
        cu_seqlens: Where utterances start and end: 0 and the cumulative counts of frames, shape (B + 1,).
        max_frames: Frames of the longest utterance (T).

    Returns:
        Rows, shape (B, T, D), zero where nothing is, and True where a frame is real, shape (B, T).
    """
    places_T = torch.arange(max_frames, device=x_PD.device)
    starts_B, ends_B = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    valid_BT = places_T < (ends_B - starts_B)[:, None]
    sources_BT = (starts_B[:, None] + places_T).clamp(max=len(x_PD) - 1)
    return x_PD[sources_BT].masked_fill(~valid_BT[..., None], 0), valid_BT


def unpad(x_BTD: Float[Tensor, "B T D"], cu_seqlens: Int[Tensor, " edges"], num_frames: int) -> Float[Tensor, "P D"]:
    """The real frames of padded rows, end to end.

    Args:
        x_BTD: Padded rows, shape (B, T, D).
        cu_seqlens: As in :func:`pad_packed`.
        num_frames: Real frames of all rows together (P), known on the host.
    """
    rows_P, places_P = rows_and_places(cu_seqlens, num_frames)
    return x_BTD[rows_P, places_P]


def rows_and_places(
    cu_seqlens: Int[Tensor, " edges"], num_frames: int
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"]]:
    """Of each packed frame the utterance that it belongs to and its place there, both from 0 on.

    Args:
        cu_seqlens: As in :func:`pad_packed`.
        num_frames: Frames of all utterances together (P), known on the host.
    """
    frames_P = torch.arange(num_frames, device=cu_seqlens.device)
    edges = cu_seqlens.long()
    rows_P = torch.searchsorted(edges[1:], frames_P, right=True)
    return rows_P, frames_P - edges[rows_P]


@dataclass(frozen=True, slots=True)
class Packing:
    """How utterances lie end to end in one row.

    Args:
        lengths: Frames of each utterance, known on the host.
        cu_seqlens: Where they start and end: 0 and the cumulative counts of frames, int32, shape (B + 1,).
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | None = None) -> Self:
        """The packing of utterances of some lengths."""
        edges = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return cls(tuple(lengths), edges.to(device, non_blocking=True))

    @property
    def max_frames(self) -> int:
        """Frames of the longest utterance."""
        return max(self.lengths)

    def pad(self, x_PD: Float[Tensor, "P D"]) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]]:
        """:func:`pad_packed` of frames that lie so."""
        return pad_packed(x_PD, self.cu_seqlens, self.max_frames)

    def unpad(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "P D"]:
        """:func:`unpad` of frames that will lie so."""
        return unpad(x_BTD, self.cu_seqlens, sum(self.lengths))
