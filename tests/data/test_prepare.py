import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
from typing_extensions import override

from ossicle.core.errors import DataError
from ossicle.data.audio import decode
from ossicle.data.card import Summary
from ossicle.data.index import DatasetIndex
from ossicle.data.prepare import prepare, verify
from ossicle.data.utterance import Corpus, Sample, Source, Utterance


class Noise(Corpus):
    """Noise of one second, told apart by its seed; the sources named bad are bad."""

    def __init__(self, num_sources: int = 24, bad: tuple[int, ...] = (), wait_s: float = 0.0) -> None:
        self.name = "noise"
        self.num_sources = num_sources
        self.bad = bad
        self.wait_s = wait_s

    @override
    def sources(self) -> Iterator[Source]:
        for number in range(self.num_sources):
            yield Source(f"clip/{number}", "dev" if number % 4 == 0 else "train", 1.0)

    @override
    def load(self, source: Source) -> Sample:
        number = int(source.name.removeprefix("clip/"))
        time.sleep(self.wait_s)
        if number in self.bad:
            raise DataError(f"{source.name} is bad", "mend it")
        pcm = np.random.default_rng(number).integers(-3000, 3000, 16_000, dtype=np.int16)
        return Sample(Utterance(source.name, source.split, "xx", f"speaker-{number % 3}"), pcm)


def run(corpus: Corpus, output: Path, workers: int = 1, max_bad_fraction: float = 0.1) -> Summary:
    return prepare(corpus, output, shard_s=4, workers=workers, max_bad_fraction=max_bad_fraction)


def contents(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()}


def start_process(output: Path, wait_s: float, workers: int) -> "subprocess.Popen[bytes]":
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_prepare import Noise, run
if __name__ == "__main__":
    run(Noise(wait_s={wait_s}), Path({str(output)!r}), workers={workers})
