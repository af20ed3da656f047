"""What this machine's processor has instructions for."""

import functools
import logging

import torch

_logger = logging.getLogger(__name__)


def multiplies_bf16() -> bool:
    """Whether there are instructions for bf16 products (AVX-512 BF16 or AMX); without them bf16 is slower."""
    found = torch.backends.cpu.get_cpu_capability() in {"AVX512", "AMX"}
    return found and bool(torch.cpu._is_avx512_bf16_supported())  # noqa: SLF001  torch offers no public question


@functools.cache
def note_bf16() -> None:
    """Say once, where it is so, that products in bf16 take a hundred times as long as in float32 here."""
    if not multiplies_bf16():
        _logger.warning(
            "this processor has no products of bf16: torch emulates them, some hundred times slower than float32"
            " -> state float32, or precision=fastest, which takes bf16 where it is fast"
        )
