import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from ossicle.callback.checkpoints import Checkpoints
from ossicle.callback.preempt import Drain
from ossicle.core.errors import ConfigError
from ossicle.optim.schedules import Polynomial
from tests.system.toys import toy_run

NEVER = partial(Checkpoints, every_steps=1000, keep=1)


class Sender(Callback):
    """Sends a signal to its own process in a micro-batch, by default the first of the third step of two."""

    def __init__(self, number: signal.Signals, at: int = 4, **_: object) -> None:
        super().__init__()
        self.number = number
        self.at = at

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if batch_idx == self.at:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers as they were, after the test."""
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_in_a_step_is_answered_at_its_end_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    trainer, _ = toy_run(tmp_path, (partial(Sender, number), Drain, NEVER), accumulate=2, max_steps=50)
    assert isinstance(trainer, Trainer)
    drain = next(c for c in vars(trainer)["callbacks"] if isinstance(c, Drain))
    assert drain.drained_by == number
    assert trainer.global_step == 3
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert (saved["global_step"], saved["position"]) == (3, 6)
    assert not (tmp_path / "encoder.safetensors").exists()
    assert signal.getsignal(number) == before
    resumed, _ = toy_run(tmp_path, (Drain, NEVER), tmp_path / "checkpoints" / "last.ckpt", accumulate=2, max_steps=5)
    assert isinstance(resumed, Trainer)
    assert resumed.global_step == 5
    assert (tmp_path / "encoder.safetensors").exists()


def test_a_signal_in_the_first_step_after_a_resumption_waits_for_the_steps_end_too(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    toy_run(tmp_path, (Drain, partial(Checkpoints, every_steps=3, keep=1)), accumulate=2, max_steps=3)
    sender = partial(Sender, signal.SIGUSR1, 6)
    trainer, _ = toy_run(tmp_path, (sender, Drain, NEVER), last, accumulate=2, max_steps=50)
    assert isinstance(trainer, Trainer)
    assert trainer.global_step == 4
    saved = torch.load(last, weights_only=True)
    assert (saved["global_step"], saved["position"]) == (4, 8)


def test_the_average_that_is_saved_for_a_signal_is_that_of_the_step(tmp_path: Path) -> None:
    saving = partial(Checkpoints, every_steps=3, keep=1)
    toy_run(tmp_path / "whole", (saving,), accumulate=2, max_steps=3, schedule=flat, ema_decay=0.8)
    parts = (partial(Sender, signal.SIGUSR1), Drain, NEVER)
    toy_run(tmp_path / "stopped", parts, accumulate=2, max_steps=50, schedule=flat, ema_decay=0.8)
    whole, stopped = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "stopped")
    )
    assert whole["global_step"] == stopped["global_step"] == 3
    assert all(torch.equal(value, stopped["average"][name]) for name, value in whole["average"].items())


def flat(**_: object) -> Polynomial:
    """The same rates however long the run."""
    return Polynomial(max_steps=100)


def test_a_signal_of_a_run_that_has_ended_does_not_stop_the_next(tmp_path: Path) -> None:
    drain = Drain(run_dir=tmp_path, config={})
    drain._note(signal.SIGUSR1, None)  # after the last step of a run that is over
    trainer, _ = toy_run(tmp_path, (lambda **_: drain, NEVER), max_steps=3)
    assert isinstance(trainer, Trainer)
    assert (trainer.global_step, drain.drained_by) == (3, None)


def test_the_handler_that_stood_before_is_called_after_the_checkpoint(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def requeue(number: int, _: object) -> None:
        seen.append((number, (tmp_path / "checkpoints" / "last.ckpt").is_file()))
        raise SystemExit(3)

    signal.signal(signal.SIGUSR2, requeue)
    with pytest.raises(SystemExit):
        toy_run(tmp_path, (partial(Sender, signal.SIGUSR2), Drain, NEVER), accumulate=2, max_steps=50)
    assert seen == [(signal.SIGUSR2, True)]
    assert signal.getsignal(signal.SIGUSR2) == requeue


def test_a_name_that_is_no_signal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SIGNONE"):
        Drain(run_dir=tmp_path, config={}, signals=["SIGNONE"])
