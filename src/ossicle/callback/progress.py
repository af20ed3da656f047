"""A line that says how far the run is, how fast it goes and when it ends."""

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from lightning import LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from typing_extensions import override

from ossicle.system.watcher import Watcher


class ProgressLine(Watcher):
    """A bar on a terminal, and a line at every reading of the metrics elsewhere. Reads nothing from the device itself.

    Args:
        run_dir: Where the run writes; not used.
        config: The resolved config; ``name`` is shown before the bar.
        console: Where it is shown; standard error if None.
    """

    def __init__(self, *, run_dir: Path, config: Mapping[str, object], console: Console | None = None) -> None:
        del run_dir
        self.name = str(config.get("name", "pretrain"))
        self.console = console or Console(stderr=True)
        self.bar: Progress | None = None
        self._since: tuple[int, float] = (0, 0.0)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = (trainer.global_step, time.monotonic())
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn(self.name), BarColumn(), TextColumn("{task.description}"), console=self.console, transient=False
        )
        self.bar.start()
        self.bar.add_task("compiling and filling queues", total=trainer.max_steps, completed=trainer.global_step)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=trainer.global_step)

    @override
    def on_metrics(self, trainer: Trainer, system: LightningModule, metrics: Mapping[str, float], step: int) -> None:
        if not trainer.is_global_zero:
            return
        text = self.line(metrics, step, trainer.max_steps)
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], description=text, completed=step)
        else:
            self.console.print(f"{self.name}  {text}", highlight=False, soft_wrap=True)

    def line(self, metrics: Mapping[str, float], step: int, max_steps: int) -> str:
        """Step, loss, speed and the time that is left, at the speed since the last reading."""
        now = time.monotonic()
        step_before, time_before = self._since
        self._since = (step, now)
        left_s = (max_steps - step) * (now - time_before) / max(1, step - step_before)
        eta = timedelta(seconds=round(left_s))
        parts = [f"step {step}/{max_steps}"]
        if "objective/loss" in metrics:
            parts.append(f"loss {metrics['objective/loss']:.4f}")
        parts += [
            f"{kind} accuracy {metrics[f'objective/accuracy_{kind}']:.1%}"
            for kind in ("masked", "contrastive")
            if f"objective/accuracy_{kind}" in metrics
        ]
        if "meter/audio_s_per_s" in metrics:
            parts.append(f"{metrics['meter/audio_s_per_s']:,.0f} audio-s/s")
        return "  ".join([*parts, f"ETA {eta}"])

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
