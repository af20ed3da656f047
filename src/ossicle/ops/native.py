"""C++ that is compiled when it is first used, and called through its plain C interface.

It needs a C++ compiler and nothing of torch's headers, so that it is built in seconds and outlives torch.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch

COMPILERS: Final = ("g++", "clang++", "c++")
# Without traps and errno a choice between two numbers is no branch, and its loop is one of vectors.
FLAGS: Final = (
    "-O3", "-march=native", "-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared",
    "-pthread",
)  # fmt: skip
TORCH_LIBRARY: Final = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
OPENMP: Final = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
_logger = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """The compiler is missing or refuses."""


def build(source: Path, compilers: Sequence[str] = COMPILERS, flags: Sequence[str] = FLAGS) -> ctypes.CDLL:
    """The compiled code of a source, from the cache or newly built.

    Args:
        source: The file, which includes nothing but what is standard and headers beside it.
        compilers: Names of compilers, the best first.
        flags: What the compiler is told.

    Raises:
        BuildError: No compiler is found, or it refuses.
        OSError: The cache cannot be written, or the file not loaded.
    """
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler: none of {', '.join(compilers)} is on the path")
    texts = [file.read_text(encoding="utf-8") for file in (source, *sorted(source.parent.glob("*.hpp")))]
    key = hashlib.blake2b("\n".join((*texts, compiler, *flags, _processor())).encode(), digest_size=8).hexdigest()
    # Beside what torch keeps for this user, wherever that was put.
    target = Path(torch.hub.get_dir()).parent / "ossicle" / f"{source.stem}_{key}.so"
    if not target.is_file():
        _build([compiler, *flags], source, target)
    library = ctypes.CDLL(str(target))
    if hasattr(library, "use_openmp"):
        lend_threads(library)
    return library


def lend_threads(library: ctypes.CDLL, torch_library: Path = TORCH_LIBRARY) -> bool:
    """Let compiled code run on the threads of torch's OpenMP, whatever it is called and wherever it lies.

    Args:
        library: Code that includes ``threads.hpp``.
        torch_library: What links that OpenMP.

    Returns:
        Whether there is one; without it the code starts threads anew, and says so in the log.
    """
    try:
        torch_cpu = ctypes.CDLL(str(torch_library))
        lent = [ctypes.cast(getattr(torch_cpu, name), ctypes.c_void_p) for name in OPENMP]
    except (OSError, AttributeError) as error:
        _logger.info("own C++ starts its own threads, for torch lends none: %s", error)
        return False
    library.use_openmp(*lent)
    return True


class Source:
    """A file of C++, compiled when it is first asked for.

    Args:
        file: The file.
        declare: States the types of its functions' arguments where more than pointers and C's own are handed over.
    """

    def __init__(self, file: Path, declare: Callable[[ctypes.CDLL], None] | None = None) -> None:
        self.file = file
        self.declare = declare
        self._said: set[str] = set()

    @functools.cached_property
    def library(self) -> ctypes.CDLL:
        """The compiled code; raises what :func:`build` raises."""
        library = build(self.file, COMPILERS)
        if self.declare is not None:
            self.declare(library)
        return library

    @functools.cached_property
    def refusal(self) -> str | None:
        """Why this machine cannot run it, or None where it can."""
        try:
            _ = self.library
        except (BuildError, OSError) as error:
            return f"cannot be built ({error})"
        return None

    def refusal_of(self, otherwise: str) -> str | None:
        """The same, with a warning when it is first asked of what serves in its place."""
        reason = self.refusal
        if reason is not None and otherwise not in self._said:
            self._said.add(otherwise)
            _logger.warning("%s: the C++ of a CPU %s", otherwise, reason)
        return reason


def _build(command: Sequence[str], source: Path, target: Path) -> None:
    """Compile beside the target and move it there: several ranks may do so at once."""
    _logger.info("compiling %s for this processor: %s", source.name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        output = Path(folder) / target.name
        done = subprocess.run([*command, str(source), "-o", str(output)], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise BuildError(f"{command[0]} refuses {source.name}: {lines[0] if lines else done.returncode}")
        os.replace(output, target)  # noqa: PTH105


def _processor() -> str:
    """What ``-march=native`` depends on: a home may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
