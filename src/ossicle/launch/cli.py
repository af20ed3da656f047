"""The command ``ossicle``: a word, then Hydra's overrides.

Nothing here imports torch or lightning: help, composing and submitting stay quick. Each command's module is imported
when it is called, and its heavy imports stand inside its task.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ossicle.core.errors import ConfigError, OssicleError
from ossicle.launch.config import conf_dir, explain, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = {
    "demo": "the whole way on the embedded corpus, in minutes: synthesise, shard, label, pretrain, probe, report",
    "prepare": "audio folders or a known corpus -> verified shards with an index",
    "label": "k-means targets from MFCCs or a run's features; nothing is written but labels",
    "pretrain": "one run, or -m a multirun; all stages of an experiment",
    "probe": "what the frozen features of a run know: phones, language, speaker, at every layer",
}

USAGE = """usage: ossicle COMMAND [KEY=VALUE ...] [-m] [--config-dir DIR] [--cfg job] [--help]

{commands}

KEY=VALUE overrides a value (optim.lr=1e-3) or chooses a part (mixer=attention).
-m makes a multirun of comma-separated values. --cfg job prints the config and does nothing.
"ossicle COMMAND --help" lists a command's parts and values.
"""


# Hydra's options that say what to do with a config; a run on a cluster is none of them, and becomes a multirun.
MODES = frozenset(
    {"-m", "--multirun", "-r", "--run", "-c", "--cfg", "-i", "--info", "-h", "--help", "--hydra-help", "--version"}
)


def usage() -> str:
    """The help text: every command with what it does."""
    width = max(map(len, COMMANDS))
    return USAGE.format(commands="\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()))


def task_of(command: str) -> Callable[["DictConfig"], object]:
    """The function that carries out a command on its composed config."""
    task = importlib.import_module(f"ossicle.launch.{command}").task
    assert callable(task)
    return task


def options_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with options before overrides: argparse takes overrides only where they stand together."""
    overrides = [a for a in arguments if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    return [a for a in arguments if a not in overrides] + overrides


def on_cluster(overrides: Sequence[str]) -> bool:
    """Whether the overrides ask for a cluster: Hydra's launchers serve multiruns, so it becomes one of one job."""
    return any(o.startswith("cluster=") and o.partition("=")[2] not in {"local", ""} for o in overrides)


def run_command(command: str, overrides: Sequence[str]) -> None:
    """Compose the command's config and run its task, or its multirun.

    Raises:
        ConfigError: The overrides name a key, a part or a value that does not exist.
    """
    import hydra
    from hydra.errors import HydraException

    arguments = options_first(overrides)
    if on_cluster(arguments) and not MODES & set(arguments):
        arguments.insert(0, "--multirun")
    sys.argv = [f"ossicle {command}", *arguments]
    # Hydra would print its own short message and exit; with this it lets errors through, and they are explained below.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)
    try:
        main(task_of(command))()
    except HydraException as error:
        raise explain(error, command) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 where the command line is wrong, 1 where the run failed for a reason that it names."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        sys.stdout.write(usage())
        return
    if arguments[0] in {"-V", "--version"}:
        from importlib.metadata import version

        sys.stdout.write(f"ossicle {version('ossicle')}\n")
        return
    command, overrides = arguments[0], arguments[1:]
    if command not in COMMANDS:
        sys.stderr.write(f"ossicle: there is no command {command!r}{nearest(command, COMMANDS)}\n\n{usage()}")
        raise SystemExit(2)
    try:
        run_command(command, overrides)
    except OssicleError as error:
        sys.stderr.write(f"\nossicle {command}: {error}\n")
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None


if __name__ == "__main__":
    main()
