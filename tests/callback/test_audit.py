import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lightning import LightningModule

from ossicle.callback.audit import Audit
from ossicle.callback.checkpoints import Checkpoints
from ossicle.data.module import ShardData
from tests.system.toys import toy_run


def data_of(dataset: Path) -> ShardData:
    return ShardData(
        dataset, max_crop_s=1.5, min_crop_s=1.0, num_shapes=2, batch_s=6.0, window_shards=2, workers=0, seed=0,
        max_bad_fraction=0.1,
    )  # fmt: skip


def run(folder: Path, dataset: Path, steps: int, *, resumed: bool = False) -> list[dict]:
    toy_run(
        folder,
        (Audit, partial(Checkpoints, every_steps=5, keep=1)),
        checkpoint=folder / "checkpoints" / "last.ckpt" if resumed else None,
        data=data_of(dataset),
        accumulate=2,
        max_steps=steps,
    )
    return [json.loads(line) for line in (folder / "audit-0.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_log_names_what_was_trained_on_and_where_each_session_began(
    synthetic_dataset: Path, tmp_path: Path
) -> None:
    first, *whole = run(tmp_path / "whole", synthetic_dataset, 10)
    assert first == {"from": 0}
    assert [line["position"] for line in whole] == list(range(20))
    data = data_of(synthetic_dataset)
    for line in whole:
        spec = data.plan.batch(line["position"])
        assert line["rows"] == spec.ids.tolist()
        length = data.shapes.lengths[spec.bucket]
        lengths = data.index.rows["samples"][spec.ids].tolist()
        assert all(0 <= start <= n - length for start, n in zip(line["starts"], lengths, strict=True))
    run(tmp_path / "killed", synthetic_dataset, 5)
    *_, again = run(tmp_path / "killed", synthetic_dataset, 10, resumed=True)
    lines = [json.loads(line) for line in (tmp_path / "killed" / "audit-0.jsonl").read_text().splitlines()]
    assert again == whole[-1]
    assert [line["from"] for line in lines if "from" in line] == [0, 10]
    assert [line for line in lines if "position" in line] == whole


def test_each_rank_writes_a_log_of_its_own(synthetic_dataset: Path, tmp_path: Path) -> None:
    data = data_of(synthetic_dataset)
    for rank in range(2):
        callback = Audit(run_dir=tmp_path, config={})
        place = SimpleNamespace(global_rank=rank, datamodule=data)
        callback.on_train_start(place, LightningModule())  # ty: ignore[invalid-argument-type]  its place is all it is asked for
        callback.note(rank, np.array([7]), np.array([320]))
    for rank in range(2):
        lines = [json.loads(line) for line in (tmp_path / f"audit-{rank}.jsonl").read_text().splitlines()]
        assert lines == [{"from": 0}, {"position": rank, "rows": [7], "starts": [320]}]
