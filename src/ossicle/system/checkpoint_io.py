"""Checkpoints on disk: whole or absent, and loaded without running code."""

import pickle
import zipfile
from pathlib import Path

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from typing_extensions import override

from ossicle.core.errors import DataError
from ossicle.core.files import atomic_write


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint beside its place, flushes it to the disk, and lets it take the name in one step.

    Lightning's own writer does not flush, and loads with ``weights_only`` unset.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, object], path: str | Path, storage_options: object | None = None
    ) -> None:
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: object | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, object]:
        """Load with ``weights_only=True``, whatever is asked for, onto the CPU.

        Raises:
            DataError: The file is missing or damaged; the newest good one beside it is named.
        """
        return load_checkpoint(Path(path))

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, object]:
    """A checkpoint's contents on the CPU.

    Raises:
        DataError: The file is missing or damaged; the newest good one beside it is named.
    """
    problem = damage(path)
    if problem is None:
        return torch.load(path, map_location="cpu", weights_only=True)
    good = newest_good(path.parent, but=path)
    mend = f"resume from the last good one: cp {good} {path}" if good else "no other checkpoint is there: start anew"
    raise DataError(f"checkpoint {path} {problem}", mend)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None where it is whole: every byte is held against its checksum."""
    if not path.is_file():
        return "does not exist"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"is damaged in {broken}"
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        return f"is damaged: {str(error).splitlines()[0]}"
    return None


def newest_good(folder: Path, but: Path) -> Path | None:
    """The newest whole checkpoint of a folder besides one."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        if path != but and damage(path) is None:
            return path
    return None
