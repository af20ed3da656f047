"""The losses of an experiment's first steps: a refactor leaves them as they are, a change of numbers shows.

The steps are those of the system that trains, with the augmentation, what is averaged, annealed and frozen by step, and
the trainer's clipping; data alone is made up. Written again, after a change that is meant, in a commit of its own::

    OMP_NUM_THREADS=1 uv run python -m tests.golden.curves            # all
    OMP_NUM_THREADS=1 uv run python -m tests.golden.curves dinosr_tiny
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.seeds import generator
from ossicle.launch.config import compose, groups
from ossicle.launch.experiment import PARTS, instantiate_part, resolved
from ossicle.system.build import Experiment, build
from ossicle.system.trainer import make_trainer
from ossicle.system.watcher import Watcher
from tests.launch.toy import on

FOLDER = Path(__file__).parent / "losses"
STEPS = 30
ROWS, SECONDS = 2, 1.0
SAME = {"mhubert_tiny": "hubert_tiny", "xlsr_tiny": "wav2vec2_tiny"}
"""Experiments that are others on other data, a mixture: what they lose on the data of here is what the others lose."""
TINY = sorted(name for name in groups()["experiment"] if name.endswith("_tiny") and name not in SAME)
AT_ONCE = "schedule.warmup_steps=2"
VARIANTS: dict[str, tuple[str, ...]] = {
    "hubert_large_tiny frozen": (AT_ONCE, "model.freeze_frontend_at=5"),
    "dinosr_tiny frozen": (
        AT_ONCE, "model.freeze_projection_at=5",
        "target.momentum.start=0.9", "target.momentum.end=0.9", "target.momentum.freeze_at=15",
    ),
    "data2vec_tiny moving": (
        AT_ONCE, "target.momentum.start=0.5", "target.momentum.end=0.99", "target.momentum.steps=20"
    ),
    "vq_wav2vec_tiny annealed": ("frontend.quantiser.temperature_decay=0.5",),
}  # fmt: skip
"""What the tiny experiments do too late for the first steps, done at once: an experiment, a word, and overrides."""
CALM = {"vq_wav2vec_tiny": ("optim.lr=1e-4",)}
"""Overrides without which the last digit, by another choice of codes, is a few per cent of the loss in 30 steps."""
CURVES = sorted([*TINY, *VARIANTS])


def parts(name: str) -> Experiment:
    """A curve's experiment on made-up data."""
    base = name.split(" ", maxsplit=1)[0]
    words = [f"experiment={base}", "max_steps=400", *on("nowhere", base), *CALM.get(base, ()), *VARIANTS.get(name, ())]
    config = resolved(compose("pretrain", words))
    return Experiment(
        name=base,
        seed=config["seed"],
        **{part: instantiate_part(config, part) for part in PARTS},
        data=Tones(),
        max_steps=config["max_steps"],
        clip_norm=config["clip_norm"],
        precision="32-true",
        log_every=1,
        accelerator="cpu",
    )


def sound(position: int, samples: int, rate_hz: int) -> torch.Tensor:
    """Rows of harmonic tones that glide and pause, under noise: the same on every machine, and something to learn."""
    source = generator(0, position, 0, "golden")
    time_S = torch.arange(samples, dtype=torch.float64) / rate_hz
    pitch_B1, glide_B1, beat_B1 = (torch.rand(3, ROWS, 1, generator=source).double() + 0.5).unbind()
    phase_BS = 2 * torch.pi * (120 * pitch_B1 * time_S + 40 * glide_B1 * time_S.square())
    voiced_BS = sum((phase_BS * n).sin() / n for n in range(1, 12)) * (2 * torch.pi * 3 * beat_B1 * time_S).sin().clamp(
        0
    )
    noise_BS = torch.randn(ROWS, samples, generator=source).double()
    return (0.1 * voiced_BS + 0.01 * noise_BS).float()


class Batches(IterableDataset[Batch]):
    """One batch after another, with labels that change every five frames."""

    def __init__(self, clock: FrameClock, classes: int) -> None:
        self.clock, self.classes = clock, classes

    @override
    def __iter__(self) -> Iterator[Batch]:
        samples, index_B = int(SECONDS * self.clock.rate_hz), torch.arange(ROWS)
        for step in range(STEPS):
            labels_T = (torch.arange(self.clock.num_frames(samples)) // 5 + step) % self.classes
            yield Batch(sound(step, samples, self.clock.rate_hz), step, index_B, 0 * index_B, labels_T.expand(ROWS, -1))


class Tones(LightningDataModule):
    """What a system needs of data."""

    def __init__(self) -> None:
        super().__init__()
        self.position = 0

    def set_clock(self, clock: FrameClock, num_classes: int | None = None) -> None:
        """Keep both for the batches."""
        self.batches = Batches(clock, num_classes or 1)

    def advance(self, batches_per_rank: int = 1) -> None:
        """Count."""
        self.position += batches_per_rank

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.batches, batch_size=None)


class Curve(Watcher):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    @override
    def on_metrics(self, trainer: Trainer, system: LightningModule, metrics: Mapping[str, float], step: int) -> None:
        self.losses.append(metrics["objective/loss"])


def losses(name: str) -> list[float]:
    """The loss of each of the first steps, of one thread on the host."""
    made, curve = parts(name), Curve()
    system = build(made)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            replace(made, max_steps=STEPS, callbacks=(lambda **_: curve,)), run_dir=Path(folder), config={}
        )
        assert isinstance(made.data, Tones)
        trainer.fit(system, datamodule=made.data)
    return curve.losses


def path_of(name: str) -> Path:
    """Where a curve is written down."""
    return FOLDER / f"{name.replace(' ', '-')}.json"


def main(names: list[str]) -> None:
    """Write curves."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in names or CURVES:
        rounded = [float(f"{loss:.7g}") for loss in losses(name)]
        path_of(name).write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
