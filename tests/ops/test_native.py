"""Own C++ runs on the threads that torch has, or on its own where torch lends none."""

import ctypes
import logging
from pathlib import Path

import pytest
import torch

from ossicle.ops import native
from ossicle.ops.native import build, lend_threads

HEADER = Path(native.__file__).with_name("threads.hpp")
CODE = """
#include <sys/syscall.h>
#include <unistd.h>
#include "threads.hpp"

extern "C" void who(int64_t threads, int64_t* ids) {
  on_threads(threads, [&](int64_t thread, int64_t) { ids[thread] = syscall(SYS_gettid); });
}
extern "C" void count(int64_t rows, int64_t threads, int64_t* seen) {
  over_rows(rows, threads, [&](int64_t start, int64_t end) {
    for (int64_t row = start; row < end; ++row) ++seen[row];
  });
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("code")
    (folder / HEADER.name).write_text(HEADER.read_text())
    (folder / "who.cpp").write_text(CODE)
    try:
        return build(folder / "who.cpp")
    except native.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(params=[True, False], ids=["torch's threads", "its own threads"])
def lent(library: ctypes.CDLL, request: pytest.FixtureRequest) -> bool:
    library.use_openmp(None, None, None)
    return bool(request.param) and lend_threads(library)


def _threads(library: ctypes.CDLL, number: int) -> list[int]:
    ids = torch.zeros(number, dtype=torch.int64)
    library.who(ctypes.c_int64(number), ctypes.c_void_p(ids.data_ptr()))
    return ids.tolist()


def test_torchs_threads_are_the_same_at_every_call_and_its_own_are_started_anew(
    library: ctypes.CDLL, lent: bool
) -> None:
    first, second = _threads(library, 3), _threads(library, 3)
    assert len(set(first)) == len(set(second)) == 3
    assert (first == second) == lent
    assert first[0] == second[0], "the thread that calls works too"


def test_code_is_lent_torchs_threads_when_it_is_loaded(library: ctypes.CDLL) -> None:
    library.use_openmp(None, None, None)
    assert lend_threads(library), "torch on Linux has an OpenMP"
    assert _threads(library, 2) == _threads(library, 2)


def test_where_torch_lends_none_the_log_says_so(
    library: ctypes.CDLL, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library.use_openmp(None, None, None)
    with caplog.at_level(logging.INFO, "ossicle"):
        assert not lend_threads(library, tmp_path / "libtorch_cpu.so")
    assert "starts its own threads" in caplog.text
    assert len(set(_threads(library, 2))) == 2


@pytest.mark.parametrize("rows", [0, 1, 5, 64])
@pytest.mark.parametrize("threads", [0, 1, 3, 8])
def test_each_row_falls_to_one_thread(library: ctypes.CDLL, lent: bool, rows: int, threads: int) -> None:
    del lent
    seen = torch.zeros(rows + 1, dtype=torch.int64)
    library.count(ctypes.c_int64(rows), ctypes.c_int64(threads), ctypes.c_void_p(seen.data_ptr()))
    assert seen.tolist() == [1] * rows + [0]
