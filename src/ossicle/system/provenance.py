"""Which code a run was made with."""

import re
from importlib import metadata
from pathlib import Path


def code_version() -> dict[str, str | None]:
    """The package's version, None where it runs without being installed, and the commit of a checkout of its own."""
    return {"version": installed("ossicle"), "commit": _commit(Path(__file__).resolve().parents[3])}


def installed(package: str) -> str | None:
    """A package's version, or None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(checkout: Path) -> str | None:
    """The commit that is checked out in a folder, read without git; None where the folder is no checkout of its own."""
    git = checkout / ".git"
    if not (checkout / "src" / "ossicle").is_dir():
        return None
    if git.is_file():  # a linked worktree names its own folder, whose refs lie in the main one
        git = (checkout / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).resolve()
    if not (git / "HEAD").is_file():
        return None
    shared = git / "commondir"
    common = (git / shared.read_text(encoding="utf-8").strip()).resolve() if shared.is_file() else git
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref:"):
        return head
    name = head.removeprefix("ref:").strip()
    if (common / name).is_file():
        return (common / name).read_text(encoding="utf-8").strip()
    packed = common / "packed-refs"
    text = packed.read_text(encoding="utf-8") if packed.is_file() else ""
    found = re.search(rf"^([0-9a-f]{{40,64}}) {re.escape(name)}$", text, re.MULTILINE)
    return found.group(1) if found else None
