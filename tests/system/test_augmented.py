"""Augmentation inside training: the same for a batch wherever and whenever it is read."""

from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from typing_extensions import override

from ossicle.augmentation.base import Augmentation
from ossicle.augmentation.chain import Chain
from ossicle.augmentation.mixing import Mixing
from ossicle.augmentation.noise import Noise
from ossicle.augmentation.noise_source import RecordedNoise
from ossicle.augmentation.speed import Speed
from ossicle.callback.checkpoints import Checkpoints
from ossicle.core.batch import Batch, ObjectiveOutput
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.system.pretraining import Pretraining
from tests.system.toys import ToyObjective, toy_run

PARTS = {
    "speed": Speed,
    "mixing": partial(Mixing, probability=0.7),
    "noise": partial(
        Noise,
        noise=partial(RecordedNoise, recordings=lambda _: torch.arange(-5_000, 5_000, dtype=torch.int16)),
        probability=0.7,
    ),
}
AUGMENTATION = partial(Chain, parts=PARTS)


class Listening(ToyObjective):
    """Keeps what it heard, by the batch's position."""

    def __init__(self, **parts: object) -> None:
        super().__init__(**parts)  # ty: ignore[invalid-argument-type]
        self.heard: dict[int, tuple[Tensor, Tensor]] = {}

    @override
    def forward(self, model: SpeechEncoder, batch: Batch, *, seed: int, step: int) -> ObjectiveOutput:
        self.heard[batch.position] = batch.waveform_BS, batch.speech
        return super().forward(model, batch, seed=seed, step=step)


def heard(system: object) -> dict[int, tuple[Tensor, Tensor]]:
    return cast("Listening", cast("Pretraining", system).objective).heard


def test_what_a_batch_becomes_depends_on_neither_accumulation_nor_a_pause(tmp_path: Path) -> None:
    changes = {"objective": Listening, "augmentation": AUGMENTATION}
    _, straight = toy_run(tmp_path / "straight", max_steps=6, **changes)
    _, gathered = toy_run(tmp_path / "gathered", max_steps=3, accumulate=2, **changes)
    keep = (partial(Checkpoints, every_steps=3, keep=5),)
    toy_run(tmp_path / "first", keep, max_steps=3, **changes)
    _, resumed = toy_run(
        tmp_path / "second", keep, tmp_path / "first" / "checkpoints" / "last.ckpt", max_steps=6, **changes
    )
    assert sorted(heard(straight)) == sorted(heard(gathered)) == list(range(6))
    assert sorted(heard(resumed)) == [3, 4, 5]
    for other in (gathered, resumed):
        for position, waveforms in heard(other).items():
            for ours, theirs in zip(waveforms, heard(straight)[position], strict=True):
                assert torch.equal(ours, theirs)


def test_the_objective_hears_changed_speech_beside_the_clean_one_and_loss_and_weights_stay_finite(
    tmp_path: Path,
) -> None:
    _, plain = toy_run(tmp_path / "plain", max_steps=4, objective=Listening)
    _, changed = toy_run(tmp_path / "changed", max_steps=4, objective=Listening, augmentation=AUGMENTATION)
    for position, (waveform_BS, clean_BS) in heard(plain).items():
        assert waveform_BS is clean_BS
        heard_BS, speech_BS = heard(changed)[position]
        assert heard_BS.shape == speech_BS.shape
        assert heard_BS.shape[1] < waveform_BS.shape[1]  # speed cuts
        assert not torch.equal(heard_BS, speech_BS)
    assert all(parameter.isfinite().all() for parameter in cast("Pretraining", changed).parameters())


def test_recordings_are_loaded_once_and_are_no_part_of_the_checkpoint(tmp_path: Path) -> None:
    loads: list[str] = []

    class Loading(Augmentation):
        @override
        def load(self, device: torch.device) -> None:
            loads.append(device.type)

        @override
        def __call__(self, batch: Batch, *, seed: int, purpose: str = "augmentation") -> Batch:
            assert loads
            return batch

    _, system = toy_run(tmp_path / "loading", max_steps=3, augmentation=Loading)
    assert loads == ["cpu"]
    _, plain = toy_run(tmp_path / "plain", max_steps=3)
    _, noisy = toy_run(tmp_path / "noisy", max_steps=3, augmentation=AUGMENTATION)
    states = [cast("Pretraining", each).state_dict() for each in (system, plain, noisy)]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[1][name]) for name, value in states[2].items())
