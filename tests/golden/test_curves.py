"""Every tiny experiment's first losses are those that were written down; tests/golden/curves.py writes them anew."""

import json
from collections.abc import Iterator

import pytest
import torch

from tests.golden.curves import FOLDER, STEPS, TINY, losses


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TINY)
def test_the_first_steps_lose_what_they_lost_when_written_down(name: str) -> None:
    path = FOLDER / f"{name}.json"
    assert path.is_file(), f"no losses of {name}: uv run python -m tests.golden.curves {name}"
    written = json.loads(path.read_text())
    assert len(written) == STEPS
    assert losses(name) == pytest.approx(written, rel=2e-3)


def test_every_file_belongs_to_an_experiment() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} <= set(TINY)
