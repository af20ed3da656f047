"""Where configs lie, how they are composed, and what is said of one that cannot be."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ossicle.core.errors import ConfigError
from ossicle.launch.replaced import replaced_parts_give_way

if TYPE_CHECKING:
    from omegaconf import DictConfig


Config = Mapping[str, Any]
"""A resolved config: plain containers, as YAML has them."""

EXAMPLE = "hubert_tiny"  # the experiment whose keys are suggested for a misspelt one
HYBRID = "mixer"  # the group whose choice may be a list: one option a layer


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

    refuse_nothing(overrides)
    try:
        return _composed(command, overrides)
    except HydraException as error:
        raise explain(error, command) from error


def _composed(command: str, overrides: Sequence[str]) -> "DictConfig":
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    outer = GlobalHydra.instance().hydra  # a command that composes another's config runs inside its own Hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"), replaced_parts_give_way():
            config = hydra_compose(config_name=command, overrides=spread(overrides), return_hydra_config=True)
    finally:
        if outer is not None:
            GlobalHydra.instance().hydra = outer
    check_choices(config, config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config


def spread(overrides: Sequence[str]) -> list[str]:
    """Overrides in which no part is chosen as a list: Hydra would merge the options into one, the last one's class.

    A list of mixers is the pattern that it names: ``mixer=[a,b]`` becomes ``mixer=pattern mixer.layers=[a,b]``. Where
    a multirun's values are such lists and names, a name is a pattern of one.

    Raises:
        ConfigError: The choice of another group is a list.
    """
    found: list[str] = []
    for item in overrides:
        key = item.partition("=")[0]
        group = key.lstrip("+").partition("@")[0]
        values = _choices(item) if "[" in item and group in groups() else []
        if not any(value.startswith("[") for value in values):
            found.append(item)
            continue
        if group != HYBRID:
            raise ConfigError(
                f"{item}: {group} is one part, not a list of them",
                f"choose one, {group}=NAME, or try one after another in a multirun: -m {group}=NAME,NAME",
            )
        patterns = [value if value.startswith("[") else f"[{value}]" for value in values]
        found += [f"{key}=pattern", f"{HYBRID}.layers={','.join(patterns)}"]
    return found


def _choices(item: str) -> list[str]:
    """The values of an override, one or a multirun's, each as it is written; none where it does not parse."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(item)
    except HydraException:
        return []  # Hydra says what is wrong with it
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [str(text) for text in override.sweep_string_iterator()]
    return [item.partition("=")[2].strip()] if isinstance(value, list) else []


def check_choices(config: "DictConfig", choices: Mapping[str, object]) -> None:
    """Refuse what :func:`spread` does, where a config's own list of defaults says it.

    Args:
        config: A composed config.
        choices: The option of each group that was chosen; Hydra names none where it merged several.

    Raises:
        ConfigError: A part was chosen as a list.
    """
    from omegaconf import DictConfig

    for group in groups().keys() - choices.keys():
        node = config.get(group)
        if isinstance(node, DictConfig) and "_target_" in node:
            one = f"override /{group}: NAME"
            hybrid = f"override /{HYBRID}: pattern, and below it {HYBRID}: {{layers: [NAME, NAME]}}"
            raise ConfigError(
                f"the defaults of a config choose a list of options for {group}, which would be merged into one",
                f"write {hybrid if group == HYBRID else one}",
            )


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


def refuse_nothing(overrides: Iterable[str]) -> None:
    """Refuse the choice of nothing for a part, of which Hydra says only what type it has.

    Raises:
        ConfigError: An override sets a group to null.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        options = groups().get(key.partition("@")[0].lstrip("+")) if value == "null" else None
        if options:
            raise ConfigError(f"{override} chooses nothing", f"leave it out: '~{key}', or choose: {', '.join(options)}")


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
    key = re.search(r"(?:In '([^']+)': )?Could not override '([^']+)'", text)
    if key and key.group(1):
        return ConfigError(
            f"{key.group(1)}.yaml chooses {key.group(2)}, and no part that it is composed with has such a place",
            f"mend the defaults of {key.group(1)}.yaml",
        )
    if key:
        return unknown_key(key.group(2), command)
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
