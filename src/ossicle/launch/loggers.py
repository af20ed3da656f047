"""Where metrics go: a CSV file always, Weights & Biases as configured."""

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from ossicle.core.files import atomic_write
from ossicle.launch.config import Config

KEY_COLUMNS = ("step",)


class CsvLogger(Logger):
    """metrics.csv, one row a reading, whole after every row.

    A resumed run continues the file of the run that it resumes: rows of steps that will be taken again go first.

    Args:
        path: The CSV file.
        resumed_step: Optimiser step at which the run resumes; rows beyond it are dropped.
    """

    def __init__(self, path: Path, resumed_step: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, str]] = []
        self._columns: list[str] = []  # of the file as this process wrote it: none before its first row
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= resumed_step]

    @property
    @override
    def name(self) -> str:
        return "csv"

    @property
    @override
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        """The file that is written."""
        return self.path

    @override
    def log_hyperparams(self, params: dict[str, object] | Namespace, *args: object, **kwargs: object) -> None:
        """Nothing: config.yaml lies beside the file."""

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.append({"step": str(step or 0)} | {name: f"{value:.8g}" for name, value in metrics.items()})
        columns = dict.fromkeys(KEY_COLUMNS) | dict.fromkeys(
            sorted({name for row in self.rows for name in row} - {"step"})
        )
        if list(columns) == self._columns:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, list(columns), restval="").writerow(self.rows[-1])
            return
        self._columns = list(columns)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_write(self.path, "w") as file:
            file.write(text.getvalue())


def loggers(config: Config, run_dir: Path, resumed_step: int) -> list[Logger]:
    """The loggers of a run.

    Args:
        config: The run's resolved config; ``wandb`` says whether and where Weights & Biases logs.
        run_dir: The run directory.
        resumed_step: Optimiser step at which the run resumes, 0 for a new one.
    """
    chosen: list[Logger] = [CsvLogger(run_dir / "metrics.csv", resumed_step)]
    settings = config.get("wandb")
    if isinstance(settings, Mapping) and settings.get("mode") != "disabled":
        from ossicle.launch.wandb_logger import wandb_logger

        chosen.append(wandb_logger(settings, config, run_dir))
    return chosen
