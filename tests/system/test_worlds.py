"""What every small experiment makes of the same batches is the same, whoever takes them."""

from pathlib import Path

import pytest
import torch

from tests.system.ranks import leave
from tests.system.worlds import CASES

MOMENTS = ("running_mean", "running_var", "num_batches_tracked")
"""Of batch norms, such as those of SEW's projections: ranks have the mean of theirs, and one process those of its
micro-batches one after another, which is not the same."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every experiment after three steps of two batches: accumulated by one process, and shared by two over gloo."""
    folder = tmp_path_factory.mktemp("worlds")
    leave(Path(__file__).with_name("worlds.py"), folder, timeout_s=540)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one_that_accumulates(trained: Path, case: str) -> None:
    alone, first, second = (
        torch.load(trained / f"{case}-{who}.pt", weights_only=True) for who in ("1-0", "2-0", "2-1")
    )
    for among in (first, second):
        assert among["loss"] == pytest.approx(alone["loss"], rel=2e-5)
        for kind in ("weights", "buffers"):
            assert among[kind].keys() == alone[kind].keys()
            for key, value in alone[kind].items():
                expected = first[kind][key] if key.endswith(MOMENTS) else value
                torch.testing.assert_close(among[kind][key], expected, atol=3e-5, rtol=1e-4, msg=f"{kind} {key}")
