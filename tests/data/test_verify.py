from pathlib import Path

import pytest

from ossicle.core.errors import DataError
from ossicle.data.index import DatasetIndex
from ossicle.data.verify import verify
from tests.data.noise import Noise, run


@pytest.mark.parametrize("audio_format", ["flac", "opus", "pcm"])
@pytest.mark.parametrize("part", ["audio", "metadata"])
def test_verify_finds_one_changed_byte(tmp_path: Path, part: str, audio_format: str) -> None:
    run(Noise(), tmp_path / "data", audio_format=audio_format)
    index = DatasetIndex.load(tmp_path / "data", "train")
    row = index.rows[7]
    offset = int(row["audio_offset"]) + 1000 if part == "audio" else int(row["meta_offset"]) + 10
    with index.shard_paths[int(row["shard"])].open("r+b") as file:
        file.seek(offset)
        before = file.read(1)
        file.seek(offset)
        file.write(bytes([before[0] ^ 255]))
    with pytest.raises(DataError, match=f"^1 parts.*the {part}.*shard-000001"):
        verify(tmp_path / "data")


def test_processes_find_what_one_finds(tmp_path: Path) -> None:
    run(Noise(), tmp_path / "data")
    assert verify(tmp_path / "data", workers=2) == verify(tmp_path / "data") == 24
    index = DatasetIndex.load(tmp_path / "data", "train")
    for row in (0, 9, 17):
        entry = index.rows[row]
        with index.shard_paths[int(entry["shard"])].open("r+b") as file:
            file.seek(int(entry["audio_offset"]) + 99)
            file.write(b"damage")
    with pytest.raises(DataError) as one:
        verify(tmp_path / "data")
    with pytest.raises(DataError) as two:
        verify(tmp_path / "data", workers=2)
    assert one.value.problem == two.value.problem
    assert one.value.problem.startswith("3 parts")


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no dataset"):
        verify(tmp_path)
