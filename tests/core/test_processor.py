from collections.abc import Iterator

import pytest

from ossicle.core import processor
from ossicle.system.trainer import pick_precision


@pytest.fixture(autouse=True)
def said_anew() -> Iterator[None]:
    processor.note_bf16.cache_clear()
    yield
    processor.note_bf16.cache_clear()


@pytest.mark.parametrize(("native", "times"), [(True, 0), (False, 1)])
def test_that_bf16_is_emulated_is_said_once_where_it_is(
    native: bool, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processor, "multiplies_bf16", lambda: native)
    for _ in range(2):
        assert pick_precision("bf16-mixed", "cpu") == "bf16-mixed"
    assert caplog.text.count("this processor has no products of bf16") == times


def test_nothing_is_said_of_precisions_that_ossicle_picks(caplog: pytest.LogCaptureFixture) -> None:
    for precision in ("auto", "fastest", "32-true"):
        pick_precision(precision, "cpu")
    assert not caplog.records
