"""Overrides that make any experiment small, and a way to run the command line."""

import os
import subprocess
import sys
from pathlib import Path

TOY = (
    "batch_s=4", "data.batch_s=4", "data.max_crop_s=2", "data.min_crop_s=1", "data.num_shapes=1",
    "data.workers=0", "data.window_shards=2", "encoder.dim=32", "++encoder.num_layers=2", "++encoder.ffn_dim=64",
    "++encoder.position_kernel=8", "++encoder.position_groups=4", "++mixer.num_heads=2", "++schedule.warmup_steps=1",
    "wandb.mode=disabled", "log_every=1", "threads=1", "cluster.accelerator=cpu", "precision=auto",
)  # fmt: skip
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ossicle.launch.cli", *arguments]


def ossicle(*arguments: str, cwd: Path, timeout_s: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True, text=True, timeout=timeout_s, cwd=cwd, env=ENVIRONMENT | environment, check=False,
    )  # fmt: skip


def single_run(root: Path, name: str) -> Path:
    """The one run directory of an experiment."""
    (found,) = (root / name).iterdir()
    return found
