"""Every config node that names a class is held against the class's signature before anything is built.

A wrong argument then fails in a second, by name and with the nearest right one, and not after a GPU was waited for.
"""

import importlib
import inspect
from collections.abc import Iterator, Mapping

from ossicle.core.errors import ConfigError
from ossicle.launch.config import nearest

HYDRA_KEYS = frozenset({"_target_", "_partial_", "_args_", "_convert_", "_recursive_"})


def targets(config: object, path: str = "") -> Iterator[tuple[str, Mapping[str, object]]]:
    """Every node with a ``_target_``, with its dotted path."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield path, config
        for key, value in config.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            yield from targets(value, f"{path}[{number}]")


def locate(name: str, path: str) -> object:
    """The class or function of a dotted name.

    Raises:
        ConfigError: The module or the name in it does not exist.
    """
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{path}._target_ = {name}: {error}", "name an importable class, or install what it needs"
        ) from error
    if attribute not in vars(module):
        raise ConfigError(
            f"{path}._target_ = {name}: {module_name} has no {attribute}{nearest(attribute, vars(module))}",
            "name a class or function of that module",
        )
    return vars(module)[attribute]


def check_binding(config: object) -> None:
    """Hold every node of a config against the signature of what it names.

    Args:
        config: A plain container (dicts and lists), as OmegaConf.to_container gives it.

    Raises:
        ConfigError: A node passes an argument that its class does not take, or leaves out one that nothing injects.
    """
    for path, node in targets(config):
        target = locate(str(node["_target_"]), path)
        assert callable(target), path
        signature = inspect.signature(target)
        given = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
        for key in given:
            if key not in signature.parameters and not takes_any:
                raise ConfigError(
                    f"{path}.{key}: {node['_target_']} takes no such argument{nearest(key, signature.parameters)}",
                    f"its arguments are: {', '.join(signature.parameters)}",
                )
        if not node.get("_partial_"):
            try:
                signature.bind(**given)
            except TypeError as error:
                raise ConfigError(
                    f"{path}: {node['_target_']}: {error}", "state the missing argument in the config"
                ) from error
