"""Loses a reading process: ``python -m tests.data.lost_worker DATASET`` prints what was read and said, as JSON.

A process of its own, for torch raises its error in a signal handler, wherever the main process then is.
"""

import json
import os
import signal
import sys
from itertools import islice
from pathlib import Path

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.data.loader import told_of_lost_workers
from ossicle.data.module import ShardData


def data_of(path: Path, workers: int) -> ShardData:
    data = ShardData(
        path, max_crop_s=0.8, min_crop_s=0.3, num_shapes=4, batch_s=2.0, window_shards=2, workers=workers, seed=5,
        max_bad_fraction=0.2, max_cut=0.1,
    )  # fmt: skip
    data.set_clock(FrameClock().then(400, 320))
    return data


def crops(batch: Batch) -> list[object]:
    return [batch.position, batch.ids_B.tolist(), batch.starts_B.tolist()]


def main(path: Path) -> None:
    data = data_of(path, 2)
    batches = iter(data.train_dataloader())
    seen = []
    for _ in range(3):
        seen.append(crops(next(batches)))
        data.advance()
    victim = int(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[0])
    said = ["", ""]
    try:
        with told_of_lost_workers():
            os.kill(victim, signal.SIGKILL)
            while True:
                next(batches)
    except DataError as error:
        said = [error.problem, error.mend]
    del batches
    resumed = data_of(path, 0)
    resumed.load_state_dict(data.state_dict())
    seen += [crops(batch) for batch in islice(iter(resumed.train_dataloader()), 5)]
    whole = [crops(batch) for batch in islice(iter(data_of(path, 0).train_dataloader()), 8)]
    sys.stdout.write(json.dumps({"said": said, "seen": seen, "whole": whole}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
