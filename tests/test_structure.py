"""The promises of the layout: small files, one spelling of every word, no part without its config."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(p for folder in ("src", "data_prep", "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py"))
# Groups of conf/ that are no package: experiments, clusters and Hydra's own are launch's, corpora and what cuts them
# live in data_prep/.
GROUPS_WITHOUT_PACKAGE = {"experiment", "cluster", "corpus", "cut", "hydra"}
TOP_LEVEL = {
    "src", "conf", "data_prep", "slurm", "tests", "benchmarks", "docs",
    "pyproject.toml", "README.md", "LICENSE", "CONTRIBUTING.md",
}  # fmt: skip
GENERATED = {"runs", "corpora", "uv.lock", "wandb", "dist", "build", "multirun", "outputs"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_has_at_most_400_lines_and_every_function_60(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= 60, f"{path.name}: {node.name}"


def test_every_group_of_conf_is_a_package() -> None:
    groups = {p.name for p in (ROOT / "conf").iterdir() if p.is_dir()} - GROUPS_WITHOUT_PACKAGE
    packages = {p.name for p in (ROOT / "src" / "ossicle").iterdir() if (p / "__init__.py").is_file()}
    assert groups <= packages, groups - packages


def test_tests_mirror_the_packages() -> None:
    packages = {p.name for p in (ROOT / "src" / "ossicle").iterdir() if (p / "__init__.py").is_file()}
    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and list(p.glob("test_*.py"))}
    assert packages <= folders, packages - folders


def test_the_top_level_holds_nothing_else() -> None:
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - GENERATED
    assert found <= TOP_LEVEL, found - TOP_LEVEL


def holds_a_part(path: Path) -> bool:
    """Whether a class of the module can be chosen: one that leaves nothing abstract. Others share what parts have."""
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    return any("abstractmethod" not in ast.unparse(node) for node in classes)


def test_every_mixer_objective_and_target_has_its_config() -> None:
    for group in ("mixer", "objective", "target", "frontend"):
        modules = {p.stem for p in (ROOT / "src" / "ossicle" / group).glob("*.py") if holds_a_part(p)} - {"base"}
        targets = " ".join(p.read_text() for p in (ROOT / "conf" / group).glob("*.yaml"))
        for module in modules:
            assert re.search(rf"ossicle\.{group}\.{module}\.", targets), f"{group}/{module}.py has no config"


def test_every_experiment_is_named_as_its_file() -> None:
    for path in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert re.search(rf"^name: {path.stem}$", path.read_text(), re.MULTILINE), path.name
        assert "@package _global_" in path.read_text(), path.name
