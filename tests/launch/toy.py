"""Overrides that make any experiment small, and a way to run the command line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ossicle.launch.config import compose

CLUSTERS = 8  # of labels that tests make
TOY = (
    "batch_s=4", "data.batch_s=4", "data.max_crop_s=2", "data.min_crop_s=1", "data.num_shapes=1",
    "data.workers=0", "data.window_shards=2", "++encoder.dim=32", "++encoder.num_layers=2", "++encoder.ffn_dim=64",
    "++encoder.position_kernel=8", "++encoder.position_groups=4", "++mixer.num_heads=2", "++schedule.warmup_steps=1",
    "wandb.mode=disabled", "log_every=1", "threads=1", "cluster.accelerator=cpu", "precision=auto",
)  # fmt: skip
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"OMP_NUM_THREADS": "1"}


def on(shards: object, name: str, labels: object = "nowhere") -> list[str]:
    """Overrides that train an experiment on one prepared dataset, be its data a mixture, and be labels asked for."""
    config = compose("pretrain", [f"experiment={name}"])
    if config.data._target_.endswith("MixtureData"):
        return [f"data.sources={{one:{{shards:{shards}}}}}"]
    if config.target._target_.endswith("KMeansLabels") and config.stage._target_.endswith("Single"):
        return [f"data.shards={shards}", f"data.labels={labels}", f"target.num_classes={CLUSTERS}"]
    return [f"data.shards={shards}"]


def shrunk(config: dict[str, Any], steps: int = 2) -> dict[str, Any]:
    """The same chain of runs with few clusters and steps each, on parts of few channels and layers."""
    for run in config["stage"].get("iterations", ()):
        run |= {"clusters": CLUSTERS, "max_steps": steps, "warmup_steps": None}
        if run.get("layer") is not None:
            run["layer"] = 1
    if "top_layers" in config["target"]:
        config["target"]["top_layers"] = 1
    thin(config["frontend"])
    if "stages" in config["encoder"]:
        for stage in config["encoder"]["stages"]:
            thin(stage)
            stage |= {"num_layers": 1, "ffn_dim": 32}
        config["mixer"] |= {"num_heads": 2, "head_dim": None}
    if "layers_by_group" in config["encoder"]:
        config["encoder"]["layers_by_group"] = [1, 1, 1]
    if "contrastive_layer" in config["objective"]:
        config["objective"]["contrastive_layer"] = 1
    if "layers" in config["objective"]:  # the toy has fewer
        config["objective"]["layers"] = [1]
    return config


def thin(part: dict[str, Any]) -> None:
    """Make the convolutions of a part, or of a frontend inside it, thin."""
    if "frontend" in part:
        thin(part["frontend"])
    if "convolutions" in part:
        part["convolutions"] = [[16, kernel, stride] for _, kernel, stride in part["convolutions"]]


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
