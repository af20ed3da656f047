import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typing_extensions import override

from ossicle.core.errors import ConfigError, DataError
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.data.prepare import Preparation, Share, prepare, verify
from ossicle.data.utterance import Source
from tests.data.noise import Noise, contents, run, run_part


def test_a_corpus_becomes_shards_with_an_index_and_a_card(tmp_path: Path) -> None:
    summary = run(Noise(), tmp_path / "data")
    assert {name: split.num_utterances for name, split in summary.splits.items()} == {"dev": 6, "train": 18}
    assert summary.splits["train"].num_shards == 5
    assert summary.splits["train"].num_speakers == 3
    assert summary.splits["train"].hours_by_language == {"xx": pytest.approx(18 / 3600, abs=1e-4)}
    assert summary.audio_format == "flac"
    assert summary.hours == pytest.approx(24 / 3600)
    index = DatasetIndex.load(tmp_path / "data", "train")
    assert summary.splits["train"].bytes == sum(path.stat().st_size for path in index.shard_paths)
    ids = [index.read_meta(row).id for row in range(index.num_utterances)]
    assert ids == [f"clip/{number}" for number in range(24) if number % 4]
    expected = np.random.default_rng(7).integers(-3000, 3000, 16_000, dtype=np.int16)
    np.testing.assert_array_equal(decode(index.read_audio(ids.index("clip/7"))) * 32768, expected)
    card = json.loads((tmp_path / "data" / "dataset.json").read_text(encoding="utf-8"))
    assert card["splits"]["train"]["lengths"]["counts"][1] == 18
    assert (tmp_path / "data" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert verify(tmp_path / "data") == 24


def test_neither_workers_nor_parts_change_a_byte(tmp_path: Path) -> None:
    run(Noise(bad=(5,)), tmp_path / "one", workers=1)
    run(Noise(bad=(5,)), tmp_path / "two", workers=2)
    wrote = [run_part(tmp_path / "parts", part, 3, Noise(bad=(5,))) for part in (2, 0, 1)]
    assert wrote == [False, False, True]
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "parts")


def test_parts_do_every_job_once(tmp_path: Path) -> None:
    shards: set[Path] = set()
    for part in range(3):
        run_part(tmp_path, part, 3)
        fresh = set(tmp_path.glob("*/shard-*.tar")) - shards
        assert len(fresh) in {2, 3}
        shards |= fresh
    assert len(shards) == 7


@pytest.mark.parametrize(("part", "parts"), [(3, 3), (-1, 2), (0, 0)])
def test_a_part_that_is_none_is_refused(part: int, parts: int) -> None:
    with pytest.raises(ConfigError, match=f"part={part} of parts={parts} does not exist"):
        Share(part, parts)


class Counting(Noise):
    """Counts how often it is listed."""

    listed = 0

    @override
    def sources(self) -> Iterator[Source]:
        type(self).listed += 1
        yield from super().sources()


def test_tasks_of_one_array_list_the_corpus_once(tmp_path: Path) -> None:
    Counting.listed = 0
    for part in range(3):
        run_part(tmp_path / "data", part, 3, Counting(), array="7")
    assert Counting.listed == 1
    run(Noise(), tmp_path / "plain")
    assert contents(tmp_path / "data") == contents(tmp_path / "plain")
    for part in range(2):
        run_part(tmp_path / "other", part, 3, Counting(), array=f"{part}")
    assert Counting.listed == 3


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    first = run(Noise(), tmp_path / "data")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert run(Noise(), tmp_path / "data") == first
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_bad_sources_are_left_out_and_named_and_nothing_else_is_lost(tmp_path: Path) -> None:
    summary = run(Noise(bad=(4, 9)), tmp_path / "data")
    assert summary.num_bad == 2
    assert sum(split.num_utterances for split in summary.splits.values()) == 22
    lines = (tmp_path / "data" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["name"] for line in lines} == {"clip/4", "clip/9"}
    assert json.loads(lines[0])["reason"].endswith("is bad")


def test_too_many_bad_sources_stop_the_run_and_keep_what_is_done(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="inputs are bad"):
        run(Noise(40, bad=tuple(range(10, 40))), tmp_path / "data")
    assert not (tmp_path / "data" / "dataset.json").exists()
    assert (tmp_path / "data" / "quarantine.jsonl").exists()
    assert (tmp_path / "data" / "dev" / "shard-000000.tar").exists()


def test_a_shard_of_bad_sources_alone_is_not_written(tmp_path: Path) -> None:
    summary = run(Noise(bad=(0, 4, 8, 12)), tmp_path / "data", max_bad_fraction=0.5)
    assert summary.splits["dev"].num_shards == 1
    assert not (tmp_path / "data" / "dev" / "shard-000000.tar").exists()
    assert verify(tmp_path / "data") == 20


def test_a_shard_of_an_earlier_plan_goes_where_now_all_its_sources_are_bad(tmp_path: Path) -> None:
    run(Noise(), tmp_path / "data")
    (tmp_path / "data" / "dataset.json").unlink()
    corpus = Noise(bad=(0, 4, 8, 12))
    corpus.name = "other noise"
    run(corpus, tmp_path / "data", max_bad_fraction=0.5)
    assert not (tmp_path / "data" / "dev" / "shard-000000.tar").exists()


