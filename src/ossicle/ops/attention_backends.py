"""The kernels behind attention, one class each: what it needs, and how it is called.

All take the flash layout (B, T, H, K). Softmax attention is arXiv 1706.03762, equation 1; the fused kernels follow
arXiv 2205.14135 (FlashAttention) and compute the same function.
"""

import functools
import importlib
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from ossicle.ops import attention_cpu
from ossicle.ops.attention_backend import Backend, Case, allowed_pairs
from ossicle.ops.attention_cpu import cpu_attention
from ossicle.ops.blocked_attention import attend_blocked, segments

HALF_PRECISION: Final = (torch.float16, torch.bfloat16)


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


@final
class Native(Backend):
    """This package's own C++ on a CPU, which holds no scores (docs/results/step_cpu.md has its times).

    torch's fused kernel for CPUs has no dropout, and is slower than this even without.
    """

    name = "native"

    @override
    def missing(self) -> str | None:
        return attention_cpu.CODE.refusal

    @override
    def refusal(self, case: Case) -> str | None:
        if case.device != "cpu":
            return f"runs on cpu, not on {case.device}"
        if case.dtype not in attention_cpu.SUFFIXES:
            return f"takes float32 and bfloat16, not {str(case.dtype).removeprefix('torch.')}"
        return "has no window" if case.windowed else self.missing()

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
        return cpu_attention(q_BTHK, k_BTHK, v_BTHK, valid_BT, dropout)


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
    {backend.name: backend for backend in (FlashAttention(), Varlen(), Blocked(), Native(), Sdpa(), Reference())}
)
