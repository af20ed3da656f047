from importlib import metadata
from pathlib import Path

import pytest

from ossicle.system.provenance import _commit, code_version, installed

HASH = "0123456789abcdef0123456789abcdef01234567"


def checkout(root: Path, head: str, files: dict[str, str]) -> Path:
    (root / "src" / "ossicle").mkdir(parents=True)
    for name, text in {"HEAD": head, **files}.items():
        path = root / ".git" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_commit_is_read_from_a_loose_ref_a_packed_ref_or_a_detached_head(tmp_path: Path) -> None:
    loose = checkout(tmp_path / "loose", "ref: refs/heads/main\n", {"refs/heads/main": HASH + "\n"})
    packed = checkout(tmp_path / "packed", "ref: refs/heads/main\n", {"packed-refs": f"# x\n{HASH} refs/heads/main\n"})
    detached = checkout(tmp_path / "detached", HASH + "\n", {})
    assert _commit(loose) == _commit(packed) == _commit(detached) == HASH


def test_a_package_installed_inside_another_projects_checkout_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text(HASH)
    assert _commit(tmp_path) is None


def test_what_is_not_installed_has_no_version_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    assert installed("torch") == metadata.version("torch")
    monkeypatch.setattr(metadata, "version", absent)
    assert code_version()["version"] is None
