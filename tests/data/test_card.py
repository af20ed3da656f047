import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ossicle.core.errors import DataError
from ossicle.data.card import read_summary, write_card
from ossicle.data.index import INDEX_DTYPE
from ossicle.data.records import Record
from ossicle.data.shards import Member

SPEAKERS, LANGUAGES = ("zoe", "", "anna", "mia"), ("pl", "de", "")


def record(split: str, number: int, seed: int, size: int = 40) -> Record:
    draw = np.random.default_rng(seed)
    members = tuple(
        Member(
            i * 1000, 700, i * 1000 + 800, 90, int(draw.integers(400, 600_000)), SPEAKERS[draw.integers(4)],
            LANGUAGES[draw.integers(3)], int(draw.integers(2**63)),
        )
        for i in range(size)
    )  # fmt: skip
    return Record(split, number, 10_000 + number, f"{seed:032x}", members, (("bad", "reason"),) if number == 1 else ())


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    for split in ("train", "dev"):
        (tmp_path / split).mkdir()
    empty = Record("train", 2, 0, "", (), (("worse", "reason"),))
    return [record("train", 0, 1), record("dev", 0, 2), record("train", 1, 3), empty, record("train", 3, 4)]


def test_an_index_is_what_numpy_saves_of_all_rows_at_once(tmp_path: Path, records: list[Record]) -> None:
    write_card(tmp_path, "c", "flac", "f", records)
    speakers, languages = sorted(SPEAKERS), sorted(LANGUAGES)
    used = [r for r in records if r.split == "train" and r.members]
    rows = [
        (shard, m.audio_offset, m.audio_bytes, m.meta_offset, m.meta_bytes, m.samples,
         speakers.index(m.speaker), languages.index(m.language), m.digest)
        for shard, r in enumerate(used) for m in r.members
    ]  # fmt: skip
    np.save(tmp_path / "expected.npy", np.array(rows, dtype=INDEX_DTYPE))
    assert (tmp_path / "train" / "index.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_a_card_says_what_a_count_says(tmp_path: Path, records: list[Record]) -> None:
    summary = write_card(tmp_path, "c", "opus", "f", records)
    assert summary == read_summary(tmp_path)
    assert (summary.num_bad, summary.audio_format) == (2, "opus")
    members = [m for r in records if r.split == "train" for m in r.members]
    train = summary.splits["train"]
    assert (train.num_utterances, train.num_shards, train.num_speakers, train.num_languages) == (120, 3, 3, 2)
    assert train.bytes == 30_004
    assert train.hours == pytest.approx(sum(m.samples for m in members) / 16_000 / 3600)
    for language in LANGUAGES:
        hours = sum(m.samples for m in members if m.language == language) / 16_000 / 3600
        assert train.hours_by_language[language] == pytest.approx(hours, abs=1e-4)
    card = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    lengths = card["splits"]["train"]["lengths"]
    counted = np.histogram([m.samples / 16_000 for m in members], bins=[*lengths["edges_s"], np.inf])[0]
    assert lengths["counts"] == counted.tolist()
    assert (card["speakers"], card["languages"]) == (sorted(SPEAKERS), sorted(LANGUAGES))
    assert [shard["name"] for shard in card["splits"]["train"]["shards"]] == [
        f"shard-{number:06d}.tar" for number in (0, 1, 3)
    ]


def test_an_error_among_records_leaves_what_stood_there(tmp_path: Path, records: list[Record]) -> None:
    write_card(tmp_path, "c", "flac", "f", records)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def broken() -> Iterator[Record]:
        yield records[0]
        raise DataError("lost", "find it")

    with pytest.raises(DataError, match="lost"):
        write_card(tmp_path, "c", "flac", "f", broken())
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no dataset that can be read"):
        read_summary(tmp_path)
