"""What docs/ tells to type still composes, and every file, test and option that it names exists."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from ossicle.launch.cli import BENCHES, COMMANDS, respelt
from ossicle.launch.config import compose, conf_dir, groups

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("docs/results/*.md")])
TESTS = "\n".join(file.read_text(encoding="utf-8") for file in ROOT.glob("tests/**/*.py"))


def lines_to_type(page: Path) -> Iterator[str]:
    """Commands in backticks, and lines that begin with one, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    for quoted in re.findall(r"`([^`|]+)`", text):
        yield " ".join(quoted.split())
    for line in text.splitlines():
        yield re.split(r"\s{2,}[#\d]", line.strip())[0]


def typed(page: Path, program: str) -> set[tuple[str, ...]]:
    """The words after a program in every line of a page that begins with it."""
    found = set()
    for line in lines_to_type(page):
        begun = re.match(rf"(?:uv run )?(?:--with \S+ )?(?:[A-Z_]+=\S+ )*{program} (.+)$", line)
        if begun:
            words = [word for word in shlex.split(begun[1]) if not word.startswith("...")]
            found.add(tuple(words))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_composes(page: Path) -> None:
    for words in typed(page, "ossicle"):
        if words[0] not in COMMANDS or len(words) == 1:
            continue  # prose, or a command's name
        command, overrides = words[0], words[1:]
        if command == "bench":
            assert overrides[0] in BENCHES, words
            command, overrides = f"bench_{overrides[0]}", overrides[1:]
        told = [respelt(command, word) for word in overrides if "=" in word]
        if told and "-m" not in overrides:
            config = compose(command, told)
            for entry in config.get("experiments") or ():
                assert entry.split()[0] in {*groups()["experiment"], "..."}, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_script_of_a_page_exists_and_takes_what_is_told(page: Path) -> None:
    for script, *words in typed(page, "python"):
        if not script.startswith("benchmarks/"):
            continue
        code = (ROOT / script).read_text(encoding="utf-8")
        for word in words:
            key = word.partition("=")[0]
            if word.startswith("--"):
                assert f'"{key}"' in code, f"{script} {word}"
            elif "=" in word and "add_argument" not in code:
                assert re.search(rf"\b{key}\b", code), f"{script} {word}"


def test_what_pages_name_exists() -> None:
    pages = {page: page.read_text(encoding="utf-8") for page in PAGES}
    for page, text in pages.items():
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        for name in re.findall(r"\b(test_[a-z0-9_]+)(?!\w*\.py)\b", text):
            assert re.search(rf"(def {name}|/{name})", TESTS) or list(ROOT.glob(f"tests/**/{name}.py")), name
        for script in re.findall(r"\bbenchmarks/\w+\.py", text):
            assert (ROOT / script).is_file(), f"{page.name}: {script}"
        for group, name in re.findall(r"\bconf/(\w+)/(\w+)\.yaml", text):
            assert (conf_dir() / group / f"{name}.yaml").is_file(), f"{page.name}: {group}/{name}"


def test_commands_are_found_in_prose_and_in_blocks() -> None:
    assert sum(len(typed(page, "ossicle")) for page in PAGES) > 25
    assert sum(len(typed(page, "python")) for page in PAGES) > 5
