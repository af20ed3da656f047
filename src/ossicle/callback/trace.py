"""Where the time of a run goes: a profile of a few of its steps."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import final

import torch
from lightning import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.meter.profile import kernels, table, waits

log = logging.getLogger(__name__)


@final
class Trace(Callback):
    """Profiles a few steps with all that stands around them: loader, trainer, callbacks.

    Writes, for each rank, trace-RANK.txt (time and calls a step of kernels or operators, and what made the host wait
    for a GPU) and trace-RANK.json.gz (a timeline for chrome://tracing or ui.perfetto.dev). Steps are slower while they
    are profiled. None of the default callbacks: ``+callback@callback.trace=trace``.

    Args:
        run_dir: Where both are written.
        config: The resolved config; not used.
        after_step: Optimiser steps before the first that is profiled: by then everything is compiled.
        steps: Optimiser steps that are profiled.

    Raises:
        ConfigError: No step would be profiled.
    """

    def __init__(self, *, run_dir: Path, config: Mapping[str, object], after_step: int = 50, steps: int = 4) -> None:
        del config
        if after_step < 0 or steps < 1:
            raise ConfigError(
                f"callback.trace.after_step={after_step} and callback.trace.steps={steps} profile nothing",
                "let after_step be 0 or more, and steps 1 or more",
            )
        self.run_dir = run_dir
        self.after_step = after_step
        self.steps = steps
        self._profile: profile | None = None
        self._first: int | None = None
        self._began = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first = trainer.global_step + self.after_step  # a resumed run compiles anew

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if self._profile is not None or trainer.global_step != self._first:
            return
        on_gpu = pl_module.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        if on_gpu:
            torch.cuda.synchronize(pl_module.device)  # what came before must not be counted
        self._profile = profile(activities=activities, acc_events=True)
        self._profile.start()
        self._began = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._profile is None or self._first is None or trainer.global_step < self._first + self.steps:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        wall_s = time.perf_counter() - self._began
        seen, self._profile, self._first = self._profile, None, None
        seen.stop()
        self._write(seen, wall_s, trainer.global_rank, on_gpu=pl_module.device.type == "cuda")

    def _write(self, seen: profile, wall_s: float, rank: int, *, on_gpu: bool) -> None:
        times, calls = kernels(seen, on_gpu=on_gpu)
        step_ms, busy_ms = 1000 * wall_s / self.steps, sum(times.values()) / 1000 / self.steps
        what = "kernels" if on_gpu else "operators"
        lines = [
            f"{self.steps} steps of {step_ms:.2f} ms, of which {busy_ms:.2f} ms are {what} ({busy_ms / step_ms:.0%})",
            f"{what}, ms and calls a step:",
            *table(times, calls, self.steps),
        ]
        if on_gpu:
            lines += ["what made the host wait, ms and calls a step:", *table(*waits(seen), self.steps)]
        path = self.run_dir / f"trace-{rank}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        seen.export_chrome_trace(str(path.with_suffix(".json.gz")))
        log.info("%s; wrote %s and its timeline beside it", lines[0], path)