def test_a_corpus_with_nothing_good_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 3 inputs are bad"):
        run(Noise(3, bad=(0, 1, 2)), tmp_path / "data")
    assert len((tmp_path / "data" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    with pytest.raises(DataError, match="has no audio"):
        run(Noise(0), tmp_path / "data")


def test_another_corpus_is_not_written_over(tmp_path: Path) -> None:
    run(Noise(), tmp_path / "data")
    before = contents(tmp_path / "data")
    with pytest.raises(DataError, match="other sources or settings"):
        run(Noise(30), tmp_path / "data")
    with pytest.raises(DataError, match="other sources or settings"):
        run(Noise(), tmp_path / "data", audio_format="pcm")
    assert {name: data for name, data in contents(tmp_path / "data").items() if not name.startswith(".plan")} == {
        name: data for name, data in before.items() if not name.startswith(".plan")
    }


def test_a_grown_corpus_keeps_shards_that_stay_and_drops_those_that_go(tmp_path: Path) -> None:
    run(Noise(40), tmp_path / "data")
    kept = tmp_path / "data" / "train" / "shard-000000.tar"
    before = kept.stat().st_mtime_ns
    (tmp_path / "data" / "dataset.json").unlink()
    run(Noise(24), tmp_path / "data")
    run(Noise(24), tmp_path / "fresh")
    assert kept.stat().st_mtime_ns == before
    assert contents(tmp_path / "data") == contents(tmp_path / "fresh")


def test_a_lost_shard_is_written_again(tmp_path: Path) -> None:
    run(Noise(), tmp_path / "data")
    before = contents(tmp_path / "data")
    (tmp_path / "data" / "train" / "shard-000002.tar").unlink()
    run(Noise(), tmp_path / "data")
    assert contents(tmp_path / "data") == before


def test_a_damaged_record_is_written_again_with_its_shard(tmp_path: Path) -> None:
    run(Noise(), tmp_path / "data")
    before = contents(tmp_path / "data")
    record = tmp_path / "data" / ".records" / "train" / "000002.json"
    record.write_bytes(record.read_bytes()[:100])
    run(Noise(), tmp_path / "data")
    assert contents(tmp_path / "data") == before


@pytest.mark.parametrize(("audio_format", "suffix"), [("flac", "flac"), ("opus", "opus"), ("pcm", "wav")])
def test_every_codec_is_prepared_verified_and_the_same_each_time(
    tmp_path: Path, audio_format: str, suffix: str
) -> None:
    summary = run(Noise(8), tmp_path / "a", audio_format=audio_format)
    run(Noise(8), tmp_path / "b", audio_format=audio_format)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert summary.audio_format == audio_format
    assert verify(tmp_path / "a") == 8
    index = DatasetIndex.load(tmp_path / "a", "train")
    assert {len(decode(index.read_audio(row))) for row in range(index.num_utterances)} == {16_000}
    listed = subprocess.run(["tar", "tf", str(index.shard_paths[0])], capture_output=True, text=True, check=True)
    assert [name.rpartition(".")[2] for name in listed.stdout.split()] == [suffix, "json"] * 4


def test_an_unknown_codec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="audio_format=mp3 is unknown"):
        run(Noise(), tmp_path, audio_format="mp3")


class Many(Noise):
    """Sources that weigh next to nothing."""

    @override
    def sources(self) -> Iterator[Source]:
        for number in range(self.num_sources):
            yield Source(f"clip/{number}", "train", 1.0)


MEASURE = """
import sys
from pathlib import Path
from ossicle.core.memory import peak_resident_bytes
from ossicle.data.card import write_card
from ossicle.data.jobs import make_plan
from ossicle.data.records import Record
from ossicle.data.shards import Member
from tests.data.test_prepare import Many
output, number = Path(sys.argv[1]), int(sys.argv[2])
(output / "train").mkdir(parents=True)
plan = make_plan(Many(number), output, shard_s=500, audio_format="flac")
def records():
    for job, sources in plan.with_sources(lambda job: True):
        members = [Member(i, 99, i, 99, 16_000, f"speaker-{i % 50}", "xx", i) for i in range(len(sources))]
        yield Record(job.split, job.number, 1, "0" * 32, tuple(members), ())
summary = write_card(output, "many", "flac", plan.fingerprint, records())
print(summary.splits["train"].num_utterances, peak_resident_bytes())
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    peaks = {}
    for number in (10_000, 110_000):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / str(number)), str(number)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        found, peaks[number] = map(int, ran.stdout.split())
        assert found == number
    assert (peaks[110_000] - peaks[10_000]) / 100_000 < 40  # a set of names alone takes more than 100 bytes each


def test_prepare_is_a_preparation_of_one_part(tmp_path: Path) -> None:
    summary = prepare(Noise(), tmp_path / "a", shard_s=4, workers=1, max_bad_fraction=0.1)
    again = Preparation(Noise(), tmp_path / "b", shard_s=4, max_bad_fraction=0.1).run(Share(), workers=1)
    assert again is not None
    assert again.content_hash == summary.content_hash
