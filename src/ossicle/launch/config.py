"""Where configs lie, how they are composed, and what is said of one that cannot be."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossicle.core.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig


Config = Mapping[str, Any]
"""A resolved config: plain containers, as YAML has them."""

EXAMPLE = "hubert_tiny"  # the experiment whose keys are suggested for a misspelt one


def conf_dir() -> Path:
    """The folder of configs: inside the installed package, or beside src/ in a checkout.

    Raises:
        ConfigError: Neither exists: the installation is broken.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "pretrain.yaml").is_file():
            return folder
    raise ConfigError(
        f"no configs found beside {package}", "install the package again: pip install --force-reinstall ossicle"
    )


def nearest(word: str, choices: Iterable[str]) -> str:
    """A half sentence that names the closest choices to a misspelt word, or nothing where none is close."""
    close = difflib.get_close_matches(word, list(choices), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def spoken(command: str) -> str:
    """How a command is typed, by the name of its config: bench_data is ``bench data``."""
    return command.replace("_", " ")


def compose(command: str, overrides: Sequence[str] = ()) -> "DictConfig":
    """A command's config with overrides, without running anything.

    Raises:
        ConfigError: The overrides do not fit the config.
    """
    from hydra.errors import HydraException

    try:
        return _composed(command, overrides)
    except HydraException as error:
        raise explain(error, command) from error


def _composed(command: str, overrides: Sequence[str]) -> "DictConfig":
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    outer = GlobalHydra.instance().hydra  # a command that composes another's config runs inside its own Hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
            return hydra_compose(config_name=command, overrides=list(overrides))
    finally:
        if outer is not None:
            GlobalHydra.instance().hydra = outer


def keys(config: "DictConfig", prefix: str = "") -> list[str]:
    """All dotted keys of a config."""
    from omegaconf import DictConfig

    found: list[str] = []
    for key in config:
        found.append(f"{prefix}{key}")
        if config._get_node(key) is not None and isinstance(config._get_node(key), DictConfig):  # noqa: SLF001
            node = config._get_node(key)  # noqa: SLF001  reading it would resolve what may be missing
            assert isinstance(node, DictConfig)
            if not node._is_none() and not node._is_missing():  # noqa: SLF001
                found += keys(node, f"{prefix}{key}.")
    return found


def groups() -> dict[str, list[str]]:
    """Every group of parts with its options."""
    root = conf_dir()
    found: dict[str, list[str]] = {}
    for file in sorted(root.rglob("*.yaml")):
        group = file.parent.relative_to(root).as_posix()
        if group != ".":
            found.setdefault(group, []).append(file.stem)
    return found


def explain(error: Exception, command: str) -> ConfigError:
    """What Hydra found wrong, said with the nearest thing that would have been right."""
    text = str(error).strip()
    option = re.search(r"Could not find '([\w/]+)/([\w.-]+)'", text)
    if option:
        group, name = option.groups()
        choices = groups().get(group, [])
        return ConfigError(
            f"there is no {group}={name}{nearest(name, choices)}",
            f"choose one of: {', '.join(choices) or 'none exist'}",
        )
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        return unknown_key(key.group(1), command)
    return ConfigError(
        text.splitlines()[0], "\n     ".join(text.splitlines()[1:]) or f"see: ossicle {spoken(command)} --help"
    )


def unknown_key(key: str, command: str) -> ConfigError:
    """The error for an override of a key or group that does not exist."""
    composed = _composed(command, [f"experiment={EXAMPLE}"] if command == "pretrain" else [])
    known = {*groups(), *keys(composed)} - {key}
    named = " experiment=NAME" if command == "pretrain" else ""
    return ConfigError(
        f"the config of {spoken(command)!r} has no key {key!r}{nearest(key, known)}",
        f"see every key with: ossicle {spoken(command)}{named} --cfg job   (a new key is added with +{key}=...)",
    )
