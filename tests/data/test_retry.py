import errno
from collections.abc import Iterator

import pytest

from ossicle.core.errors import DataError
from ossicle.data.retry import DamagedReadError, Retry, ShortReadError, http_status, is_permanent


class ServerError(OSError):
    """As a client of an object store raises it: the status is in what it was made of."""

    def __init__(self, status: int) -> None:
        super().__init__("refused")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr("ossicle.data.retry.time.sleep", found.append)
    return found


class Flaky:
    """Fails with each error in turn, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors: Iterator[Exception] = iter(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        error = next(self.errors, None)
        if error is not None:
            raise error
        return "answer"


def test_what_passes_is_tried_again_with_pauses_that_double_up_to_a_bound(pauses: list[float]) -> None:
    action = Flaky(TimeoutError(), ConnectionResetError(), ShortReadError("3 of 5"), ServerError(503), ServerError(429))
    assert Retry(tries=6, first_s=1.0, longest_s=4.0).call("reading", action) == "answer"
    assert action.calls == 6
    assert len(pauses) == 5
    for pause, longest in zip(pauses, (1, 2, 4, 4, 4), strict=True):
        assert longest / 2 <= pause <= longest


def test_pauses_of_two_processes_are_not_the_same(pauses: list[float]) -> None:
    for _ in range(2):
        Retry().call("reading", Flaky(TimeoutError(), TimeoutError()))
    assert pauses[:2] != pauses[2:]


def test_tries_end_with_what_was_done_and_the_last_error(pauses: list[float]) -> None:
    action = Flaky(*(ServerError(500) for _ in range(10)))
    with pytest.raises(DataError, match=r"reading s3://x failed 3 times, at last: ServerError: refused"):
        Retry(tries=3).call("reading s3://x", action)
    assert action.calls == 3
    assert len(pauses) == 2


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(), PermissionError(), ServerError(403), ServerError(404), OSError(errno.ENOSPC, "full")],
)
def test_what_stays_is_not_tried_again(pauses: list[float], error: Exception) -> None:
    action = Flaky(error)
    with pytest.raises(DataError, match="failed"):
        Retry().call("reading", action)
    assert action.calls == 1
    assert pauses == []


def test_damaged_bytes_are_tried_twice_and_no_third_time(pauses: list[float]) -> None:
    action = Flaky(*(DamagedReadError("other bytes") for _ in range(5)))
    with pytest.raises(DataError, match="failed 2 times"):
        Retry().call("reading", action)
    assert action.calls == 2
    assert len(pauses) == 1


def test_errors_of_the_program_itself_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        Retry().call("reading", Flaky(ZeroDivisionError()))


def test_a_status_is_found_behind_what_a_client_made_of_it() -> None:
    wrapped = OSError("a client's own words")
    wrapped.__cause__ = ServerError(404)
    assert http_status(wrapped) == 404
    assert is_permanent(wrapped)
    broken_off = ValueError("a body that broke off, with a parser's 400 behind it")
    broken_off.__cause__ = ServerError(400)
    assert http_status(broken_off) is None
    assert not is_permanent(ConnectionResetError())