"""
    path = output.parent / f"{output.name}.py"
    path.write_text(script, encoding="utf-8")
    return subprocess.Popen([sys.executable, str(path)])


def test_a_corpus_becomes_shards_with_an_index_and_a_card(tmp_path: Path) -> None:
    summary = run(Noise(), tmp_path / "data")
    assert {name: split.num_utterances for name, split in summary.splits.items()} == {"dev": 6, "train": 18}
    assert summary.splits["train"].num_shards == 5
    assert summary.splits["train"].num_speakers == 3
    assert summary.hours == pytest.approx(24 / 3600)
    index = DatasetIndex.load(tmp_path / "data", "train")
    ids = [index.read_meta(row).id for row in range(index.num_utterances)]
    assert ids == [f"clip/{number}" for number in range(24) if number % 4]
    expected = np.random.default_rng(7).integers(-3000, 3000, 16_000, dtype=np.int16)
    np.testing.assert_array_equal(decode(index.read_audio(ids.index("clip/7"))) * 32768, expected)
    card = json.loads((tmp_path / "data" / "dataset.json").read_text(encoding="utf-8"))
    assert card["splits"]["train"]["lengths"]["counts"][1] == 18
    assert (tmp_path / "data" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert verify(tmp_path / "data") == 24


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    run(Noise(bad=(5,)), tmp_path / "one", workers=1)
    run(Noise(bad=(5,)), tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    first = run(Noise(), tmp_path / "data")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.name != ".lock"}
    assert run(Noise(), tmp_path / "data") == first
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, workers: int) -> None:
    run(Noise(), tmp_path / "whole")
    killed = tmp_path / "killed"
    process = start_process(killed, wait_s=0.1, workers=workers)
    while not list(killed.glob(".records/*/*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "dataset.json").exists()
    finished = [killed / p.parent.name / f"shard-{p.stem}.tar" for p in killed.glob(".records/*/*.json")]
    times = {path: path.stat().st_mtime_ns for path in finished}
    run(Noise(), killed)
    assert times == {path: path.stat().st_mtime_ns for path in finished}
    assert contents(killed) == contents(tmp_path / "whole")
    assert len(finished) < 7


def test_two_processes_may_prepare_one_directory(tmp_path: Path) -> None:
    run(Noise(), tmp_path / "alone")
    processes = [start_process(tmp_path / "both", wait_s=0.02, workers=1) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


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
    assert (tmp_path / "data" / "dev" / "shard-000000.tar").exists()


def test_a_shard_of_bad_sources_alone_is_not_written(tmp_path: Path) -> None:
    summary = run(Noise(bad=(0, 4, 8, 12)), tmp_path / "data", max_bad_fraction=0.5)
    assert summary.splits["dev"].num_shards == 1
    assert not (tmp_path / "data" / "dev" / "shard-000000.tar").exists()
    assert verify(tmp_path / "data") == 20


def test_a_corpus_with_nothing_good_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 3 inputs are bad"):
        run(Noise(3, bad=(0, 1, 2)), tmp_path / "data")
    with pytest.raises(DataError, match="has no audio"):
        run(Noise(0), tmp_path / "data")


def test_another_corpus_is_not_written_over(tmp_path: Path) -> None:
    run(Noise(), tmp_path / "data")
    before = contents(tmp_path / "data")
    with pytest.raises(DataError, match="other sources or settings"):
        run(Noise(30), tmp_path / "data")
    assert contents(tmp_path / "data") == before


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


@pytest.mark.parametrize("part", ["audio", "metadata"])
def test_verify_finds_one_changed_byte(tmp_path: Path, part: str) -> None:
    run(Noise(), tmp_path / "data")
    index = DatasetIndex.load(tmp_path / "data", "train")
    row = index.rows[7]
    offset = int(row["audio_offset"]) + 5000 if part == "audio" else int(row["meta_offset"]) + 10
    with index.shard_paths[int(row["shard"])].open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff")
    with pytest.raises(DataError, match=f"the {part}.*shard-000001"):
        verify(tmp_path / "data")


class Twice(Noise):
    @override
    def sources(self) -> Iterator[Source]:
        yield from (Source("same", "train", 1.0) for _ in range(2))


class Climbing(Noise):
    @override
    def sources(self) -> Iterator[Source]:
        yield Source("clip/1", "../outside", 1.0)


def test_names_that_would_clash_or_climb_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two sources 'same'"):
        run(Twice(), tmp_path / "data")
    with pytest.raises(DataError, match=r"'\.\./outside', which is no folder name"):
        run(Climbing(), tmp_path / "data")
    assert not (tmp_path / "data").exists()


class Deadly(Noise):
    @override
    def load(self, source: Source) -> Sample:
        if source.name == "clip/9":
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
        return super().load(source)


def test_a_dying_worker_is_an_error_that_says_to_start_again(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a process that prepared a shard died") as caught:
        run(Deadly(), tmp_path / "data", workers=2)
    assert "finished shards are kept" in caught.value.mend
    summary = run(Noise(), tmp_path / "data")
    assert summary.splits["train"].num_utterances == 18


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Generator[Path]:
    """A file system of 192 KiB, or a skip with the reason where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command; test_shards.py injects a full file instead")
    if done.returncode:
        pytest.skip(
            f"no file system may be mounted ({done.stderr.strip()}); test_shards.py injects a full file instead"
        )
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_finished_shards_and_leaves_no_half_ones(tiny_disk: Path) -> None:
    output = tiny_disk / "data"
    with pytest.raises(DataError, match="the disk is full") as caught:
        run(Noise(), output)
    assert "make room" in caught.value.mend
    shards = list(output.glob("*/shard-*.tar"))
    assert shards
    assert not list(output.rglob("*.part"))
    assert not (output / "dataset.json").exists()
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)
    times = {path: path.stat().st_mtime_ns for path in shards}
    assert dataclasses.asdict(run(Noise(), output))["num_bad"] == 0
    assert verify(output) == 24
    assert times == {path: path.stat().st_mtime_ns for path in shards}
