import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from typing_extensions import override

from ossicle.callback import shares
from ossicle.callback.checkpoints import Checkpoints
from ossicle.callback.shares import SharesMeter
from ossicle.data.mixture import MixtureData
from ossicle.system.watcher import Watcher
from tests.system.toys import toy_run


class Listener(Watcher):
    heard: dict[str, float]

    def __init__(self, **_: object) -> None:
        self.heard = {}

    @override
    def on_metrics(self, trainer: Trainer, system: LightningModule, metrics: dict[str, float], step: int) -> None:
        self.heard = dict(metrics)


def data_of(dataset: Path) -> MixtureData:
    sources = {"a": {"shards": dataset}, "b": {"shards": dataset, "weight": 3.0}}
    return MixtureData(
        sources, alpha=0.0, source_alpha=0.0, max_crop_s=1.5, min_crop_s=1.0, num_shapes=2, batch_s=6.0,
        window_shards=2, workers=0, seed=0, max_bad_fraction=0.1,
    )  # fmt: skip


def run(folder: Path, dataset: Path, steps: int, *, resumed: bool = False) -> tuple[Listener, dict]:
    last = folder / "checkpoints" / "last.ckpt"
    trainer, _ = toy_run(
        folder,
        (SharesMeter, Listener, partial(Checkpoints, every_steps=5, keep=1)),
        checkpoint=last if resumed else None,
        data=data_of(dataset),
        max_steps=steps,
    )
    listener = next(c for c in vars(trainer)["callbacks"] if isinstance(c, Listener))
    return listener, json.loads((folder / "shares.json").read_text())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_realised_shares_are_logged_written_and_carried_over_a_resumption(
    synthetic_dataset: Path, tmp_path: Path
) -> None:
    listener, whole = run(tmp_path / "whole", synthetic_dataset, 30)
    told = {f"{c['source']}/{c['language']}": c["share"] for c in whole["components"]}
    assert len(told) == 12
    assert {name: listener.heard[f"data/share/{name}"] for name in told} == pytest.approx(told)
    assert sum(told.values()) == pytest.approx(1)
    for component in whole["components"]:
        # without temperature the languages of a source are heard alike, and source b three times as often as a
        assert component["wanted"] == pytest.approx({"a": 1 / 24, "b": 1 / 8}[component["source"]])
        assert component["share"] == pytest.approx(component["wanted"], abs=0.03)
    assert sum(component["hours"] for component in whole["components"]) == pytest.approx(whole["hours"])
    assert whole["hours"] == pytest.approx(listener.heard["meter/audio_hours"])
    run(tmp_path / "parts", synthetic_dataset, 10)
    saved = torch.load(tmp_path / "parts" / "checkpoints" / "last.ckpt", weights_only=True)
    assert sum(saved["heard_samples"].values()) > 0
    _, resumed = run(tmp_path / "parts", synthetic_dataset, 30, resumed=True)
    assert resumed == whole


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_of_more_components_than_columns_the_sources_are_logged_and_all_are_written(
    synthetic_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "_MOST_COLUMNS", 11)
    listener, whole = run(tmp_path, synthetic_dataset, 4)
    assert len(whole["components"]) == 12
    expected = dict.fromkeys(("data/share/a", "data/share/b"), 0.0)
    for component in whole["components"]:
        expected[f"data/share/{component['source']}"] += component["share"]
    logged = {name: value for name, value in listener.heard.items() if name.startswith("data/share")}
    assert logged == pytest.approx(expected)
    assert min(logged.values()) > 0


def test_data_of_one_kind_have_no_shares(tmp_path: Path) -> None:
    trainer, _ = toy_run(tmp_path, (SharesMeter, Listener), max_steps=2)
    listener = next(c for c in vars(trainer)["callbacks"] if isinstance(c, Listener))
    assert not any(name.startswith("data/share") for name in listener.heard)
    assert not (tmp_path / "shares.json").exists()
