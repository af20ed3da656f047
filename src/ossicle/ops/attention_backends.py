"""The kernels behind attention, one class each: what it needs, and how it is called.

All take the flash layout (B, T, H, K). Softmax attention is arXiv 1706.03762, equation 1; the fused kernels follow
arXiv 2205.14135 (FlashAttention) and compute the same function.
"""

import functools
import importlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from ossicle.ops.blocked_attention import attend_blocked, segments

HALF_PRECISION: Final = (torch.float16, torch.bfloat16)


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

    @abstractmethod
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
        """Attention within each utterance of a packed row, (P, H, K); ``edges`` are cumulative lengths, int32."""

    def _segments(
        self, q_PHK: Tensor, k_PHK: Tensor, v_PHK: Tensor, *, edges: Tensor, dropout: float, window: int | None
    ) -> Tensor:
        """Packed attention by one dense call an utterance; reads the edges on the host."""
        places = edges.tolist()
        parts = [
            self.dense(
                q_PHK[None, a:b], k_PHK[None, a:b], v_PHK[None, a:b], valid_BT=None, dropout=dropout, window=window
            )[0]
            for a, b in itertools.pairwise(places)
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


@final
class Reference(Backend):
    """Softmax attention written out, in the precision of its inputs: what every other kernel is tested against."""

    name = "reference"

    @override
    def refusal(self, case: Case) -> str | None:
        return None

    @override
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
        scores_BHTT = torch.einsum("bqhk,bthk->bhqt", q_BTHK, k_BTHK) / math.sqrt(q_BTHK.shape[-1])
        allowed = allowed_pairs(valid_BT, window, q_BTHK.shape[1], q_BTHK.device)
        if allowed is not None:
            # The lowest finite number instead of -inf: a row without any real key stays finite.
            scores_BHTT = scores_BHTT.masked_fill(~allowed, torch.finfo(scores_BHTT.dtype).min)
        weights_BHTT = functional.dropout(scores_BHTT.softmax(-1), dropout)
        return torch.einsum("bhqt,bthk->bqhk", weights_BHTT, v_BTHK)

    @override
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
        return self._segments(q_PHK, k_PHK, v_PHK, edges=edges, dropout=dropout, window=window)


@final
class Sdpa(Backend):
    """torch's scaled_dot_product_attention: on CUDA cuDNN first, then flash, then memory-efficient, then plain.

    The order is that of their speed on an H100 in bf16, forward and backward, with and without dropout.
    """

    name = "sdpa"
    order: ClassVar = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]

    @override
    def refusal(self, case: Case) -> str | None:
        return None

    @override
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
        allowed = allowed_pairs(valid_BT, window, q_BTHK.shape[1], q_BTHK.device)
        q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
        if q_BTHK.device.type != "cuda":
            mixed_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, allowed, dropout)
        else:
            with sdpa_kernel(self.order, set_priority=True):
                mixed_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, allowed, dropout)
        return mixed_BHTK.transpose(1, 2)

    @override
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
        return self._segments(q_PHK, k_PHK, v_PHK, edges=edges, dropout=dropout, window=window)


@final
class Blocked(Backend):
    """SDPA over blocks of queries and the three blocks of keys around them: windows on any device, in linear memory."""

    name = "blocked"

    @override
    def refusal(self, case: Case) -> str | None:
        return None if case.windowed else "serves windows"

    @override
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
        assert window is not None
        return attend_blocked(q_BTHK, k_BTHK, v_BTHK, window, segment_BT=valid_BT, dropout=dropout)

    @override
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
        assert window is not None
        mine_1P = segments(edges, len(q_PHK))
        return attend_blocked(q_PHK[None], k_PHK[None], v_PHK[None], window, segment_BT=mine_1P, dropout=dropout)[0]


def _sides(window: int | None) -> tuple[int, int]:
    """A window as the flash kernels count it: keys to the left and to the right, -1 for all."""
    return (-1, -1) if window is None else (window, window)


def _fused_refusal(case: Case) -> str | None:
    """What torch's and the package's flash kernels refuse alike."""
    if case.device != "cuda":
        return f"runs on cuda, not on {case.device}"
    if case.dtype not in HALF_PRECISION:
        return f"takes float16 and bfloat16, not {str(case.dtype).removeprefix('torch.')}"
    if case.head_dim > 256 or case.head_dim % 8:
        return f"takes head dims that are multiples of 8 up to 256, not {case.head_dim}"
    if case.masked:
        return "takes packed utterances, not a key mask"
    return None


@final
class Varlen(Backend):
    """torch's own FlashAttention over packed utterances (torch.nn.attention.varlen)."""

    name = "varlen"

    @override
    def missing(self) -> str | None:
        return _import_problem("torch.nn.attention.varlen")

    @override
    def refusal(self, case: Case) -> str | None:
        return self.missing() or _fused_refusal(case) or ("has no dropout" if case.dropout else None)

    @override
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
        rows, frames = q_BTHK.shape[:2]
        edges = torch.arange(0, (rows + 1) * frames, frames, dtype=torch.int32, device=q_BTHK.device)
        q_PHK, k_PHK, v_PHK = (x.flatten(0, 1) for x in (q_BTHK, k_BTHK, v_BTHK))
        return self.packed(q_PHK, k_PHK, v_PHK, edges=edges, longest=frames, dropout=dropout, window=window).unflatten(
            0, (rows, frames)
        )

    @override
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
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  older builds of torch lack the module

        mixed = varlen_attn(q_PHK, k_PHK, v_PHK, edges, edges, longest, longest, window_size=_sides(window))
        assert isinstance(mixed, Tensor)
        return mixed


@final
class FlashAttention(Backend):
    """The flash-attn package (arXiv 2307.08691), an extra that is built from source."""

    name = "flash_attn"

    @override
    def missing(self) -> str | None:
        return _import_problem("flash_attn")

    @override
    def refusal(self, case: Case) -> str | None:
        return self.missing() or _fused_refusal(case)

    @override
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
        from flash_attn import flash_attn_func  # noqa: PLC0415  # ty: ignore[import-not-found]  an extra

        return flash_attn_func(q_BTHK, k_BTHK, v_BTHK, dropout_p=dropout, window_size=_sides(window))

    @override
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
        from flash_attn import flash_attn_varlen_func  # noqa: PLC0415  # ty: ignore[import-not-found]  an extra

        return flash_attn_varlen_func(
            q_PHK, k_PHK, v_PHK, edges, edges, longest, longest, dropout_p=dropout, window_size=_sides(window)
        )


@functools.cache
def _import_problem(module: str) -> str | None:
    """Why a module cannot be imported; a package built for another torch fails as one that is absent does."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        return f"cannot be imported ({str(error).splitlines()[0]})"
    return None


BACKENDS: Final[Mapping[str, Backend]] = MappingProxyType(
    {backend.name: backend for backend in (FlashAttention(), Varlen(), Blocked(), Sdpa(), Reference())}
)
