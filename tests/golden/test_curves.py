"""Every tiny experiment's first losses are those that were written down; tests/golden/curves.py writes them anew."""

import json
from collections.abc import Iterator

import pytest
import torch

from ossicle.launch.config import compose
from ossicle.launch.experiment import resolved
from tests.golden.curves import CURVES, FOLDER, SAME, STEPS, losses, path_of
from tests.launch.toy import on


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", CURVES)
def test_the_first_steps_lose_what_they_lost_when_written_down(name: str) -> None:
    path = path_of(name)
    assert path.is_file(), f"no losses of {name}: uv run python -m tests.golden.curves '{name}'"
    written = json.loads(path.read_text())
    assert len(written) == STEPS
    assert losses(name) == pytest.approx(written, rel=2e-3)


def test_every_file_belongs_to_a_curve() -> None:
    assert set(FOLDER.glob("*.json")) <= set(map(path_of, CURVES))


@pytest.mark.parametrize(("name", "other"), SAME.items())
def test_an_experiment_without_a_curve_is_one_that_has_it_in_all_but_its_data(name: str, other: str) -> None:
    mine, theirs = (
        resolved(compose("pretrain", [f"experiment={each}", *on("nowhere", each)])) for each in (name, other)
    )
    assert mine["data"]["_target_"] != theirs["data"]["_target_"]
    for config in (mine, theirs):
        del config["name"], config["data"]
    assert mine == theirs
