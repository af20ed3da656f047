import subprocess
import sys
from pathlib import Path

import pytest

from ossicle.core.errors import ConfigError
from ossicle.launch.ranks import RankError, end, needs_ranks, run_ranks

LAUNCHERS = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def asks(devices: int, num_nodes: int = 1) -> dict[str, dict[str, int]]:
    return {"cluster": {"devices": devices, "num_nodes": num_nodes}}


def test_one_rank_needs_no_process_of_its_own() -> None:
    assert not needs_ranks(asks(1))
    assert needs_ranks(asks(2))


def test_ranks_that_a_launcher_made_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert not needs_ranks(asks(4, 2))
    with pytest.raises(ConfigError, match="asks for 2 ranks, and the launcher made 8"):
        needs_ranks(asks(2))


def test_nodes_without_a_launcher_are_refused() -> None:
    with pytest.raises(ConfigError, match="cluster=slurm"):
        needs_ranks(asks(4, 2))


def test_a_rank_that_fails_ends_the_run_with_its_number(tmp_path: Path) -> None:
    with pytest.raises(RankError, match="rank 0 of 2"):
        run_ranks(asks(2), tmp_path)  # the directory holds no config


def test_ranks_that_wait_for_a_lost_peer_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossicle.launch.ranks.GRACE_S", 0.2)
    waiting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    end([waiting])
    assert waiting.returncode is not None
