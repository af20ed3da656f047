"""Golden curves: the losses of thirty steps of every tiny experiment at toy size, on a CPU, in float32, on one thread.

A refactoring leaves tests/golden/NAME.json as it is. A change of numbers writes it anew, in a commit of its own that
says why:

    GOLDEN=write uv run pytest tests/launch/test_golden.py -k NAME
"""

import csv
import json
import os
from pathlib import Path

import pytest
import torch

from ossicle.launch.config import compose, groups
from ossicle.launch.experiment import check, resolved
from ossicle.launch.pretrain import pretrain
from tests.launch.toy import TOY, on, shrunk

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TINY = [name for name in groups()["experiment"] if name.endswith("_tiny")]
STEPS = 30


def losses(name: str, dataset: Path, folder: Path) -> list[float]:
    """The loss of each step, as metrics.csv has it."""
    numbers = [
        "max_steps=30",
        "optim.lr=1e-3",
        "clip_norm=1.0",
        "label_frames=3000",
        "callback.collapse.start_step=100",
    ]
    overrides = [f"experiment={name}", *on(dataset, name), *TOY, *numbers, f"runs={folder}"]
    config = shrunk(resolved(compose("pretrain", overrides)), STEPS)
    check(config)
    threads = torch.get_num_threads()
    try:
        pretrain(config, folder / "run")
    finally:
        torch.set_num_threads(threads)
    (metrics,) = (folder / "run").rglob("metrics.csv")
    with metrics.open(encoding="utf-8", newline="") as lines:
        return [float(row["objective/loss"]) for row in csv.DictReader(lines) if row.get("objective/loss")]


@pytest.mark.parametrize("name", TINY)
def test_thirty_steps_have_their_golden_losses(name: str, synthetic_dataset: Path, tmp_path: Path) -> None:
    found = losses(name, synthetic_dataset, tmp_path)
    assert len(found) == STEPS
    file = GOLDEN / f"{name}.json"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(json.dumps([float(f"{loss:.6g}") for loss in found]) + "\n", encoding="utf-8")
    assert file.is_file(), (
        f"{name} has no golden curve: GOLDEN=write uv run pytest tests/launch/test_golden.py -k {name}"
    )
    assert found == pytest.approx(json.loads(file.read_text(encoding="utf-8")), rel=2e-3)


def test_every_golden_curve_is_that_of_an_experiment() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} <= set(TINY)
