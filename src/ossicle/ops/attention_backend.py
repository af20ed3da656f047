"""The contract of the kernels behind attention: what one is asked for, and how it is called."""

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Case:
    """What attention is asked for: all that the choice of a kernel may depend on.

    Args:
        device: Device type, such as ``cuda``.
        dtype: Type of queries, keys and values.
        head_dim: Width of a head (K).
        dropout: Whether probabilities are dropped.
        masked: Whether some keys are padding.
        windowed: Whether attention is limited to a window around each frame.
        packed: Whether rows are packed end to end.
    """

    device: str
    dtype: torch.dtype
    head_dim: int
    dropout: bool = False
    masked: bool = False
    windowed: bool = False
    packed: bool = False

    def __str__(self) -> str:
        """The case in words, for logs and errors."""
        extras = [name for name in ("dropout", "masked", "windowed", "packed") if getattr(self, name)]
        return " ".join([self.device, str(self.dtype).removeprefix("torch."), f"head dim {self.head_dim}", *extras])


class Backend(ABC):
    """One way to compute attention."""

    name: ClassVar[str]

    def missing(self) -> str | None:
        """Why this installation cannot run the kernel on any device, or None where it can."""
        return None

    @abstractmethod
    def refusal(self, case: Case) -> str | None:
        """Why the kernel cannot serve a case, or None where it can."""

    @abstractmethod
    def dense(
        self,
        q_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHK: Tensor,
        *,
        valid_BT: Tensor | None,
        dropout: float,
        window: int | None,
    ) -> Tensor:
        """Attention within each row of a batch, (B, T, H, K)."""

    def packed(
        self,
        q_PHK: Tensor,
        k_PHK: Tensor,
        v_PHK: Tensor,
        *,
        edges: Tensor,
        longest: int,
        dropout: float,
        window: int | None,
    ) -> Tensor:
        """Attention within each utterance of a packed row, (P, H, K).

        By a dense call an utterance, unless a kernel takes them at once; those calls wait for the edges on the host.

        Args:
            q_PHK: Queries of all utterances.
            k_PHK: Keys, same shape.
            v_PHK: Values, same shape.
            edges: Where utterances start and end: 0 and the cumulative counts of frames, int32.
            longest: Frames of the longest utterance.
            dropout: Probability with which an attention weight is dropped.
            window: Frames to each side that a frame attends to, or None for all.
        """
        del longest
        parts = [
            self.dense(
                q_PHK[None, a:b], k_PHK[None, a:b], v_PHK[None, a:b], valid_BT=None, dropout=dropout, window=window
            )[0]
            for a, b in itertools.pairwise(edges.tolist())
            if b > a
        ]
        return torch.cat(parts) if parts else q_PHK.clone()


def allowed_pairs(valid_BT: Tensor | None, window: int | None, frames: int, device: torch.device) -> Tensor | None:
    """Which keys a query sees: None, (B, 1, 1, T) for padding alone, or (B or 1, 1, T, T) with a window."""
    keys = None if valid_BT is None else valid_BT[:, None, None, :]
    if window is None:
        return keys
    place = torch.arange(frames, device=device)
    near = ((place[:, None] - place[None, :]).abs() <= window)[None, None]
    return near if keys is None else near & keys
