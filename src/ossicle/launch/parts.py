"""What an experiment says of its parts, carried over to other parts that are chosen in their place."""

import inspect
import logging
from collections.abc import Collection, Mapping
from typing import Any

from ossicle.core.errors import ConfigError
from ossicle.launch.binding import HYDRA_KEYS, locate
from ossicle.launch.config import conf_dir, nearest

log = logging.getLogger(__name__)

PATTERN = "ossicle.mixer.pattern.Pattern"
FITTED = ("frontend", "mixer", "encoder", "target", "objective", "schedule", "optim")
"""Parts that may be exchanged under an experiment that states numbers for another one."""


def fit_parts(config: dict[str, Any], stated: Collection[str]) -> dict[str, Any]:
    """The config with an experiment's numbers at the parts that take them.

    An experiment states numbers for the parts that it names. Where another part is chosen on the command line, it takes
    those that it knows (a width, a dropout), and the others are left out, with a word. What the command line itself
    states is never left out: :func:`~ossicle.launch.binding.check_binding` refuses it.

    Args:
        config: A resolved config.
        stated: Keys that the command line states.
    """
    fitted = dict(config)
    for name in FITTED:
        node = fitted.get(name)
        if isinstance(node, Mapping) and "_target_" in node:
            if node["_target_"] == PATTERN:
                node = expanded(node, name)
            fitted[name] = only_known(node, name, stated)
    return fitted


def only_known(node: Mapping[str, Any], path: str, stated: Collection[str]) -> dict[str, Any]:
    """A part's node without the numbers that its class does not take and the command line does not state.

    The parts inside it too, such as a frontend's quantiser.
    """
    known = arguments(node, path)
    foreign = [key for key in node if key not in known and key not in HYDRA_KEYS and f"{path}.{key}" not in stated]
    for key in foreign:
        log.info("%s.%s=%s is not for %s: left out", path, key, node[key], str(node["_target_"]).rpartition(".")[2])
    kept = {key: value for key, value in node.items() if key not in foreign}
    inner = {key for key, value in kept.items() if isinstance(value, Mapping) and "_target_" in value}
    return kept | {key: only_known(kept[key], f"{path}.{key}", stated) for key in inner}


def arguments(node: Mapping[str, Any], path: str) -> Collection[str]:
    """Names of what a node's class takes."""
    target = locate(str(node["_target_"]), path)
    assert callable(target), path
    return inspect.signature(target).parameters


def expanded(node: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A pattern's node with the configs of the mixers that it names; its other numbers go to those that take them."""
    shared = {key: value for key, value in node.items() if key not in {*HYDRA_KEYS, "layers"}}
    layers = [option(layer, path) if isinstance(layer, str) else dict(layer) for layer in node["layers"]]
    for layer in layers:
        known = arguments(layer, path)
        layer.update({key: value for key, value in shared.items() if key in known})
    return {"_target_": node["_target_"], "layers": layers}


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
