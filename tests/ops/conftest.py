from collections.abc import Iterator

import pytest

from ossicle.ops import (
    attention_cpu,
    dropout_cpu,
    mel_cpu,
    native,
    recurrence,
    recurrence_cpu,
    selective_scan,
    selective_scan_cpu,
)


@pytest.fixture
def chosen_anew() -> Iterator[None]:
    """Kernels are chosen anew in the test, and again after it."""
    caches = (recurrence._kernel, selective_scan._kernel)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def without_compiler(chosen_anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no C++ compiler, and nothing that one has built before."""
    assert chosen_anew is None
    for module in (attention_cpu, dropout_cpu, mel_cpu, recurrence_cpu, selective_scan_cpu):
        monkeypatch.setattr(module, "CODE", native.Source(module.CODE.file, module.CODE.declare))
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
