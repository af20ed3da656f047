import pickle

import pytest

from ossicle.core.errors import CollapseError, ConfigError, DataError, MissingExtraError, OssicleError

ERRORS = [
    ConfigError("a is 1", "set a=2"),
    DataError("x", "y"),
    CollapseError("x", "y"),
    MissingExtraError("p", "e", "It"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_errors_cross_process_borders_whole(error: OssicleError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert (copy.problem, copy.mend) == (error.problem, error.mend)


def test_a_message_says_what_is_wrong_and_the_mend() -> None:
    assert str(ERRORS[0]) == "a is 1\n  -> set a=2"


def test_a_missing_extra_is_named() -> None:
    assert "pip install 'ossicle[synth]'" in str(MissingExtraError("espeakng_loader", "synth", "Synthesis"))
