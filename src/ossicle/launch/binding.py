"""Every config node that names a class is held against the class's signature before anything is built.

A wrong argument then fails in a second, by name and with the nearest right one, and not after a GPU was waited for.
"""

import importlib
import inspect
import types
import typing
from collections.abc import Collection, Iterator, Mapping

from ossicle.core.errors import ConfigError
from ossicle.launch.config import nearest

NUMBERS: frozenset[object] = frozenset({int, float, bool, types.NoneType})
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
        ConfigError: A node passes an argument that its class does not take, or one that is no number where it takes
            numbers alone, or leaves out one that nothing injects.
    """
    for path, node in targets(config):
        target = locate(str(node["_target_"]), path)
        assert callable(target), path
        signature = inspect.signature(target)
        given = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
        for key, value in given.items():
            if key not in signature.parameters and not takes_any:
                raise ConfigError(
                    f"{path}.{key}: {node['_target_']} takes no such argument{nearest(key, signature.parameters)}",
                    f"its arguments are: {', '.join(signature.parameters)}",
                )
            if key in signature.parameters:
                check_number(f"{path}.{key}" if path else key, value, signature.parameters[key].annotation)
        if not node.get("_partial_"):
            try:
                signature.bind(**given)
            except TypeError as error:
                raise ConfigError(
                    f"{path}: {node['_target_']}: {error}", "state the missing argument in the config"
                ) from error


def check_number(key: str, value: object, annotation: object) -> None:
    """Refuse what is no number or no word of a choice, where an annotation asks for one and allows nothing else.

    Args:
        key: The value's dotted key.
        value: The value.
        annotation: The argument's annotation: only ``int``, ``float``, ``bool``, words to choose from (``Literal``) and
            their unions with None are judged.

    Raises:
        ConfigError: The value is of another kind, has a fraction where it counts something, or is no such word.
    """
    if isinstance(value, str) and (value.startswith("${") or value == "???"):
        return  # a part's file by itself: what stands here is known when a config is composed
    kinds = numbers_of(annotation)
    if not kinds:
        check_word(key, value, kinds_of(annotation))
        return
    if value is None:
        fits = types.NoneType in kinds
    elif isinstance(value, bool):
        fits = bool in kinds
    elif isinstance(value, float) and float not in kinds:
        fits = value.is_integer() and int in kinds
    else:
        fits = isinstance(value, int | float) and bool(kinds & {int, float})
    if not fits:
        names = {int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}
        wanted = " or ".join(name for kind, name in names.items() if kind in kinds)
        raise ConfigError(f"{key}={value} is not what it can be", f"state {wanted}")


def numbers_of(annotation: object) -> frozenset[object]:
    """The kinds of number that an annotation allows, null among them; none where it allows anything else."""
    kinds = kinds_of(annotation)
    return kinds if kinds <= NUMBERS and kinds != {types.NoneType} else frozenset()


def kinds_of(annotation: object) -> frozenset[object]:
    """What an annotation is a union of: itself where it is none."""
    union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    return frozenset(typing.get_args(annotation) if union else (annotation,))


def check_word(key: str, value: object, kinds: Collection[object]) -> None:
    """Refuse what is none of the words that an annotation offers, and nothing else.

    Args:
        key: The value's dotted key.
        value: The value.
        kinds: What the annotation is a union of.

    Raises:
        ConfigError: The value is another word.
    """
    offers = [kind for kind in kinds if kind is not types.NoneType]
    if not offers or any(typing.get_origin(kind) is not typing.Literal for kind in offers):
        return
    words = [word for kind in offers for word in typing.get_args(kind)]
    if value not in words and not (value is None and types.NoneType in kinds):
        raise ConfigError(
            f"{key}={value} is no choice{nearest(str(value), map(str, words))}",
            f"choose from: {', '.join(map(str, words))}",
        )
