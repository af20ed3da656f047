"""Code in a process of its own: Triton's interpreter is chosen when kernels are defined."""

import os
import subprocess
import sys
from typing import Any

import pytest


def said(code: str, **environment: str) -> str:
    """What it printed, or the end of why it failed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.stdout.strip() or done.stderr[-2000:]


def interpreted(code: str) -> str:
    """The same, with kernels run by Triton's interpreter."""
    return said(code, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


def here(code: str) -> None:
    """The same in this process, for kernels that run on a GPU: importing takes long on machines that are lent."""
    exec(code, {})  # noqa: S102  the tests' own


def compiled(kernel: Any, known: dict[str, object], kinds: dict[str, str], stored: str, **options: int) -> Any:
    """What Triton makes of a kernel for an H100, which need not be here.

    Args:
        kernel: The kernel.
        known: Values of its constants.
        kinds: Types of its other arguments, where they are not ``stored``.
        stored: Type of the rest, such as ``*bf16``.
        options: Of the compiler, such as ``num_warps``.
    """
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource  # noqa: PLC0415

    constants = {(place,): known[name] for place, name in enumerate(kernel.arg_names) if name in known}
    signature = {name: "constexpr" if name in known else kinds.get(name, stored) for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm
