"""Run directories: named by what they compute, so that starting the same thing again resumes it."""

from collections.abc import Mapping
from pathlib import Path

from ossicle.core.errors import ConfigError
from ossicle.core.files import hash_json, read_json, write_json
from ossicle.launch.config import Config

# What decides where and how fast a run computes, but not what: left out of its identity.
INFRASTRUCTURE = frozenset(
    {
        "cluster",
        "callback",
        "wandb",
        "runs",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "threads",
        "compile",
        "compile_mode",
        "recompute",
    }
)
INFRASTRUCTURE_DATA = frozenset({"workers", "cache", "storage", "_target_", "_partial_"})
ENCODER_FILE = "encoder.safetensors"
CONFIG_FILE = "config.yaml"
STATE_FILE = "run.json"


def run_id(config: Config) -> str:
    """Eight hex digits from the resolved config without its infrastructure keys."""
    kept = {key: value for key, value in config.items() if key not in INFRASTRUCTURE}
    data = kept.get("data")
    if isinstance(data, Mapping):
        kept["data"] = {key: value for key, value in data.items() if key not in INFRASTRUCTURE_DATA}
    return hash_json(kept, length=8)


def run_dir(config: Config) -> Path:
    """runs/NAME/ID of a resolved config."""
    return Path(config["runs"]) / config["name"] / run_id(config)


def find_run(path: Path) -> Path:
    """The run directory that a user means: itself, or the newest finished run below it.

    Raises:
        ConfigError: There is no finished run there.
    """
    if (path / STATE_FILE).is_file():
        return path
    found = sorted(path.glob(f"**/{STATE_FILE}"), key=lambda file: file.stat().st_mtime)
    finished = [file.parent for file in found if read_json(file).get("finished")]
    if not finished:
        near = ", ".join(sorted(str(f.parent) for f in Path("runs").glob(f"*/*/{STATE_FILE}"))) or "none yet"
        raise ConfigError(f"run={path} holds no finished run", f"name a run directory; those under runs/ are: {near}")
    return finished[-1]


def write_state(directory: Path, **state: object) -> None:
    """Record how far a run has come, beside what was recorded before."""
    file = directory / STATE_FILE
    before = read_json(file) if file.is_file() else {}
    write_json(file, {**before, **state})


def read_state(directory: Path) -> dict[str, object]:
    """How far a run has come; empty where it has not begun."""
    file = directory / STATE_FILE
    return read_json(file) if file.is_file() else {}
