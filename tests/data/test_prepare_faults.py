import dataclasses
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typing_extensions import override

from data_prep.folder import FolderCorpus
from ossicle.core.errors import DataError
from ossicle.data.index import DatasetIndex
from ossicle.data.prepare import Share, verify
from ossicle.data.utterance import Sample, Source
from tests.data.noise import Noise, contents, run, run_part, start_process


def wait_for_shards(process: "subprocess.Popen[bytes]", output: Path, number: int) -> None:
    while len(list(output.glob(".records/*/*.json"))) < number:
        assert process.poll() is None
        time.sleep(0.005)


@pytest.mark.parametrize("call", ["run(Noise(wait_s=0.05), output)", "run(Noise(wait_s=0.1), output, workers=2)"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, call: str) -> None:
    run(Noise(), tmp_path / "whole")
    killed = tmp_path / "killed"
    process = start_process(killed, call)
    wait_for_shards(process, killed, 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "dataset.json").exists()
    finished = [killed / p.parent.name / f"shard-{p.stem}.tar" for p in killed.glob(".records/*/*.json")]
    times = {path: path.stat().st_mtime_ns for path in finished}
    run(Noise(), killed)
    assert times == {path: path.stat().st_mtime_ns for path in finished}
    assert contents(killed) == contents(tmp_path / "whole")
    assert len(finished) < 7


def test_runs_killed_at_random_with_any_number_of_parts_end_with_the_same_bytes(tmp_path: Path) -> None:
    run(Noise(bad=(5,)), tmp_path / "whole")
    killed = tmp_path / "killed"
    draw = random.Random(4)
    killed.mkdir()
    for parts in (1, 2, 3):
        call = f"run_part(output, {parts - 1}, {parts}, Noise(bad=(5,), wait_s=0.03))"
        process = start_process(killed, call)
        while process.poll() is None and not (killed / ".lock").exists():
            time.sleep(0.005)
        time.sleep(draw.random() * 0.5)
        process.kill()
        process.wait()
    wrote = [run_part(killed, part, 4, Noise(bad=(5,))) for part in range(4)]
    assert wrote[-1]
    assert contents(killed) == contents(tmp_path / "whole")


def test_two_processes_may_prepare_one_directory_and_share_the_work(tmp_path: Path) -> None:
    run(Noise(), tmp_path / "alone")
    processes = [start_process(tmp_path / "both", "run(Noise(wait_s=0.05), output)") for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


NO_LOCKS = """
    import errno, fcntl
    def refuse(*_): raise OSError(errno.ENOLCK, "No locks available")
    fcntl.lockf = refuse
    run(Noise(wait_s=0.02), output)
"""


def test_without_locks_two_processes_do_the_same_twice_and_end_with_the_same_bytes(tmp_path: Path) -> None:
    run(Noise(), tmp_path / "alone")
    processes = [start_process(tmp_path / "both", NO_LOCKS.strip()) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


def test_parts_that_run_at_once_write_one_card(tmp_path: Path) -> None:
    run(Noise(), tmp_path / "alone")
    processes = [
        start_process(tmp_path / "parts", f"run_part(output, {part}, 3, Noise(wait_s=0.02), array='a')")
        for part in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert contents(tmp_path / "parts") == contents(tmp_path / "alone")


class Deadly(Noise):
    """Kills the process that reads one source, as the system does when memory runs out: always, or the first time."""

    def __init__(self, flag: Path | None, deadly: tuple[str, ...] = ("clip/9",)) -> None:
        super().__init__()
        self.flag = flag
        self.deadly = deadly

    @override
    def load(self, source: Source) -> Sample:
        if source.name in self.deadly and (self.flag is None or not self.flag.exists()):
            if self.flag is not None:
                self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(source)


def test_a_worker_that_dies_once_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    run(Noise(), tmp_path / "whole")
    run(Deadly(tmp_path / "flag"), tmp_path / "data", workers=2)
    assert (tmp_path / "flag").exists()
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_a_source_that_kills_every_process_is_named_and_the_rest_is_intact(tmp_path: Path) -> None:
    summary = run(Deadly(None), tmp_path / "data", workers=2)
    assert summary.num_bad == 1
    assert sum(split.num_utterances for split in summary.splits.values()) == 23
    entry = json.loads((tmp_path / "data" / "quarantine.jsonl").read_text(encoding="utf-8"))
    assert entry["name"] == "clip/9"
    assert "died twice" in entry["reason"]
    assert verify(tmp_path / "data") == 23


def test_processes_that_die_whatever_they_read_stop_the_run(tmp_path: Path) -> None:
    deadly = tuple(f"clip/{number}" for number in range(24))
    with pytest.raises(DataError, match=r"the process that prepared .* died again and again") as caught:
        run(Deadly(None, deadly), tmp_path / "data", workers=2)
    assert "fewer workers" in caught.value.mend


def test_half_written_files_of_other_tasks_are_left_alone_until_they_are_stale(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    fresh, stale = (tmp_path / "train" / f".shard-000000.tar.{name}.part" for name in ("fresh", "stale"))
    for part in (fresh, stale):
        part.write_bytes(b"half")
    long_ago = time.time() - 7200
    os.utime(stale, (long_ago, long_ago))
    assert not run_part(tmp_path, 0, 2)
    assert fresh.exists()
    assert not stale.exists()
    assert run_part(tmp_path, 1, 2)
    assert not fresh.exists()


class Swept(Noise):
    """Another task finishes the same shard, and sweeps, while this one still writes it."""

    def __init__(self, output: Path) -> None:
        super().__init__()
        self.output = output
        self.swept = False

    @override
    def load(self, source: Source) -> Sample:
        if source.name == "clip/2" and not self.swept:
            self.swept = True
            process = start_process(self.output, NO_LOCKS.strip())
            assert process.wait() == 0
        return super().load(source)


def test_a_task_whose_shard_another_has_finished_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.lockf", lambda *_: None)
    run(Noise(), tmp_path / "alone")
    corpus = Swept(tmp_path / "data")
    run(corpus, tmp_path / "data")
    assert corpus.swept
    assert contents(tmp_path / "data") == contents(tmp_path / "alone")


class Listed(Noise):
    """Sources of given names and splits."""

    def __init__(self, *listed: tuple[str, str]) -> None:
        super().__init__()
        self.listed = listed

    @override
    def sources(self) -> Iterator[Source]:
        yield from (Source(name, split, 1.0) for name, split in self.listed)


def test_names_that_would_clash_or_climb_are_refused(tmp_path: Path) -> None:
    many = [(f"clip/{number}", "train") for number in range(1000)]
    with pytest.raises(DataError, match="two sources 'clip/3', and 1 more"):
        run(Listed(*many[3:], ("same", "train"), ("same", "dev"), *many[:4], ("clip/3", "train")), tmp_path / "data")
    with pytest.raises(DataError, match=r"'\.\./outside', which is no folder name"):
        run(Listed(("clip/1", "../outside")), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_output_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be made") as caught:
        run(Noise(), tmp_path / "file" / "data")
    assert caught.value.mend == "name another output"


def write_wave(
    path: Path, rate_hz: int = 16_000, channels: int = 1, samples: int = 8_000, subtype: str = "PCM_16"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(0).normal(scale=0.1, size=(samples, channels))
    soundfile.write(os.fsencode(path), wave, rate_hz, subtype=subtype, format=path.suffix[1:].upper())


def test_odd_files_are_taken_or_counted_and_the_rest_is_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "in"
    long_name = "/".join(["語" * 80, "x" * 200, f"{'ß' * 100}.wav"])
    write_wave(root / long_name)
    write_wave(root / "a" / "8khz.wav", 8_000)
    write_wave(root / "a" / "stereo.wav", 44_100, 2, 44_100)
    write_wave(root / "a" / "24bit.flac", subtype="PCM_24")
    write_wave(root / "a" / "one.wav", samples=1)
    write_wave(root / "secret" / "b.wav")
    undecodable = os.fsdecode(b"caf\xe9.wav")
    write_wave(root / os.fsdecode(b"sp\xe9aker") / undecodable)
    scan = os.scandir

    def guarded(path: str) -> Iterator["os.DirEntry[str]"]:
        # the user who runs the tests may be root, whom no folder refuses
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", guarded)
    summary = run(FolderCorpus(root, dev_fraction=0, test_fraction=0), tmp_path / "out", max_bad_fraction=1.0)
    index = DatasetIndex.load(tmp_path / "out", "train")
    found = {index.read_meta(row).id: int(index.rows[row]["samples"]) for row in range(index.num_utterances)}
    expected = {long_name: 8_000, "a/8khz.wav": 16_000, "a/stereo.wav": 16_000, "a/24bit.flac": 8_000}
    assert found == expected | {"sp\udce9aker/caf\udce9.wav": 8_000}
    assert "sp\udce9aker" in index.speakers
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    reasons = {entry["name"]: entry["reason"] for entry in map(json.loads, lines)}
    assert summary.num_bad == 2
    assert "1 samples" in reasons["a/one.wav"]
    assert "Permission denied" in reasons["secret"]
    assert verify(tmp_path / "out") == 5


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


def test_a_share_says_where_it_logs() -> None:
    assert Share().log_name == "quarantine.jsonl"
    assert Share(1, 4).log_name == "quarantine-1-of-4.jsonl"
