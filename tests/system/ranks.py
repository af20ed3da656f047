"""Runs whole trainings in forked processes, so that Lightning is imported once for all of them.

``python ranks.py FOLDER`` leaves FOLDER/<scenario>-<rank>.pt; nothing is computed before the forks.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from ossicle.callback.checkpoints import Checkpoints
from ossicle.callback.preempt import Drain
from tests.system import toys

RESUME = {"max_steps": 8, "accumulate": 2, "ema_decay": 0.8}
CHECKPOINTS = partial(Checkpoints, every_steps=3, keep=5)


class Recorder(Callback):
    """Keeps gradients as the optimiser sees them, in the first steps."""

    def __init__(self, **_: object) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    @override
    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        if trainer.global_step:
            grads = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
            self.gradients.append(grads)


class Killer(Callback):
    """Kills the process without a word in the middle of a step."""

    def __init__(self, **_: object) -> None:
        self.batches = 0

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self.batches += 1
        if self.batches == 2 * 5:
            os.kill(os.getpid(), signal.SIGKILL)


class Sender(Callback):
    """Rank 1 alone gets a signal in the middle of its third step."""

    def __init__(self, **_: object) -> None:
        super().__init__()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)


def result(trainer: Trainer, system: LightningModule) -> dict[str, object]:
    recorders = [c for c in vars(trainer)["callbacks"] if isinstance(c, Recorder)]
    return {
        "weights": system.state_dict(),
        "optimiser": trainer.optimizers[0].state_dict()["state"],
        "step": trainer.global_step,
        "position": vars(trainer)["datamodule"].position,
        "loss": vars(system)["last_loss"],
        "gradients": recorders[0].gradients if recorders else [],
    }


def parallel(folder: Path, world: int) -> dict[str, object]:
    callbacks = (Recorder,)
    return result(
        *toys.toy_run(folder / f"world-{world}", callbacks, devices=world, accumulate=4 // world, max_steps=5)
    )


def straight(folder: Path) -> dict[str, object]:
    return result(*toys.toy_run(folder / "straight", (CHECKPOINTS,), **RESUME))


def killed(folder: Path) -> dict[str, object]:
    return result(*toys.toy_run(folder / "killed", (Killer, CHECKPOINTS), **RESUME))


def resumed(folder: Path) -> dict[str, object]:
    last = folder / "killed" / "checkpoints" / "last.ckpt"
    return result(*toys.toy_run(folder / "killed", (CHECKPOINTS,), checkpoint=last, **RESUME))


def drained(folder: Path) -> dict[str, object]:
    callbacks = (Sender, Drain, partial(Checkpoints, every_steps=100, keep=1))
    return result(*toys.toy_run(folder / "drained", callbacks, devices=2, accumulate=2, max_steps=20))


def fork(folder: Path, name: str, job: Callable[[], dict[str, object]], world: int = 1) -> list[int]:
    """Start a job in ``world`` processes with the environment of a launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        signal.alarm(240)  # a rank whose peer died waits for half an hour
        torch.set_num_threads(1)
        if world > 1:
            place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world, "MASTER_PORT": port}
            os.environ |= {key: str(value) for key, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
        torch.save(job(), folder / f"{name}-{rank}.pt")
        os._exit(0)
    return children


def wait(children: list[int]) -> None:
    for child in children:
        os.waitpid(child, 0)


def leave(script: Path, folder: Path, *, timeout_s: float) -> None:
    """Run a script of trainings, which leaves what it finds in a folder, in a process that may be forked."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def main(folder: Path) -> None:
    wait(
        fork(folder, "world-1", partial(parallel, folder, 1))
        + fork(folder, "world-2", partial(parallel, folder, 2), world=2)
        + fork(folder, "straight", partial(straight, folder))
        + fork(folder, "killed", partial(killed, folder))
    )
    wait(
        fork(folder, "resumed", partial(resumed, folder))
        + fork(folder, "world-4", partial(parallel, folder, 4), world=4)
        + fork(folder, "drained", partial(drained, folder), world=2)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
