"""The command ``ossicle``: a word, then Hydra's overrides.

Nothing here imports torch or lightning: help, composing and submitting stay quick. Each command's module is imported
when it is called, and its heavy imports stand inside its task.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from ossicle.core.errors import ConfigError, OssicleError
from ossicle.launch.config import conf_dir, explain, nearest, refuse_nothing, spoken, spread
from ossicle.launch.help import command_help
from ossicle.launch.replaced import replaced_parts_give_way

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = {
    "demo": "the whole way on the embedded corpus, in minutes: synthesise, shard, label, pretrain, probe, report",
    "prepare": "audio folders or a known corpus -> verified shards with an index",
    "label": "k-means targets from MFCCs or a run's features; nothing is written but labels",
    "pretrain": "one run, or -m a multirun; all stages of an experiment",
    "bench": "speed beside peers, in the same run: ossicle bench --help lists what can be measured",
    "probe": "what the frozen features of a run know: phones, language, speaker, at every layer",
}

BENCHES = {
    "data": "the reader: audio-seconds a second by stage, beside libsndfile, webdataset, datasets and lhotse",
    "step": "the bare training step of any composition, or of several: speed, FLOP/s, MFU, memory, energy",
    "peers": "HuBERT's training step beside transformers, torchaudio, speechbrain and minimal-hubert",
    "mixer": "every mixer over growing lengths: time, memory, multiply-accumulates and the exponent of growth",
}

USAGE = """usage: ossicle COMMAND [KEY=VALUE ...] [-m] [--config-dir DIR] [--cfg job] [--help]

{commands}

KEY=VALUE overrides a value (optim.lr=1e-3) or chooses a part (mixer=attention).
-m makes a multirun of comma-separated values. --cfg job prints the config and does nothing.
"ossicle COMMAND --help" lists a command's parts and values.
"""


BENCH_USAGE = """usage: ossicle bench WHAT [KEY=VALUE ...] [--cfg job] [--help]

{benches}

device=cpu or cuda; out=FILE writes the records as JSON. Peers come with: pip install 'ossicle[bench]'
"ossicle bench WHAT --help" lists its values.
"""

HELP = frozenset({"-h", "--help"})

INTERRUPTED = 130  # what shells give a command that Ctrl-C ended

RESPELT = {"label": {"layer": "source_layer"}}

SWITCHES = {"prepare": {"--verify": "verify=true"}}

MULTIRUN = frozenset({"-m", "--multirun"})

# Hydra's options that say what to do with a config; a run on a cluster is none of them, and becomes a multirun.
MODES = frozenset({*MULTIRUN, "-r", "--run", "-c", "--cfg", "-i", "--info", "--hydra-help", "--version"})


def usage() -> str:
    """The help text: every command with what it does."""
    return USAGE.format(commands=_listed(COMMANDS))


def bench_usage() -> str:
    """The help text of ``bench``: everything that can be measured."""
    return BENCH_USAGE.format(benches=_listed(BENCHES))


def _listed(words: Mapping[str, str]) -> str:
    width = max(map(len, words))
    return "\n".join(f"  {name:<{width}}  {what}" for name, what in words.items())


def task_of(command: str) -> Callable[["DictConfig"], object]:
    """The function that carries out a command on its composed config."""
    task = importlib.import_module(f"ossicle.launch.{command}").task
    assert callable(task)
    return task


def respelt(command: str, argument: str) -> str:
    """An argument as Hydra takes it: a word that is a group of parts is no key to it, and it has no switch of ours."""
    if argument in SWITCHES.get(command, {}):
        return SWITCHES[command][argument]
    key, equals, value = argument.partition("=")
    return f"{RESPELT.get(command, {}).get(key, key)}{equals}{value}"


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
        ConfigError: The overrides name a key, a part or a value that does not exist, or several where one is chosen.
    """
    import hydra
    from hydra.errors import HydraException

    arguments = options_first(spread([respelt(command, item) for item in overrides]))
    refuse_nothing(arguments)
    if on_cluster(arguments) and not MODES & set(arguments):
        arguments.insert(0, "--multirun")
    sys.argv = [f"ossicle {spoken(command)}", *arguments]
    # Hydra would print its own short message and exit; with this it lets errors through, and they are explained below.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)
    task = task_of(command)
    refused: list[OssicleError] = []

    def carry_out(cfg: "DictConfig") -> None:
        try:
            task(cfg)
        except OssicleError as error:
            refused.append(error)

    try:
        # Hydra prints the overrides above a job's error. A job of a multirun, which may run elsewhere, must fail there.
        with replaced_parts_give_way():
            main(task if MULTIRUN & set(arguments) else carry_out)()
    except HydraException as error:
        raise explain(error, command) from error
    if refused:
        raise refused[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Exits with 2 where the command line is wrong, 1 where the run failed for a reason that it names, and 130 where
    Ctrl-C ended it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {*HELP, "help"}:
        sys.stdout.write(usage())
        return
    if arguments[0] in {"-V", "--version"}:
        from importlib.metadata import version

        sys.stdout.write(f"ossicle {version('ossicle')}\n")
        return
    command, overrides = arguments[0], arguments[1:]
    if command not in COMMANDS:
        _refuse(f"there is no command {command!r}{nearest(command, COMMANDS)}", usage())
    if command == "bench":
        if not overrides or overrides[0] in {*HELP, "help"}:
            sys.stdout.write(bench_usage())
            return
        if overrides[0] not in BENCHES:
            _refuse(f"there is no bench {overrides[0]!r}{nearest(overrides[0], BENCHES)}", bench_usage())
        command, overrides = f"bench_{overrides[0]}", overrides[1:]
    if HELP & set(overrides):
        what = BENCHES[command.removeprefix("bench_")] if command.startswith("bench_") else COMMANDS[command]
        sys.stdout.write(command_help(command, what, overrides))
        return
    try:
        run_command(command, overrides)
    except OssicleError as error:
        sys.stderr.write(f"\nossicle {spoken(command)}: {error}\n")
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None
    except KeyboardInterrupt:
        sys.stderr.write(f"\nossicle {spoken(command)}: interrupted\n")
        raise SystemExit(INTERRUPTED) from None


def _refuse(problem: str, help_text: str) -> NoReturn:
    sys.stderr.write(f"ossicle: {problem}\n\n{help_text}")
    raise SystemExit(2)


if __name__ == "__main__":
    main()
