import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger

from ossicle.core.errors import ConfigError
from ossicle.launch.loggers import CsvLogger, loggers
from ossicle.launch.wandb_logger import SurvivingWandbLogger
from tests.launch.wandb_server import serving


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_reading_is_a_row_whole_at_once(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"a": 1.0}, step=10)
    assert rows(tmp_path / "metrics.csv") == [{"step": "10", "a": "1"}]
    logger.log_metrics({"a": 2.0}, step=20)
    logger.log_metrics({"a": 3.0, "b": 0.5}, step=30)
    assert [row["a"] for row in rows(tmp_path / "metrics.csv")] == ["1", "2", "3"]
    assert [row["b"] for row in rows(tmp_path / "metrics.csv")] == ["", "", "0.5"]


def test_a_resumed_run_drops_the_rows_of_steps_that_it_takes_again(tmp_path: Path) -> None:
    first = CsvLogger(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        first.log_metrics({"a": step}, step=step)
    second = CsvLogger(tmp_path / "metrics.csv", resumed_step=20)
    second.log_metrics({"a": 31.0}, step=30)
    assert [(r["step"], r["a"]) for r in rows(tmp_path / "metrics.csv")] == [("10", "10"), ("20", "20"), ("30", "31")]


def test_an_unknown_mode_of_wandb_is_refused(tmp_path: Path) -> None:
    config: dict[str, Any] = {"name": "x", "wandb": {"mode": "sometimes", "project": "p", "entity": None, "tags": []}}
    with pytest.raises(ConfigError, match=r"wandb\.mode=sometimes"):
        loggers(config, tmp_path / "x" / "1", 0)


def test_without_wandb_there_is_the_csv_file_alone(tmp_path: Path) -> None:
    made = loggers({"name": "x", "wandb": {"mode": "disabled"}}, tmp_path, 0)
    assert [type(logger) for logger in made] == [CsvLogger]


LOGGING = """
import sys
from pathlib import Path
from ossicle.launch.loggers import loggers
config = {"name": "x", "wandb": {"mode": sys.argv[2], "project": "ossicle", "entity": None, "tags": ["t"]}}
_, wandb_logger = loggers(config, Path(sys.argv[1]) / "x" / "abcd", 0)
for step in range(3):
    wandb_logger.log_metrics({"objective/loss": 3.0 - step}, step=step)
wandb_logger.experiment.finish()
print(wandb_logger.experiment.id)
"""


def test_wandb_offline_needs_no_account_and_keeps_every_reading(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    ran = subprocess.run(
        [sys.executable, "-c", LOGGING, str(tmp_path), "offline"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert ran.stdout.strip().endswith("x-abcd")
    (record,) = (tmp_path / "x" / "abcd" / "wandb").glob("offline-run-*/run-x-abcd.wandb")
    shown = subprocess.run(
        [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(record)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "objective/loss" in shown
    assert all(json.loads(line) is not None for line in shown.splitlines() if line.strip())


@pytest.mark.slow  # the client tries for a minute and a half
def test_wandb_online_without_a_server_goes_on_offline_and_says_so(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {
        "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "local-" + 40 * "a", "WANDB_ERROR_REPORTING": "false",
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", LOGGING, str(tmp_path), "online"],
        capture_output=True, text=True, check=True, env=environment, timeout=400,
    )  # fmt: skip
    assert "W&B cannot be reached" in ran.stderr
    assert list((tmp_path / "x" / "abcd" / "wandb").glob("offline-run-*/run-x-abcd.wandb"))


def test_wandb_online_sends_every_reading_to_the_server(tmp_path: Path) -> None:
    with serving() as server:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {
            "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "local-" + 40 * "a", "WANDB_ERROR_REPORTING": "false",
        }  # fmt: skip
        subprocess.run(
            [sys.executable, "-c", LOGGING, str(tmp_path), "online"],
            capture_output=True, text=True, check=True, env=environment, timeout=200,
        )  # fmt: skip
        losses = [row["objective/loss"] for row in server.history["x-abcd"] if "objective/loss" in row]
    assert losses == [3.0, 2.0, 1.0]


def test_a_run_survives_the_loss_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(WandbLogger, "log_metrics", lost)
    logger = SurvivingWandbLogger(save_dir=str(tmp_path), offline=True)
    logger.log_metrics({"a": 1.0}, step=1)
    logger.log_metrics({"a": 2.0}, step=2)
    logger.finalize("success")
    assert logger._lost
