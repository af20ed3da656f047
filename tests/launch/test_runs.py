import os
from pathlib import Path

import pytest

from ossicle.core.errors import ConfigError
from ossicle.launch.runs import find_run, read_state, run_dir, run_id, write_state

CONFIG: dict[str, object] = {
    "name": "toy", "runs": "runs", "seed": 0, "optim": {"lr": 1e-3}, "data": {"shards": "a", "workers": 2},
    "cluster": {"devices": 1}, "log_every": 10,
}  # fmt: skip


def test_infrastructure_does_not_change_a_runs_identity() -> None:
    elsewhere = CONFIG | {
        "cluster": {"devices": 8},
        "log_every": 5,
        "runs": "other",
        "data": {"shards": "a", "workers": 8},
    }
    assert run_id(elsewhere) == run_id(CONFIG)


@pytest.mark.parametrize("change", [{"seed": 1}, {"optim": {"lr": 2e-3}}, {"data": {"shards": "b", "workers": 2}}])
def test_whatever_changes_the_result_changes_the_identity(change: dict[str, object]) -> None:
    assert run_id(CONFIG | change) != run_id(CONFIG)


def test_a_run_lies_under_its_name_and_identity() -> None:
    assert run_dir(CONFIG) == Path("runs/toy") / run_id(CONFIG)


def test_states_accumulate(tmp_path: Path) -> None:
    write_state(tmp_path, stage=1)
    write_state(tmp_path, finished=True)
    assert read_state(tmp_path) == {"stage": 1, "finished": True}


def test_the_newest_finished_run_is_found(tmp_path: Path) -> None:
    for number, finished in enumerate((True, True, False)):
        write_state(tmp_path / f"run-{number}", finished=finished)
        os.utime(tmp_path / f"run-{number}" / "run.json", (number, number))
    assert find_run(tmp_path).name == "run-1"
    assert find_run(tmp_path / "run-0").name == "run-0"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished run"):
        find_run(tmp_path)
