"""Trains on real shards with real ranks: ``python -m tests.data.ranks DATASET FOLDER [stream]``.

Nothing runs before the forks. With ``stream`` the shards are read without their index.

Every process notes what it has trained on, batch by batch, in FOLDER/<scenario>-<rank>.jsonl. The scenario ``killed``
loses rank 1 by SIGKILL in the middle of a step in the middle of an epoch, some steps after its last checkpoint.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from ossicle.callback.checkpoints import Checkpoints
from ossicle.core.batch import Batch
from ossicle.data.module import ShardData
from ossicle.data.stream import StreamData
from tests.system import toys
from tests.system.ranks import fork, wait

STEPS, GLOBAL_BATCHES, KILL_STEP = 9, 4, 5
CHECKPOINTS = partial(Checkpoints, every_steps=3, keep=5)


class Notes(Callback):
    """Writes down what a rank has trained on, and perhaps ends it."""

    def __init__(self, folder: Path, name: str, kill_step: int | None, **_: object) -> None:
        self.folder, self.name = folder, name
        self.kill_step = kill_step

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if trainer.global_step == self.kill_step and trainer.global_rank == trainer.world_size - 1 and batch_idx % 2:
            os.kill(os.getpid(), signal.SIGKILL)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        note = [batch.position, batch.ids_B.tolist(), batch.starts_B.tolist()]
        with (self.folder / f"{self.name}-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")


def data_of(shards: Path, *, streamed: bool) -> ShardData | StreamData:
    if streamed:
        urls = [str(path) for path in sorted((shards / "train").glob("*.tar"))]
        return StreamData(
            urls, max_crop_s=0.8, min_crop_s=0.3, num_shapes=2, batch_s=1.0, shuffle=6, workers=2, seed=5,
            max_bad_fraction=0.1, measured=30,
        )  # fmt: skip
    return ShardData(
        shards, max_crop_s=0.8, min_crop_s=0.3, num_shapes=3, batch_s=2.0, window_shards=2, workers=1, seed=5,
        max_bad_fraction=0.1, max_cut=0.1,
    )  # fmt: skip


def job(
    shards: Path,
    folder: Path,
    name: str,
    world: int,
    *,
    kill_step: int | None = None,
    resumed: bool = False,
    streamed: bool = False,
) -> dict[str, object]:
    notes = partial(Notes, folder, name, kill_step)
    trainer, system = toys.toy_run(
        folder / name,
        (notes, CHECKPOINTS),
        checkpoint=folder / name / "checkpoints" / "last.ckpt" if resumed else None,
        data=data_of(shards, streamed=streamed),
        devices=world,
        accumulate=GLOBAL_BATCHES // world,
        max_steps=STEPS,
    )
    state = vars(trainer)["datamodule"].state_dict()
    return {"weights": vars(system)["_modules"]["model"].state_dict(), **state}


def main(shards: Path, folder: Path, *, streamed: bool) -> None:
    def start(name: str, world: int, **how: object) -> list[int]:
        work: Callable[[], dict[str, object]] = partial(job, shards, folder, name, world, streamed=streamed, **how)  # type: ignore[arg-type]
        return fork(folder, name, work, world)

    wait(start("straight", 2) + start("killed", 2, kill_step=KILL_STEP))
    for name in ("one", "two"):
        shutil.copytree(folder / "killed", folder / name)
    wait(start("one", 1, resumed=True) + start("two", 2, resumed=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), streamed=sys.argv[3:] == ["stream"])
