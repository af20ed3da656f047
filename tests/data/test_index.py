import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ossicle.core.errors import DataError
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.data.shards import digest_bytes


@pytest.fixture
def copied(synthetic_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_dataset, tmp_path / "copy"))


def test_every_row_reads_what_the_tar_holds(synthetic_dataset: Path) -> None:
    index = DatasetIndex.load(synthetic_dataset, "train")
    row = 0
    for shard, path in enumerate(index.shard_paths):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name in (name for name in members if name.endswith(".flac")):
            audio, meta = members[name], json.loads(members[name.removesuffix("flac") + "json"])
            utterance = index.read_meta(row)
            assert index.rows[row]["shard"] == shard
            assert index.read_audio(row) == audio
            assert int(index.rows[row]["digest"]) == digest_bytes(audio)
            assert index.rows[row]["samples"] == len(decode(audio))
            assert (utterance.id, utterance.text) == (meta["id"], meta["text"])
            assert index.speakers[index.rows[row]["speaker"]] == utterance.speaker
            assert index.languages[index.rows[row]["language"]] == utterance.language
            row += 1
    assert row == index.num_utterances > 10
    assert len(index.shard_paths) > 2


def test_hours_and_samples_are_sums_over_rows(synthetic_dataset: Path) -> None:
    index = DatasetIndex.load(synthetic_dataset, "train")
    lengths = [len(decode(index.read_audio(row))) for row in range(index.num_utterances)]
    assert index.num_samples == sum(lengths)
    assert index.hours == pytest.approx(sum(lengths) / 16_000 / 3600)


def test_splits_share_the_numbers_of_speakers_and_languages(synthetic_dataset: Path) -> None:
    train, test = (DatasetIndex.load(synthetic_dataset, split) for split in ("train", "test"))
    assert train.speakers == test.speakers
    assert train.languages == test.languages
    assert train.content_hash != test.content_hash
    assert not set(np.unique(train.rows["speaker"])) & set(np.unique(test.rows["speaker"]))


def test_an_index_pickles_as_its_path(synthetic_dataset: Path) -> None:
    index = DatasetIndex.load(synthetic_dataset, "train")
    data = pickle.dumps(index)
    assert len(data) < 1000
    assert pickle.loads(data).read_audio(3) == index.read_audio(3)  # noqa: S301  made in the line above


def test_few_files_are_open_at_a_time(synthetic_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossicle.data.index._MAX_OPEN", 2)
    index = DatasetIndex.load(synthetic_dataset, "train")
    for row in range(index.num_utterances):
        assert digest_bytes(index.read_audio(row)) == int(index.rows[row]["digest"])
        assert len(index._descriptors) <= 2


def test_a_folder_that_was_not_prepared_says_how_to_prepare_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared dataset") as caught:
        DatasetIndex.load(tmp_path, "train")
    assert "ossicle prepare" in caught.value.mend


def test_an_unknown_split_names_those_that_exist(synthetic_dataset: Path) -> None:
    with pytest.raises(DataError, match="no split 'valid'; it has train, dev, test"):
        DatasetIndex.load(synthetic_dataset, "valid")


def test_a_missing_or_short_shard_is_found_at_once(copied: Path) -> None:
    shard = copied / "train" / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"shard-000001\.tar has \d+ bytes and should have"):
        DatasetIndex.load(copied, "train")
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar is missing"):
        DatasetIndex.load(copied, "train")


def test_a_damaged_index_or_card_is_named(copied: Path) -> None:
    rows = copied / "train" / "index.npy"
    whole = rows.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no array"):
        rows.write_bytes(damaged)
        with pytest.raises(DataError, match=r"index\.npy"):
            DatasetIndex.load(copied, "train")
    np.save(rows, np.zeros(3))
    with pytest.raises(DataError, match="is not the index of"):
        DatasetIndex.load(copied, "train")
    (copied / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"dataset\.json cannot be read"):
        DatasetIndex.load(copied, "train")


def test_damaged_metadata_names_shard_and_row(copied: Path) -> None:
    index = DatasetIndex.load(copied, "train")
    with index.shard_paths[0].open("r+b") as file:
        file.seek(int(index.rows[1]["meta_offset"]))
        file.write(b"!!!!")
    with pytest.raises(DataError, match=r"shard-000000\.tar: the metadata of row 1"):
        index.read_meta(1)
