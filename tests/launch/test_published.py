"""Every published experiment has its paper's numbers, which published.yaml says, and where they were read."""

import math
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from ossicle.launch.config import Config, compose, groups

READ: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
TABLE = {name: row for name, row in READ.items() if not name.startswith(".")}
PUBLISHED = [name for name in groups()["experiment"] if not name.endswith("_tiny")]
SAID = ("max_steps", "batch_s", "clip_norm", "data.max_crop_s", "schedule._target_")
"""What the table says of every experiment, beside every number of the groups in WHOLE."""
WHOLE = ("objective", "target", "optim", "schedule")
NOBODYS = {"target.seed"}
ABSENT = "absent"  # takes a key out of what a row is like
ARITHMETIC = re.compile(r"[\d.e-]+( [*/] [\d.e-]+)*")
DIGITS = 1e-3  # a config states three of them at least


def worked_out(value: object) -> object:
    """A product or quotient of numbers, from left to right, as a number; lists likewise; all else as it is."""
    if isinstance(value, list):
        return [worked_out(each) for each in value]
    if isinstance(value, str) and ARITHMETIC.fullmatch(value):
        first, *rest = value.split(" ")
        result = float(first)
        for sign, number in zip(rest[::2], rest[1::2], strict=True):
            result = result * float(number) if sign == "*" else result / float(number)
        return result
    return value


def merged(lines: Mapping[str, Any]) -> dict[str, object]:
    """Lines after those of what they are like."""
    found: dict[str, object] = {}
    for name in lines.get("like", ()):
        found |= merged(READ[name] if name.startswith(".") else READ[name]["published"])
    return found | {key: value for key, value in lines.items() if key != "like"}


def numbers(name: str, section: str) -> dict[str, object]:
    """Key and number of each line of a section, without those that are absent."""
    lines = merged(TABLE[name].get(section, {}))
    return {key: worked_out(value) for key, value in lines.items() if value != ABSENT}


def said(name: str) -> dict[str, object]:
    """Every key of an experiment's row with the number that the config is to have."""
    ours = {key: worked_out(line[0]) for key, line in TABLE[name].get("ours", {}).items()}
    return numbers(name, "unverified") | numbers(name, "published") | ours


def found(config: object, key: str) -> object:
    """A value of a config by its dotted key; numbers are places in a list.

    Raises:
        KeyError: The config has no such key.
    """
    for part in key.split("."):
        if isinstance(config, Mapping) and part in config:
            config = config[part]
        elif isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        else:
            raise KeyError(key)
    return config.rpartition(".")[-1] if key.endswith("_target_") and isinstance(config, str) else config


def same(value: object, other: object) -> bool:
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(value) == len(other) and all(map(same, value, other))
    if isinstance(value, (int, float)) and isinstance(other, (int, float)) and not isinstance(value, bool):
        return math.isclose(value, other, rel_tol=DIGITS)
    return value == other


def leaves(node: object, key: str) -> Iterator[str]:
    """The dotted keys of all numbers below a node, a list of them counting as one."""
    if isinstance(node, Mapping):
        for part, child in node.items():
            yield from leaves(child, f"{key}.{part}")
    elif isinstance(node, (int, float, list)) and not isinstance(node, bool) and not _is_words(node):
        yield key


def _is_words(node: object) -> bool:
    return isinstance(node, list) and all(isinstance(each, str) for each in node)


@cache
def composed(name: str) -> Config:
    """What an experiment says before anything is asked of the command line: no data, and so no labels."""
    config = OmegaConf.to_container(compose("pretrain", [f"experiment={name}"]), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def wrong(name: str, config: Config) -> dict[str, tuple[object, object]]:
    """Where a config is not what the table says: key -> (the config's, the table's); a key it lacks has nan."""
    differences: dict[str, tuple[object, object]] = {}
    for key, value in said(name).items():
        try:
            here = found(config, key)
        except KeyError:
            here = math.nan
        if not same(here, value):
            differences[key] = (here, value)
    return differences


def test_the_table_has_a_row_for_every_published_experiment_and_for_no_other() -> None:
    assert set(TABLE) == set(PUBLISHED)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_an_experiment_has_the_published_numbers(name: str) -> None:
    assert TABLE[name]["source"], "where were these numbers read?"
    assert set(TABLE[name]) <= {"source", "published", "unverified", "ours"}
    assert wrong(name, composed(name)) == {}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_no_number_of_what_is_learned_and_how_is_without_a_source_or_a_word_that_it_has_none(name: str) -> None:
    config = composed(name)
    keys = {key for group in WHOLE for key in leaves(config[group], group)} | set(SAID)
    assert sorted(keys - set(said(name)) - NOBODYS) == []


@pytest.mark.parametrize("name", sorted(TABLE))
def test_what_is_ours_differs_from_what_was_published_and_says_why(name: str) -> None:
    for key, line in TABLE[name].get("ours", {}).items():
        here, theirs, why = map(worked_out, line)
        assert not same(here, theirs), key
        assert isinstance(why, str), key
        assert key not in numbers(name, "published"), key


def test_a_number_that_was_changed_and_a_key_that_is_gone_are_seen() -> None:
    config = deepcopy(composed("wav2vec2_base"))
    config["optim"]["lr"] *= 1.01
    del config["target"]["num_codes"]
    assert set(wrong("wav2vec2_base", config)) == {"optim.lr", "target.num_codes"}
