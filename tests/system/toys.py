"""A run small enough for a test: real wiring, toy data and a toy objective that still learns."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from lightning import Callback, LightningDataModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

from ossicle.core.batch import Batch, EncoderOutput, Frames, ObjectiveOutput
from ossicle.core.clock import FrameClock
from ossicle.core.metrics import CodeUse, Mean
from ossicle.core.seeds import generator
from ossicle.core.world import World
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.base import Objective
from ossicle.optim.adamw import adamw
from ossicle.optim.schedules import Polynomial
from ossicle.system.build import Experiment, build
from ossicle.system.trainer import make_trainer

CLASSES = 4


class ToyEncoder(nn.Module):
    """Blocks with dropout, one of which is sometimes skipped."""

    def __init__(self, mixer: Callable[[int], nn.Module], dim: int = 12, layer_drop: float = 0.4) -> None:
        super().__init__()
        self.dim, self.num_layers, self.layer_drop = dim, 3, layer_drop
        self.blocks = nn.ModuleList(nn.Sequential(mixer(dim), nn.GELU(), nn.Dropout(0.2)) for _ in range(3))

    def forward(self, x_BTD: Tensor) -> Tensor:
        drop = torch.rand(3, device="cpu").tolist() if self.training else [1.0] * 3
        for block, draw in zip(self.blocks, drop, strict=True):
            if draw >= self.layer_drop:
                x_BTD = x_BTD + block(x_BTD)
        return x_BTD


class ToyModel(SpeechEncoder):
    def __init__(self, frontend: nn.Module, encoder: ToyEncoder) -> None:
        super().__init__()
        self.clock = self.feature_clock = FrameClock().then(400, 320)
        self.feature_dim, self.dim, self.num_layers = 8, encoder.dim, encoder.num_layers
        self.frontend, self.encoder = frontend, encoder
        self.norm = nn.LayerNorm(self.feature_dim)
        self.project = nn.Linear(self.feature_dim, self.dim)

    @override
    def local(self, waveform_BS: Tensor, lengths_B: Tensor | None = None) -> Frames:
        return Frames(self.frontend(waveform_BS.unsqueeze(1)).transpose(1, 2))

    @override
    def normalise(self, features_BTC: Tensor) -> Tensor:
        return self.norm(features_BTC)

    @override
    def embed(self, features_BTC: Tensor) -> Tensor:
        return self.project(features_BTC)

    @override
    def encode(self, x_BTD: Tensor, valid_BT: Tensor | None = None, *, layers: bool = False) -> EncoderOutput:
        return EncoderOutput(self.encoder(x_BTD))

    @override
    def forward(self, waveform_BS: Tensor, lengths_B: Tensor | None = None, *, layers: bool = False) -> EncoderOutput:
        return self.encode(self.embed(self.normalise(self.local(waveform_BS).features_BTC)))


class ToyObjective(Objective):
    """Tells the loudness class of a random half of the frames, whose number differs from batch to batch."""

    def __init__(self, target: nn.Module, dim: int, **_: object) -> None:
        super().__init__()
        self.target = target
        self.head = nn.Linear(dim, CLASSES)

    @override
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        encoded_BTD = model(batch.waveform_BS).last_BTD
        loud_BT = batch.waveform_BS.unfold(1, 400, 320).square().mean(-1).sqrt()
        wanted = (loud_BT * CLASSES).long().clamp(max=CLASSES - 1).flatten()
        kept = torch.rand(wanted.shape, generator=generator(seed, batch.position, 0, "mask")) < 0.5
        logits = self.head(encoded_BTD).flatten(0, 1)[kept]
        wanted = wanted[kept]
        loss_sum = functional.cross_entropy(logits, wanted, reduction="sum")
        count = torch.tensor(float(len(wanted)), device=logits.device)
        guess = logits.argmax(-1)
        logs = {
            "objective/accuracy_masked": Mean((guess == wanted).sum(), count),
            "objective/codes": CodeUse(torch.bincount(guess, minlength=CLASSES)),
            "target/codes": CodeUse(torch.bincount(wanted, minlength=CLASSES)),
            "objective/output_std": Mean(count * encoded_BTD.detach().std(1).mean(), count),
        }
        return ObjectiveOutput(loss_sum, count, logs)


class Endless(Sampler[int]):
    def __init__(self, start: int, world: World) -> None:
        self.start, self.world = start, world

    @override
    def __iter__(self) -> Iterator[int]:
        position = self.start + self.world.rank
        while True:
            yield position
            position += self.world.size


class ToyBatches(Dataset[Batch]):
    """Rows and samples differ from batch to batch; what is in them depends on the position alone."""

    @override
    def __getitem__(self, position: int) -> Batch:
        source = torch.Generator().manual_seed(position)
        rows = 2 + position % 3
        loud = torch.rand(rows, 4 + position % 2, generator=source).repeat_interleave(1600, dim=1)
        waveform = torch.randn(loud.shape, generator=source) * loud
        index = torch.arange(rows)
        return Batch(waveform, position, index, torch.zeros_like(index))


class ToyData(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.position = 0
        self.clock: FrameClock | None = None

    def set_clock(self, clock: FrameClock, num_classes: int | None = None) -> None:
        assert num_classes is None  # the toy's target has none
        self.clock = clock

    def advance(self, batches_per_rank: int = 1) -> None:
        self.position += batches_per_rank * World.current().size

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.clock is not None
        return DataLoader(ToyBatches(), sampler=Endless(self.position, World.current()), batch_size=None)

    @override
    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    @override
    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.position = state_dict["position"]


def no_target(**_: object) -> nn.Module:
    return nn.Identity()


def toy_mixer(dim: int) -> nn.Module:
    return nn.Linear(dim, dim)


def toy_experiment(**changes: object) -> Experiment:
    """Eight steps of one micro-batch on the CPU; changes replace fields."""
    plain = Experiment(
        name="toy",
        seed=3,
        frontend=partial(nn.Conv1d, 1, 8, 400, 320),
        mixer=toy_mixer,
        encoder=ToyEncoder,
        model=ToyModel,
        target=no_target,
        objective=ToyObjective,
        optim=partial(adamw, lr=0.01),
        schedule=partial(Polynomial, end=0.1),
        data=ToyData(),
        max_steps=8,
        clip_norm=1.0,
        log_every=2,
        accelerator="cpu",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def toy_run(
    run_dir: Path,
    callbacks: tuple[Callable[..., Callback], ...] = (),
    checkpoint: Path | None = None,
    **changes: object,
) -> tuple[object, object]:
    """Build, train, and return trainer and system."""
    experiment = toy_experiment(callbacks=callbacks, **changes)
    system = build(experiment)
    trainer = make_trainer(experiment, run_dir=run_dir, config={"name": "toy"})
    assert isinstance(experiment.data, LightningDataModule)
    trainer.fit(system, datamodule=experiment.data, ckpt_path=checkpoint)
    return trainer, system
