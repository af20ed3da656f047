"""What an experiment says of the inside of a part gives way where another part is chosen in its place.

An experiment chooses parts inside parts (``override /layer/head@objective.head``) and states structures of its own ones
(convolutions). Hydra applies both whatever was chosen on the command line: it refuses a choice that finds no place, and
merges a structure into a part that it was not made for. Numbers that another part does not take are left out later, by
:func:`~ossicle.launch.parts.fit_parts`.
"""

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra._internal.config_repository import IConfigRepository
    from hydra._internal.defaults_list import Overrides
    from hydra.core.default_element import GroupDefault, ResultDefault
    from omegaconf import DictConfig


@contextmanager
def replaced_parts_give_way() -> Generator[None]:
    """Compose so within: Hydra has no public place for either, so two methods of its loader are wrapped."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.defaults_list import Overrides

    merge = ConfigLoaderImpl._compose_config_from_defaults_list  # noqa: SLF001

    def merged(self: ConfigLoaderImpl, defaults: "list[ResultDefault]", repo: "IConfigRepository") -> "DictConfig":
        config = merge(self, defaults, repo)
        clear_orphans(config, defaults, repo)
        restore_frontend(config, defaults, repo)
        return config

    with (
        _wrapped(Overrides, "ensure_overrides_used", lambda strict: lambda self: (forgive(self), strict(self))),
        _wrapped(ConfigLoaderImpl, "_compose_config_from_defaults_list", lambda _: merged),
    ):
        yield


@contextmanager
def _wrapped(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Generator[None]:
    before = getattr(owner, name)
    setattr(owner, name, wrap(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def forgive(overrides: "Overrides") -> None:
    """Let go of a file's choice for the inside of a part, where another file or the command line replaced the part.

    A choice of the command line itself, or one whose part the same file chooses, is never let go.

    Args:
        overrides: Hydra's, once the tree of defaults is made.
    """
    for key, choice in overrides.override_metadata.items():
        part = overrides.override_metadata.get(inside_of(key.partition("@")[2]))
        if part and choice.containing_config_path and part.containing_config_path != choice.containing_config_path:
            choice.used = True


def inside_of(package: str) -> str:
    """The part that a package lies in: ``objective`` of ``objective.head``."""
    return package.rpartition(".")[0]


def clear_orphans(config: "DictConfig", defaults: "Sequence[ResultDefault]", repo: "IConfigRepository") -> None:
    """Set to null what experiments say of a part inside a part that is not there."""
    from omegaconf import DictConfig, OmegaConf

    for item in choices(defaults, repo):
        if item.is_override() and item.package and "." in item.package:
            node = OmegaConf.select(config, item.package)
            if isinstance(node, DictConfig) and "_target_" not in node:
                OmegaConf.update(config, item.package, None, merge=False)


def restore_frontend(config: "DictConfig", defaults: "Sequence[ResultDefault]", repo: "IConfigRepository") -> None:
    """Give a frontend that is not the experiment's own the convolutions that it has by itself.

    Numbers of a frontend mean the same in another one (bands, rates); convolutions begin at samples in one and at
    spectra in another.
    """
    from omegaconf import DictConfig, ListConfig

    own = [f"frontend/{item.value}" for item in choices(defaults, repo) if is_frontend(item)]
    chosen = [default.config_path for default in defaults if default.override_key == "frontend"]
    if not own or not chosen or own[-1] == chosen[0]:
        return
    loaded = repo.load_config(str(chosen[0]))
    assert loaded is not None
    assert isinstance(loaded.config, DictConfig)
    for key, value in loaded.config.items_ex(resolve=False):
        if isinstance(value, ListConfig):
            config["frontend"][key] = copy.deepcopy(value)


def is_frontend(item: "GroupDefault") -> bool:
    """Whether an item of a list of defaults names the model's frontend, and not one inside another."""
    return str(item.group).lstrip("/") == "frontend" and item.package is None


def choices(defaults: "Sequence[ResultDefault]", repo: "IConfigRepository") -> "Iterator[GroupDefault]":
    """Every group that the files of a config choose, in the order in which they are merged."""
    from hydra.core.default_element import GroupDefault

    for default in defaults:
        if default.config_path and not default.config_path.startswith("hydra/"):
            loaded = repo.load_config(default.config_path)
            for item in (loaded.defaults_list or ()) if loaded else ():
                if isinstance(item, GroupDefault):
                    yield item
