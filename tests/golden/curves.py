"""The losses of an experiment's first steps: a refactor leaves them as they are, a change of numbers shows.

Written again, after a change that is meant, in a commit of its own::

    OMP_NUM_THREADS=1 uv run python -m tests.golden.curves            # all experiments that have a _tiny
    OMP_NUM_THREADS=1 uv run python -m tests.golden.curves dinosr_tiny
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.seeds import derive_seed, generator
from ossicle.launch.config import compose, groups
from ossicle.launch.experiment import PARTS, instantiate_part, resolved
from ossicle.system.build import Experiment, build_parts
from ossicle.target.base import DiscreteTarget
from tests.launch.toy import on

FOLDER = Path(__file__).parent / "losses"
STEPS = 30
ROWS, SECONDS = 2, 1.0
TINY = sorted(name for name in groups()["experiment"] if name.endswith("_tiny"))


def parts(name: str) -> Experiment:
    """A tiny experiment with no data."""
    config = resolved(compose("pretrain", [f"experiment={name}", "max_steps=400", *on("nowhere", name)]))
    return Experiment(
        name=name,
        seed=config["seed"],
        **{part: instantiate_part(config, part) for part in PARTS},
        data=NoData(),
        max_steps=config["max_steps"],
        clip_norm=config["clip_norm"],
    )


class NoData:
    """What a system never asks here."""

    position = 0

    def set_clock(self, clock: FrameClock, num_classes: int | None = None) -> None:
        """Nothing."""

    def advance(self, batches_per_rank: int = 1) -> None:
        """Nothing."""


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


def losses(name: str) -> list[float]:
    """The loss of each of the first steps, of one thread on the host."""
    made = parts(name)
    model, objective = build_parts(made)
    system = nn.ModuleDict({"model": model, "objective": objective}).train()
    optimiser = made.optim(system)
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule = made.schedule(max_steps=made.max_steps)
    samples = int(SECONDS * model.clock.rate_hz)
    target = getattr(objective, "target", None)
    classes = target.num_classes if isinstance(target, DiscreteTarget) else 1
    index_B = torch.arange(ROWS)
    curve = []
    for step in range(STEPS):
        torch.manual_seed(derive_seed(made.seed, "dropout", step))
        waveform_BS = sound(step, samples, model.clock.rate_hz)
        labels_BT = (torch.arange(model.clock.num_frames(samples)) // 5 + step) % classes
        batch = Batch(waveform_BS, step, index_B, 0 * index_B, labels_BT.expand(ROWS, -1))
        output = objective(model, batch, seed=made.seed, step=step)
        optimiser.zero_grad()
        (output.loss_sum / output.count).backward()
        if made.clip_norm is not None:
            nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], made.clip_norm)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step)
        optimiser.step()
        with torch.no_grad():
            objective.after_step(model, seed=made.seed, step=step + 1)
        curve.append(float(output.loss_sum.detach() / output.count))
    return curve


def main(names: list[str]) -> None:
    """Write the losses of experiments."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in names or TINY:
        rounded = [float(f"{loss:.7g}") for loss in losses(name)]
        (FOLDER / f"{name}.json").write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
