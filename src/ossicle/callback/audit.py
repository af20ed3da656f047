"""What was trained on, batch by batch: a log from which anyone can see that each sample was heard once."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from typing_extensions import override

from ossicle.data.module import PlannedModule
from ossicle.data.stream import StreamData


class Audit(Callback):
    """Appends to audit-RANK.jsonl the position, rows and crop starts of every batch that the rank trains on.

    A line is one write to a file opened for appending, made before the step's weights change, so that a killed process
    leaves whole lines. Each start or resumption writes a line ``{"from": POSITION}``: what stands above it at that
    position or later was lost with the killed process, and is trained on again below. Rows and starts are noted on the
    host before a batch leaves it; nothing is read from the device. A day of training writes megabytes, so the callback
    is none of the default ones: ``+callback@callback.audit=audit``.

    Args:
        run_dir: Where the run writes.
        config: The resolved config; not used.
    """

    def __init__(self, *, run_dir: Path, config: Mapping[str, object]) -> None:
        del config
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / "audit-0.jsonl"

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = cast("PlannedModule | StreamData", vars(trainer)["datamodule"])
        self.path = self.run_dir / f"audit-{trainer.global_rank}.jsonl"
        self._append({"from": data.position})
        data.trained = self.note

    def note(self, position: int, ids_B: NDArray[np.int64], starts_B: NDArray[np.int64]) -> None:
        """Note a batch that was trained on.

        Args:
            position: Its place in the global sequence.
            ids_B: Row of each utterance, shape (B,).
            starts_B: First sample of each crop, shape (B,).
        """
        self._append({"position": position, "rows": ids_B.tolist(), "starts": starts_B.tolist()})

    def _append(self, line: Mapping[str, object]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(line) + "\n").encode())
        finally:
            os.close(descriptor)
