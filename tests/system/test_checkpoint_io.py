import os
import signal
from pathlib import Path

import pytest
import torch

from ossicle.core.errors import DataError
from ossicle.system.checkpoint_io import AtomicCheckpointIO


def weights(value: float) -> dict[str, object]:
    return {"state_dict": {"w": torch.full((1000,), value)}, "global_step": int(value)}


@pytest.mark.parametrize(
    "moment", ["while the bytes are written", "before they are flushed", "before the name is given"]
)
def test_a_writer_killed_in_the_middle_leaves_the_last_checkpoint_whole(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    files = AtomicCheckpointIO()
    files.save_checkpoint(weights(1), path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        write_and_hang(files, path, moment, writer)
    assert os.read(reader, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(path.parent.iterdir())) == 2  # what was written so far lies beside, under another name
    loaded = files.load_checkpoint(path)
    assert loaded["global_step"] == 1
    files.save_checkpoint(weights(2), path)
    assert files.load_checkpoint(path)["global_step"] == 2


def write_and_hang(files: AtomicCheckpointIO, path: Path, moment: str, writer: int) -> None:
    """In the child: reach a moment of the writing, say so, and wait to be killed."""

    def hang(*_: object) -> None:
        os.write(writer, b"x")
        signal.pause()

    def half(_: object, file: object) -> None:
        file.write(b"P" * 500)  # type: ignore[attr-defined]
        file.flush()  # type: ignore[attr-defined]
        hang()

    if moment.startswith("while"):
        torch.save = half
    elif moment.endswith("flushed"):
        os.fsync = hang
    else:
        Path.replace = hang  # type: ignore[assignment]
    files.save_checkpoint(weights(2), path)
    os._exit(1)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_named_together_with_the_newest_good_one(tmp_path: Path, damage: str) -> None:
    files = AtomicCheckpointIO()
    for step in (1, 2, 3):
        files.save_checkpoint(weights(step), tmp_path / f"step-{step:08d}.ckpt")
    content = bytearray((tmp_path / "step-00000003.ckpt").read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[len(content) // 3] ^= 1
    else:
        content.clear()
    for name in ("step-00000003.ckpt", "last.ckpt"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        files.load_checkpoint(tmp_path / "last.ckpt")
    assert str(tmp_path / "last.ckpt") in caught.value.problem
    assert "step-00000002.ckpt" in caught.value.mend


def test_a_missing_checkpoint_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch " + str(tmp_path / "ran"),)

    torch.save({"state_dict": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(DataError):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()
