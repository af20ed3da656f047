"""Trains every small experiment by one process that accumulates and by two that do not: ``python worlds.py FOLDER``.

Leaves FOLDER/<experiment>-<processes>-<rank>.pt; nothing is computed before the forks.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.world import World
from ossicle.launch.config import compose, groups
from ossicle.launch.experiment import PARTS, instantiate_part, resolved
from ossicle.system.build import Experiment, build
from ossicle.system.trainer import make_trainer
from tests.golden.curves import sound
from tests.launch.toy import on
from tests.system.ranks import fork, wait
from tests.system.toys import Endless

TINY = sorted(name for name in groups()["experiment"] if name.endswith("_tiny"))
CASES = (*TINY, "hubert_tiny mixer=ligru")  # whose batch norms are the encoder's
STEPS, MICRO_BATCHES = 3, 2
SAMPLES, RATE_HZ, LABEL_FRAMES = 16_000, 16_000, 5


class Sounds(Dataset[Batch]):
    """Tones under noise, and labels that change with them; what is in a batch depends on its position alone."""

    def __init__(self, clock: FrameClock, classes: int) -> None:
        self.frames, self.classes = clock.num_frames(SAMPLES), classes

    @override
    def __getitem__(self, position: int) -> Batch:
        waveform_BS = sound(position, SAMPLES, RATE_HZ)
        index_B = torch.arange(len(waveform_BS))
        labels_T = (torch.arange(self.frames) // LABEL_FRAMES + position) % self.classes
        return Batch(waveform_BS, position, index_B, 0 * index_B, labels_T.expand(len(waveform_BS), -1))


class SoundData(LightningDataModule):
    """Batches for ever, each to one rank."""

    def __init__(self) -> None:
        super().__init__()
        self.position = 0

    def set_clock(self, clock: FrameClock, num_classes: int | None = None) -> None:
        self.clock, self.classes = clock, num_classes or 2

    def advance(self, batches_per_rank: int = 1) -> None:
        self.position += batches_per_rank * World.current().size

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        source = Sounds(self.clock, self.classes)
        return DataLoader(source, sampler=Endless(self.position, World.current()), batch_size=None)


def low(**_: object) -> Callable[[int], float]:
    """The same small rate for every step: what rounding makes of gradients that cancel is not to grow."""
    return lambda _: 0.2


def trained(case: str, folder: Path, world: int) -> dict[str, object]:
    """An experiment's weights and buffers after some steps of as many batches, by one process or more."""
    name, *words = case.split()
    config = resolved(compose("pretrain", [f"experiment={name}", "max_steps=400", *on("nowhere", name), *words]))
    experiment = Experiment(
        name=name,
        seed=config["seed"],
        **{part: instantiate_part(config, part) for part in PARTS if part != "schedule"},
        schedule=low,
        data=SoundData(),
        max_steps=STEPS,
        clip_norm=config["clip_norm"],
        accumulate=MICRO_BATCHES // world,
        devices=world,
        accelerator="cpu",
        precision="32-true",
        log_every=1,
    )
    system = build(experiment)
    trainer = make_trainer(experiment, run_dir=folder / f"{case}-{world}", config={"name": name})
    trainer.fit(system, datamodule=experiment.data)
    return {
        "loss": system.last_loss,
        "weights": {key: value.detach() for key, value in system.named_parameters()},
        "buffers": dict(system.named_buffers()),
    }


def main(folder: Path) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    for case in CASES:
        alone = fork(folder, f"{case}-1", partial(trained, case, folder, 1))
        wait(alone + fork(folder, f"{case}-2", partial(trained, case, folder, 2), world=2))
        if len(list(folder.glob(f"{case}-*.pt"))) < 3:
            sys.exit(f"{case} has not ended")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
