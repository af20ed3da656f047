from functools import partial
from itertools import count
from pathlib import Path

import pytest
from lightning import Trainer
from torch import nn

from ossicle.callback.checkpoints import Checkpoints
from ossicle.callback.cost import CostMeter
from ossicle.core.files import read_json
from ossicle.meter.cost import CostCard
from ossicle.meter.energy import EnergyCounter
from ossicle.meter.flops import macs_of_audio
from ossicle.system.build import build
from tests.system.toys import toy_experiment, toy_run

CALLBACKS = (CostMeter, partial(Checkpoints, every_steps=4, keep=1))
KEYS = {
    "gpu_hours", "wall_s", "audio_hours", "audio_s_per_s", "padding_fraction", "data_wait_fraction", "mfu",
    "peak_memory_bytes", "energy_kwh", "co2e_kg", "params", "macs_per_audio_s",
}  # fmt: skip


def audio_s(positions: range) -> float:
    return sum((2 + p % 3) * (4 + p % 2) * 0.1 for p in positions)


def test_the_card_of_a_run_on_a_cpu_knows_what_a_cpu_can_know(tmp_path: Path) -> None:
    toy_run(tmp_path, CALLBACKS, max_steps=4)
    card = read_json(tmp_path / "cost.json")
    assert card.keys() == KEYS
    assert card["gpu_hours"]["value"] == 0
    assert card["audio_hours"]["value"] * 3600 == pytest.approx(audio_s(range(4)))
    assert card["audio_s_per_s"]["value"] == pytest.approx(audio_s(range(4)) / card["wall_s"]["value"])
    assert 0 <= card["data_wait_fraction"]["value"] < 1
    assert card["peak_memory_bytes"]["value"] > 2**27
    assert {name for name, entry in card.items() if entry["value"] is None} == {"mfu", "energy_kwh", "co2e_kg"}
    assert all(entry["reason"] for entry in card.values() if entry["value"] is None)
    model = build(toy_experiment()).model
    rows = {6400: (2 + 0) + (2 + 2), 8000: (2 + 1) + (2 + 0)}  # of positions 0 to 3
    macs = sum(count * macs_of_audio(model, samples) for samples, count in rows.items())
    assert card["macs_per_audio_s"]["value"] == pytest.approx(macs / audio_s(range(4)))
    assert card["params"]["value"] == sum(p.numel() for p in build(toy_experiment()).parameters())


@pytest.mark.parametrize("local_rank", [0, 1])
def test_energy_of_processors_is_called_that_and_told_by_one_rank_of_a_machine(
    local_rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name in ("energy_uj", "max_energy_range_uj"):
        (zone / name).write_text("1000")
    packages = EnergyCounter.of_packages(tmp_path)
    packages.readers = (count(0, 3.6e6).__next__,)
    monkeypatch.setattr(EnergyCounter, "of_device", lambda _: packages)
    monkeypatch.setattr(Trainer, "local_rank", local_rank)
    toy_run(tmp_path, CALLBACKS, max_steps=2)
    entry = read_json(tmp_path / "cost.json")["energy_kwh"]
    assert entry["value"] >= 1 if local_rank == 0 else entry["value"] == 0
    assert entry["how"] == "measured"
    assert entry["reason"] == "processors with all that ran on them, by the kernel's counters"


def test_cost_accumulates_over_resumptions_and_lost_steps_count(tmp_path: Path) -> None:
    toy_run(tmp_path, CALLBACKS, max_steps=6)  # checkpoints at 4 and 6
    first = CostCard.read(tmp_path / "cost.json")
    toy_run(tmp_path, CALLBACKS, tmp_path / "checkpoints" / "last.ckpt", max_steps=8)
    second = CostCard.read(tmp_path / "cost.json")
    assert second.audio_hours.value is not None
    assert second.audio_hours.value * 3600 == pytest.approx(audio_s(range(8)))
    assert second.wall_s.value > first.wall_s.value  # type: ignore[operator]
    # Started again from nothing in the same directory, as after a crash before any checkpoint: spent is spent.
    toy_run(tmp_path, CALLBACKS, max_steps=2)
    third = CostCard.read(tmp_path / "cost.json")
    assert third.audio_hours.value is not None
    assert third.audio_hours.value * 3600 == pytest.approx(audio_s(range(8)) + audio_s(range(2)))


def test_only_what_is_trained_counts_as_parameters(tmp_path: Path) -> None:
    def frozen() -> nn.Module:
        return nn.Conv1d(1, 8, 400, 320).requires_grad_(requires_grad=False)

    _, system = toy_run(tmp_path, CALLBACKS, max_steps=1, frontend=frozen)
    assert isinstance(system, nn.Module)
    trained = sum(p.numel() for name, p in system.named_parameters() if "frontend" not in name)
    assert read_json(tmp_path / "cost.json")["params"]["value"] == trained
