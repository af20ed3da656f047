from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data_prep.folder import FolderCorpus
from ossicle.core.errors import DataError
from ossicle.data.bank import NoiseRecordings, ResponseFiles
from ossicle.data.prepare import prepare


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings of one second, each of one value."""
    folder = tmp_path_factory.mktemp("noise")
    (folder / "audio").mkdir()
    for value in (100, 200, 300):
        pcm = np.full(16_000, value, dtype=np.int16)
        soundfile.write(folder / "audio" / f"{value}.wav", pcm, 16_000, subtype="PCM_16")
    rows = "".join(f"{value}.wav\ttrain\n" for value in (100, 200, 300))
    (folder / "audio" / "manifest.tsv").write_text(f"path\tsplit\n{rows}")
    prepare(FolderCorpus(folder / "audio"), folder / "shards", shard_s=10, workers=1, max_bad_fraction=0.0)
    return folder / "shards"


def test_recordings_lie_end_to_end_as_they_were(noises: Path) -> None:
    bank = NoiseRecordings(noises)(16_000)
    assert bank.dtype == torch.int16
    assert sorted(bank.unique_consecutive().tolist()) == [100, 200, 300]
    assert len(bank) == 48_000


def test_no_more_is_held_than_was_asked_for_and_the_choice_follows_from_the_seed(noises: Path) -> None:
    held = NoiseRecordings(noises, max_s=1.5)(16_000)
    assert len(held) == 24_000
    assert torch.equal(held, NoiseRecordings(noises, max_s=1.5)(16_000))
    firsts = {int(NoiseRecordings(noises, max_s=0.5, seed=seed)(16_000)[0]) for seed in range(20)}
    assert firsts == {100, 200, 300}


def test_another_rate_and_no_dataset_are_refused(noises: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="8000 Hz is needed"):
        NoiseRecordings(noises)(8_000)
    with pytest.raises(DataError, match="no prepared dataset"):
        NoiseRecordings(tmp_path)(16_000)


def test_every_channel_of_every_file_is_a_response_at_the_wanted_rate(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    stereo = np.zeros((800, 2), dtype=np.float32)
    stereo[10, 0], stereo[20, 1] = 0.5, -0.25
    soundfile.write(tmp_path / "a.wav", stereo, 16_000, subtype="FLOAT")
    slow = np.zeros(400, dtype=np.float32)
    slow[200] = 1.0
    soundfile.write(tmp_path / "deep" / "b.flac", slow, 8_000)
    (tmp_path / "notes.txt").write_text("not audio")
    found = ResponseFiles(tmp_path)(16_000)
    peaks = sorted((len(response), int(response.abs().argmax())) for response in found)
    assert peaks == [(800, 10), (800, 20), (800, 400)]
    assert all(response.dtype == torch.float32 for response in found)
    assert len(ResponseFiles(tmp_path, max_responses=2)(16_000)) == 2
    assert {len(response) for response in ResponseFiles(tmp_path, max_s=0.01)(16_000)} == {160}


def test_folders_without_responses_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no impulse responses"):
        ResponseFiles(tmp_path)(16_000)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"bad\.wav cannot be read"):
        ResponseFiles(tmp_path)(16_000)
