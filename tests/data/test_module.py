from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.world import World
from ossicle.data.index import DatasetIndex
from ossicle.data.loader import PlannedBatches
from ossicle.data.module import ShardData

CLOCK = FrameClock().then(400, 320)
Seen = tuple[int, tuple[int, ...], tuple[int, ...], float]


def module_of(path: Path, workers: int = 0, **changes: object) -> ShardData:
    arguments = {
        "max_crop_s": 1.0,
        "min_crop_s": 0.3,
        "num_shapes": 3,
        "batch_s": 3.0,
        "window_shards": 2,
        "workers": workers,
        "seed": 5,
        "max_bad_fraction": 0.1,
        **changes,
    }
    return ShardData(path, **arguments)  # ty: ignore[invalid-argument-type]


class Recorder(LightningModule):
    """Trains one number and writes down what it has seen; tells the data what is consumed, as the system does."""

    def __init__(self, data: ShardData) -> None:
        super().__init__()
        self.data = data
        self.gain = nn.Parameter(torch.ones(()))
        self.seen: list[Seen] = []

    @override
    def setup(self, stage: str) -> None:
        self.data.set_clock(CLOCK)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        total = float(batch.waveform_BS.double().sum())
        self.seen.append((batch.position, tuple(batch.ids_B.tolist()), tuple(batch.starts_B.tolist()), total))
        self.data.advance()
        return (self.gain * batch.waveform_BS).square().mean()

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves inside the fit, after a given number of micro-batches."""

    def __init__(self, path: Path, batches: int) -> None:
        self.path = path
        self.batches = batches

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if batch_idx + 1 == self.batches:
            trainer.save_checkpoint(self.path, weights_only=False)


def fit(
    path: Path, steps: int, workers: int, *, callbacks: tuple[Callback, ...] = (), resume: Path | None = None
) -> tuple[list[Seen], float, ShardData]:
    data = module_of(path, workers)
    recorder = Recorder(data)
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
    )
    trainer.fit(recorder, datamodule=data, ckpt_path=resume, weights_only=resume is not None or None)
    return recorder.seen, float(recorder.gain), data


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_trainer_that_is_killed_and_resumed_sees_what_the_uninterrupted_one_sees(
    ramps: Path, tmp_path: Path, workers: int
) -> None:
    whole, gain, data = fit(ramps, 30, workers)
    assert [position for position, *_ in whole] == list(range(30))
    assert data.position == 30
    assert data.epoch() > 1  # over the end of an epoch
    saved = tmp_path / "at13.ckpt"
    # the first run goes on after its last checkpoint: what it did then is lost, as when it is killed
    first, _, _ = fit(ramps, 17, workers, callbacks=(SaveAt(saved, 13),))
    assert torch.load(saved, weights_only=True)["ShardData"]["position"] == 13
    second, resumed_gain, resumed = fit(ramps, 30, workers, resume=saved)
    assert first[:13] + second == whole
    assert resumed_gain == gain
    assert resumed.position == 30


def test_position_counts_the_batches_of_all_ranks(ramps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = module_of(ramps)
    monkeypatch.setattr(World, "current", lambda: World(1, 3))
    data.advance()
    data.advance(4)
    assert data.position == 15


def test_a_position_of_one_world_goes_on_in_another(ramps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = module_of(ramps)
    saved.position = 7
    positions: list[int] = []
    for rank in range(3):
        data = module_of(ramps)
        data.load_state_dict(saved.state_dict())
        data.set_clock(CLOCK)
        monkeypatch.setattr(World, "current", lambda rank=rank: World(rank, 3))
        batches = iter(data.train_dataloader())
        positions.extend(next(batches).position for _ in range(2))
    assert sorted(positions) == list(range(7, 13))


@pytest.mark.parametrize("change", [{"seed": 6}, {"batch_s": 4.0}, {"window_shards": 1}, {"max_crop_s": 0.9}])
def test_a_position_of_another_sequence_is_refused(ramps: Path, change: dict[str, float]) -> None:
    state = module_of(ramps).state_dict()
    with pytest.raises(ConfigError, match=next(iter(change)) if "max_crop_s" not in change else "crops"):
        module_of(ramps, **change).load_state_dict(state)
    module_of(ramps, workers=2).load_state_dict(state)


def test_labels_of_another_clock_or_number_of_classes_fail_before_training(
    ramps: Path, tmp_path: Path, write_labels: Callable[..., Path]
) -> None:
    labels = write_labels(tmp_path / "labels", DatasetIndex.load(ramps, "train"))
    data = module_of(ramps, labels=labels)
    data.set_clock(CLOCK, 200)
    with pytest.raises(ConfigError, match="num_classes=200"):
        data.set_clock(CLOCK, 50)
    with pytest.raises(ConfigError, match="every 640"):
        data.set_clock(CLOCK.then(2, 2))
    data.set_clock(CLOCK, 200)
    batch = next(iter(data.train_dataloader()))
    assert batch.labels_BT is not None
    assert batch.labels_BT.shape == (batch.waveform_BS.shape[0], CLOCK.num_frames(batch.waveform_BS.shape[1]))


def test_what_does_not_fit_the_model_is_refused(ramps: Path) -> None:
    data = module_of(ramps)
    with pytest.raises(ConfigError, match="set_clock"):
        data.train_dataloader()
    with pytest.raises(ConfigError, match="8000 Hz"):
        data.set_clock(FrameClock(400, 160, rate_hz=8_000))
    with pytest.raises(ConfigError, match="no frame"):
        data.set_clock(FrameClock().then(100_000, 320))
    with pytest.raises(DataError, match="no prepared dataset"):
        module_of(ramps / "nothing")


def test_what_an_epoch_leaves_unheard_is_known(ramps: Path) -> None:
    data = module_of(ramps, min_crop_s=0.5)
    assert data.num_excluded == int((data.index.rows["samples"] < 8_000).sum()) > 0
    samples = data.index.rows["samples"].astype(int)
    heard = sum(max((length for length in data.shapes.lengths if length <= n), default=0) for n in samples.tolist())
    assert data.unused_fraction == pytest.approx(1 - heard / samples.sum())
    whole = module_of(ramps, min_crop_s=0.3, max_cut=0.0, num_shapes=8)
    assert whole.unused_fraction < 0.15 < module_of(ramps, min_crop_s=0.3, num_shapes=8).unused_fraction


def test_crops_start_where_the_seed_of_the_run_says(ramps: Path) -> None:
    data = module_of(ramps, seed=7)
    data.set_clock(CLOCK)
    batches = data.train_dataloader().dataset
    assert isinstance(batches, PlannedBatches)
    assert batches.reader.seed == 7
