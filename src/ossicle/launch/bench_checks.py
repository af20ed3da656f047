"""What the benches hold their configs against, before anything is built, measured or waited for."""

import math
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossicle.core.errors import ConfigError, OssicleError
from ossicle.launch.binding import check_number, kinds_of
from ossicle.launch.config import Config, nearest


@dataclass(frozen=True, slots=True)
class Number:
    """A number that a bench takes.

    Args:
        kind: Its annotation: ``int``, ``float``, ``bool`` and their unions with None.
        least: The least that measures something.
        above: Whether ``least`` itself measures nothing.
        most: The most that means anything.
    """

    kind: object
    least: float = -math.inf
    above: bool = False
    most: float = math.inf


COUNT = Number(int, 1)
POSITIVE = Number(float, 0, above=True)
SWITCH = Number(bool)
SEED = Number(int)
THREADS = Number(int | None, 1)


def numbers(config: Config, wanted: Mapping[str, Number]) -> dict[str, Any]:
    """The config with every number as it is counted: a whole one that is written with a point becomes an int.

    Args:
        config: A resolved config of a bench.
        wanted: Its numbers, by their keys.

    Raises:
        ConfigError: A value is of another kind, is not finite, or measures nothing.
    """
    checked = dict(config)
    for key, number in wanted.items():
        value = config[key]
        check_number(key, value, number.kind)
        if value is None or isinstance(value, bool):
            continue
        if not math.isfinite(value):
            raise ConfigError(f"{key}={value} is endless", "state a finite number")
        if value < number.least or (number.above and value == number.least):
            least = "a number above 0" if number.above else f"{number.least:g} or more"
            raise ConfigError(f"{key}={value} measures nothing", f"give {least}")
        if value > number.most:
            raise ConfigError(f"{key}={value} is too much", f"give {number.most:g} or less")
        checked[key] = value if float in kinds_of(number.kind) else int(value)
    return checked


def words(config: Config, key: str, choices: Collection[str]) -> list[str]:
    """One word or a list of words, each a choice and named once.

    Raises:
        ConfigError: Nothing is named, or twice the same, or what is no choice.
    """
    told = listed(config[key], key)
    for word in told:
        if not isinstance(word, str) or word not in choices:
            raise ConfigError(
                f"there is no {key}={word}{nearest(str(word), choices)}", f"choose from {', '.join(choices)}"
            )
    return told


def word(config: Config, key: str, choices: Collection[str]) -> str:
    """One word that is a choice.

    Raises:
        ConfigError: It is none, or a list.
    """
    told = words(config, key, choices)
    if not isinstance(config[key], str):
        raise ConfigError(f"{key}={config[key]} is a list", f"choose one of {', '.join(choices)}")
    return told[0]


def listed(value: object, key: str) -> list[Any]:
    """One value, or several, none of them twice.

    Raises:
        ConfigError: There is none, or one twice.
    """
    told = list(value) if isinstance(value, list | tuple) else [value]
    if not told:
        raise ConfigError(f"{key}=[] names nothing to measure", f"name one at least, or leave {key} out")
    twice = [each for place, each in enumerate(told) if each in told[:place]]
    if twice:
        raise ConfigError(f"{key} names {twice[0]} twice", "name it once")
    return told


def check_device(config: Config) -> None:
    """Refuse a device that this machine lacks.

    Raises:
        ConfigError: It is none, or is not there.
    """
    import torch

    if word(config, "device", ("cpu", "cuda")) == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda is not there: torch finds no GPU", "set device=cpu")


def check_places(config: Config, *keys: str) -> None:
    """Refuse files that could not be written once all is measured; folders that are missing are made.

    Args:
        config: A resolved config of a bench.
        keys: Keys of files, each a path or null.

    Raises:
        ConfigError: A path is none, is a folder's or a device's, is named by two keys, or nothing can be written there.
    """
    seen: dict[Path, str] = {}
    for key in keys:
        told = config[key]
        if told is None:
            continue
        if not isinstance(told, str) or not told:
            raise ConfigError(f"{key}={told} names no file", f"set {key}=FILE, or leave it out")
        path = Path(told)
        if path.exists() and not path.is_file():
            raise ConfigError(
                f"{key}={told} is no file", f"name a file, in a folder that may be new: {key}=FOLDER/FILE"
            )
        if path.resolve() in seen:
            raise ConfigError(f"{key}={told} is {seen[path.resolve()]}'s file too", "name two files")
        seen[path.resolve()] = key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise ConfigError(
                f"{key}={told} cannot be written: {error.strerror}", f"set {key} to another place"
            ) from error


def check_found(figures: Collection[object], reasons: Collection[str | None]) -> None:
    """Let a bench that has measured nothing fail, when its table is printed and its records are written.

    Args:
        figures: What was measured of each system, None where nothing was.
        reasons: Why not, of each.

    Raises:
        OssicleError: There is no figure at all.
    """
    if all(figure is None for figure in figures):
        why = next((reason for reason in reasons if reason), "nothing was asked for")
        raise OssicleError(f"nothing was measured: {why}", "see above; measure something else")
