"""What an experiment says of its parts, carried over to other parts that are chosen in their place."""

import inspect
import logging
from collections.abc import Collection, Mapping
from itertools import chain
from types import NoneType
from typing import Any

from ossicle.core.errors import ConfigError
from ossicle.launch.binding import HYDRA_KEYS, locate, numbers_of
from ossicle.launch.config import conf_dir, nearest

log = logging.getLogger(__name__)

PATTERN = "ossicle.mixer.pattern.Pattern"
FITTED = ("frontend", "mixer", "encoder", "model", "target", "objective", "augmentation", "schedule", "optim")
"""Parts that may be exchanged under an experiment that states numbers for another one."""


def fit_parts(config: dict[str, Any], stated: Collection[str]) -> dict[str, Any]:
    """The config with an experiment's numbers at the parts that take them.

    An experiment states numbers for the parts that it names. Where another part is chosen on the command line, it takes
    those that it knows (a width, a dropout), and the others are left out, with a word. What the command line itself
    states is never left out: :func:`~ossicle.launch.binding.check_binding` refuses it.

    Args:
        config: A resolved config.
        stated: Keys that the command line states.

    Raises:
        ConfigError: A hybrid's list of mixers is none, or no mixer in it takes what the command line states.
    """
    fitted = dict(config)
    for name in FITTED:
        node = fitted.get(name)
        if isinstance(node, Mapping) and "_target_" in node:
            if node["_target_"] == PATTERN:
                node = expanded(node, name, stated)
            fitted[name] = only_known(node, name, stated)
    return fitted


def only_known(node: Mapping[str, Any], path: str, stated: Collection[str]) -> dict[str, Any]:
    """A part's node without the numbers that its class does not take and the command line does not state.

    The parts inside it too, such as a frontend's quantiser.
    """
    known = arguments(node, path)
    foreign = [
        key
        for key, value in node.items()
        if key not in HYDRA_KEYS and f"{path}.{key}" not in stated and not takes(known, key, value)
    ]
    for key in foreign:
        log.info("%s.%s=%s is not for %s: left out", path, key, node[key], str(node["_target_"]).rpartition(".")[2])
    kept = {key: value for key, value in node.items() if key not in foreign}
    inner = {key for key, value in kept.items() if isinstance(value, Mapping) and "_target_" in value}
    return kept | {key: only_known(kept[key], f"{path}.{key}", stated) for key in inner}


def arguments(node: Mapping[str, Any], path: str) -> Mapping[str, inspect.Parameter]:
    """What a node's class takes, by name."""
    target = locate(str(node["_target_"]), path)
    assert callable(target), path
    return inspect.signature(target).parameters


def takes(known: Mapping[str, inspect.Parameter], key: str, value: object) -> bool:
    """Whether a class takes a value: it knows the key, and where the value is null, null or a number of its own."""
    if key not in known:
        return False
    kinds = numbers_of(known[key].annotation)
    return value is not None or not kinds or NoneType in kinds or known[key].default is inspect.Parameter.empty


def expanded(node: Mapping[str, Any], path: str, stated: Collection[str]) -> dict[str, Any]:
    """A pattern's node with the configs of the mixers that it names.

    Its other numbers go to those that take them; what an entry says of its own mixer goes before them.

    Args:
        node: The pattern's node, whose layers are :func:`entries`.
        path: The node's key, which is its group's name.
        stated: Keys that the command line states.

    Raises:
        ConfigError: The layers are no list of such entries, or none of them takes what the command line states.
    """
    shared = {key: value for key, value in node.items() if key not in {*HYDRA_KEYS, "layers"}}
    layers: list[dict[str, Any]] = []
    taken: set[str] = set()
    for place, (whole, own) in enumerate(entries(node.get("layers"), path, f"{path}.layers")):
        known = arguments(whole, f"{path}.layers[{place}]")
        fitting = {k: v for k, v in shared.items() if takes(known, k, v) or (k in known and f"{path}.{k}" in stated)}
        taken |= fitting.keys()
        layers.append({**whole, **fitting, **own})
    for key in shared.keys() - taken:
        if f"{path}.{key}" in stated:
            all_known = set(chain.from_iterable(arguments(layer, path) for layer in layers)) - {"dim"}
            raise ConfigError(
                f"{path}.{key}={shared[key]}: no mixer of {path}.layers takes it{nearest(key, all_known)}",
                f"what they take: {', '.join(sorted(all_known))}",
            )
        log.info("%s.%s=%s is for no mixer of %s.layers: left out", path, key, shared[key], path)
    return {"_target_": node["_target_"], "layers": layers}


def entries(layers: object, group: str, path: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The config of each mixer that a list names, and what the entry itself says of it.

    Args:
        layers: The list. An entry is a name, a name with numbers (``{mixer: NAME, KEY: VALUE}``) or a node that names a
            class.
        group: Where names are looked up, and the key of a name that has numbers: ``mixer``.
        path: The list's key, for messages.

    Raises:
        ConfigError: The layers are no list, or an entry names no mixer or a pattern.
    """
    mend = f"list names, or names with numbers: {path}=[attention,{{{group}: summary, kind: fast}}]"
    if not isinstance(layers, list | tuple) or not layers:
        raise ConfigError(f"{path}={layers} is no list of mixers", mend)
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for place, entry in enumerate(layers):
        own = dict(entry) if isinstance(entry, Mapping) else {group: entry}
        if isinstance(own.get("_target_"), str) and group not in own:
            whole = {"_target_": own["_target_"]}
        elif isinstance(own.get(group), str) and "_target_" not in own:
            whole = option(own.pop(group), group)
        else:
            raise ConfigError(f"{path}[{place}]={entry} names no mixer", mend)
        if whole["_target_"] == PATTERN:
            raise ConfigError(f"{path}[{place}] is a pattern", "list its own mixers in its place")
        found.append((whole, own))
    return found


def option(name: str, group: str) -> dict[str, Any]:
    """The config of one option of a group.

    Raises:
        ConfigError: The group has no such option.
    """
    from omegaconf import OmegaConf

    file = conf_dir() / group / f"{name}.yaml"
    if not file.is_file():
        choices = sorted(path.stem for path in file.parent.glob("*.yaml"))
        raise ConfigError(f"there is no {group}={name}{nearest(name, choices)}", f"choose from: {', '.join(choices)}")
    plain = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
