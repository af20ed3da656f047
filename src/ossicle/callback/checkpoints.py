"""Checkpoints at the ends of optimiser steps, and the encoder's weights at the end of the run."""

import os
import shutil
from pathlib import Path
from typing import Final

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from ossicle.system.average import WeightAverage
from ossicle.system.provenance import code_version
from ossicle.system.weights import encoder_weights, write_weights

FOLDER = "checkpoints"
LAST = "last.ckpt"
ENCODER = "encoder.safetensors"
AVERAGE = "encoder-average.safetensors"


class Checkpoints(Checkpoint):
    """Writes checkpoints/step-00001000.ckpt and last.ckpt every so many steps, and encoder.safetensors at the end.

    A checkpoint holds weights, optimiser, loop progress and the position in the data, besides ``config``, ``code``
    (version and commit), ``position`` and whatever other callbacks add (``cost``, ``average``); all of it loads with
    ``weights_only=True``.

    Args:
        run_dir: Where the run writes.
        config: The resolved config.
        every_steps: Optimiser steps between checkpoints.
        keep: How many to keep besides last.ckpt, the newest ones.
    """

    def __init__(self, *, run_dir: Path, config: dict[str, object], every_steps: int, keep: int) -> None:
        self.run_dir = Path(run_dir)
        self.folder: Final = self.run_dir / FOLDER
        self.config = config
        self.every_steps = every_steps
        self.keep = keep
        self._saved_step = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step  # where a run begins or resumes, nothing is new

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._saved_step and (step % self.every_steps == 0 or step == trainer.max_steps):
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint now. Call it on every rank, between two optimiser steps."""
        step = trainer.global_step
        if step == self._saved_step:
            return
        self._saved_step = step
        path = self.folder / f"step-{step:08d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            link(path, self.folder / LAST)
            for old in sorted(self.folder.glob("step-*.ckpt"))[: -max(1, self.keep)]:
                old.unlink()

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        checkpoint["config"] = self.config
        checkpoint["code"] = code_version()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.global_step < trainer.max_steps:
            return
        state = pl_module.state_dict()
        about = {"config": self.config, "step": trainer.global_step, **code_version()}
        write_weights(self.run_dir / ENCODER, encoder_weights(state), about)
        for callback in vars(trainer)["callbacks"]:
            if isinstance(callback, WeightAverage):
                average = encoder_weights(callback.averaged(state))
                write_weights(self.run_dir / AVERAGE, average, {**about, "decay": callback.decay})


def link(path: Path, name: Path) -> None:
    """Give a file a second name in one step; copy it where the file system has no hard links."""
    new = name.with_name(f".{name.name}.new")
    new.unlink(missing_ok=True)
    try:
        os.link(path, new)
    except OSError:
        shutil.copyfile(path, new)
    new.replace(name)
