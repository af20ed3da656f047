"""What ``ossicle COMMAND --help`` says: a command's parts with what each is, and its values, as configs have them."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ossicle.launch.config import conf_dir, groups, spoken

NOT_VALUES = ("defaults", "hydra")
OVERRIDE = "override "


def command_help(command: str, what: str, overrides: Sequence[str] = ()) -> str:
    """The help text of a command.

    Args:
        command: The command by the name of its config.
        what: What it does, in a line.
        overrides: Parts that are chosen beside ``--help``: their values are shown too.
    """
    sections = [f"ossicle {spoken(command)}: {what}"]
    parts = list(_parts(command))
    if parts:
        sections.append("Parts, chosen by PART=OPTION:")
        sections += [_part(name, default) for name, default in parts]
    sections.append("Values, set by KEY=VALUE:")
    sections += [_indented(values(conf_dir() / f"{name}.yaml")) for name in _chain(command)]
    for override in overrides:
        name, _, option = override.partition("=")
        file = conf_dir() / name.partition("@")[0] / f"{option}.yaml"
        if file.is_file():
            sections += [f"{name}={option}:", _indented(file.read_text(encoding="utf-8"))]
    chosen = "experiment=NAME " if any(name == "experiment" for name, _ in parts) else ""
    sections.append(
        f"PART=OPTION --help shows an option's values too; ossicle {spoken(command)} {chosen}--cfg job all that is set."
    )
    return "\n\n".join(sections) + "\n"


def values(file: Path) -> str:
    """A config's own values with their comments: all but its list of parts and what Hydra reads."""
    kept: list[str] = []
    keep = True
    for line in file.read_text(encoding="utf-8").splitlines():
        key = re.match(r"(\w+):", line)
        if key:
            keep = key[1] not in NOT_VALUES
        if keep and (kept or line.strip()):
            kept.append(line)
    return "\n".join(kept).rstrip()


def _chain(command: str) -> list[str]:
    """The command's config and those that it starts from."""
    below = [item for item in _defaults(command) if isinstance(item, str) and item != "_self_"]
    return [command, *(name for item in below for name in _chain(item))]


def _defaults(command: str) -> list[Any]:
    return yaml.safe_load((conf_dir() / f"{command}.yaml").read_text(encoding="utf-8")).get("defaults", [])


def _parts(command: str) -> Iterator[tuple[str, str | None]]:
    """Each part that a command takes, by the word that chooses it, with what it is unless another is chosen."""
    pairs = [
        pair for name in _chain(command) for item in _defaults(name) if isinstance(item, dict) for pair in item.items()
    ]
    overridden = {word.removeprefix(OVERRIDE): default for word, default in pairs if word.startswith(OVERRIDE)}
    for word, default in pairs:
        if word.partition("@")[0] in groups():
            yield word, overridden.get(word, default)


def _part(word: str, default: str | None) -> str:
    group = word.partition("@")[0]
    options = groups()[group]
    width = max(map(len, options))
    usual = {None: "none unless stated", "???": "to be stated"}.get(default, str(default))
    lines = [f"  {word}=   ({usual})"]
    lines += [f"    {option:<{width}}  {_header(conf_dir() / group / f'{option}.yaml')}".rstrip() for option in options]
    return "\n".join(lines)


def _header(file: Path) -> str:
    """The comment that a config begins with, in its first line that is not for Hydra."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ")
        if not line.startswith("#"):
            break
    return ""


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.rstrip().splitlines())
