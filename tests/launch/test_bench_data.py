import json
import logging
import multiprocessing
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, MissingExtraError
from ossicle.data.audio import decode
from ossicle.data.buckets import choose_shapes
from ossicle.data.index import DatasetIndex
from ossicle.data.plan import Plan
from ossicle.data.quarantine import Quarantine
from ossicle.data.reader import BatchReader
from ossicle.launch import bench_data
from ossicle.launch.bench.long import prepare_long
from ossicle.launch.bench.ossicle import STAGES, StageTimes, TimedReader, stages
from ossicle.launch.bench.rounds import Result, Round, _play
from ossicle.launch.bench.work import Work
from ossicle.launch.cli import BENCHES, bench_usage, main
from ossicle.launch.config import compose

RATE_HZ = 16_000
IDENTITY = {"_target_": "ossicle.augmentation.identity.Identity", "_partial_": True}


def work_on(path: Path, scratch: Path, crop_s: float = 1.0, rows: int = 4, workers: int = 0) -> Work:
    return Work(path, "train", RATE_HZ, int(crop_s * RATE_HZ), rows, workers, 0, scratch, IDENTITY)


def spoken_in(path: Path) -> list[np.ndarray]:
    index = DatasetIndex.load(path, "train")
    return [decode(index.read_audio(row)) for row in range(index.num_utterances)]


def occurs(wave_S: np.ndarray, utterances: list[np.ndarray]) -> bool:
    """Whether a crop is a stretch of one of the utterances, to the bit."""
    needle = wave_S.tobytes()
    return any(utterance.tobytes().find(needle) % 4 == 0 for utterance in utterances)


@pytest.mark.parametrize("name", sorted(bench_data.systems()))
def test_every_system_delivers_crops_of_the_shards(name: str, synthetic_dataset: Path, tmp_path: Path) -> None:
    work = work_on(synthetic_dataset, tmp_path)
    utterances = spoken_in(synthetic_dataset)
    source = bench_data.systems()[name](work)
    seen = set()
    for _ in range(6):
        batch_BS = next(source)
        assert batch_BS.dtype == torch.float32
        assert batch_BS.shape == (4, RATE_HZ)
        for wave_S in batch_BS.numpy():
            assert occurs(wave_S, utterances)
            seen.add(wave_S.tobytes())
    assert len(seen) > 12  # it does not repeat itself


def test_utterances_that_are_too_short_are_left_out_by_every_system(synthetic_dataset: Path, tmp_path: Path) -> None:
    index = DatasetIndex.load(synthetic_dataset, "train")
    crop_s = float(np.sort(index.rows["samples"])[-3]) / RATE_HZ
    utterances = [u for u in spoken_in(synthetic_dataset) if len(u) >= crop_s * RATE_HZ]
    for name, system in bench_data.systems().items():
        if name == "ossicle":
            continue  # its crops are multiples of its stride
        batch_BS = next(system(work_on(synthetic_dataset, tmp_path, crop_s, rows=2)))
        assert all(occurs(wave_S, utterances) for wave_S in batch_BS.numpy()), name


@pytest.mark.parametrize("workers", [0, 2])
def test_stages_are_timed_in_the_process_that_reads_and_add_up(
    workers: int, synthetic_dataset: Path, tmp_path: Path
) -> None:
    audio_s, found = stages(work_on(synthetic_dataset, tmp_path, workers=workers), 0.5)
    assert [stage.name for stage in found] == list(STAGES)
    by_name = {stage.name: stage for stage in found}
    assert audio_s > 0
    assert all(stage.wall_s >= 0 for stage in found)
    assert by_name["decode"].wall_s > by_name["collate"].wall_s > 0
    assert by_name["read"].cpu_s > 0
    if workers == 0:
        assert sum(stage.wall_s for stage in found) == pytest.approx(0.5, abs=0.2)


def test_a_stage_within_another_counts_for_itself_alone(
    synthetic_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = DatasetIndex.load(synthetic_dataset, "train")
    shapes = choose_shapes(index.rows["samples"], max_crop_s=1, min_crop_s=1, num_shapes=1, batch_s=4)
    clock, quarantine = FrameClock().then(400, 320), Quarantine(None, 0.1)
    readers = [
        kind(index, shapes, seed=0, model_clock=clock, quarantine=quarantine) for kind in (BatchReader, TimedReader)
    ]
    assert isinstance(readers[1], TimedReader)
    readers[1].times = StageTimes(0)
    read = BatchReader._fetch

    def slow(self: BatchReader, row: int, first: int, size: int) -> bytes:
        time.sleep(0.02)
        return read(self, row, first, size)

    monkeypatch.setattr(BatchReader, "_fetch", slow)
    spec = Plan(index.rows, shapes, seed=0, window_shards=1).batch(0)
    plain, timed = (reader.read(spec) for reader in readers)
    assert torch.equal(plain.waveform_BS, timed.waveform_BS)
    found = {stage.name: stage.wall_s for stage in readers[1].times.stages()}
    assert found["read"] >= 4 * 0.02
    assert found["crop"] < 0.5 * found["read"]


def test_the_command_measures_and_writes_records(
    synthetic_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "records.json"
    caplog.set_level(logging.INFO)
    bench_data.task(
        compose(
            "bench_data",
            [
                f"shards={synthetic_dataset}", f"out={out}", f"cache={tmp_path / 'cache'}",
                "systems=[ossicle,libsndfile]",
                "scenario=long",
                "seconds=0.4", "rounds=2", "batch_s=8", "long_crop_s=4", "num_long=2", "long_s=30",
            ],
        )
    )  # fmt: skip
    records = json.loads(out.read_text())
    assert [(r["scenario"], r["system"]) for r in records] == [
        ("long", "ossicle"),
        ("long", "libsndfile"),
    ]
    for record in records:
        assert record["absent"] is None
        assert record["device"] == "cpu"
        assert record["batch"] * record["crop_s"] == 8
        assert record["audio_s_per_s"] > 0
        assert record["audio_s_per_cpu_s"] > 0
        assert record["step_ms"] == pytest.approx(8_000 / record["audio_s_per_s"], rel=0.5)
        assert record["peak_memory_bytes"] > 1e8
        assert len(record["rounds"]) == 2
        assert record["versions"]["libsndfile"]
    for record in records[::2]:
        assert list(record["stages"]) == list(STAGES)
        assert sum(stage["share"] for stage in record["stages"].values()) == pytest.approx(1)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("long: crops of 4 s", "libsndfile", "decode"))


def test_long_files_are_made_once_of_the_utterances(synthetic_dataset: Path, tmp_path: Path) -> None:
    index = DatasetIndex.load(synthetic_dataset, "train")
    paths = [prepare_long(index, tmp_path, num_files=3, file_s=20.0, seed=0, workers=1) for _ in range(2)]
    other = prepare_long(index, tmp_path, num_files=3, file_s=21.0, seed=0, workers=1)
    assert paths[0] == paths[1] != other
    long = DatasetIndex.load(paths[0], "train")
    assert long.rows["samples"].tolist() == [20 * RATE_HZ] * 3
    assert occurs(decode(long.read_audio(1))[:16_000], spoken_in(synthetic_dataset))


def test_a_missing_peer_is_told_with_its_reason(
    synthetic_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "lhotse", None)
    work = work_on(synthetic_dataset, tmp_path)
    records = []
    for name in ("datasets", "lhotse", "lhotse_files"):
        system = bench_data.systems()[name]
        with pytest.raises(MissingExtraError, match=r"ossicle\[bench\]"):
            next(system(work))
        ours, theirs = Pipe()
        _play(system, work, None, theirs, multiprocessing.get_start_method())
        reason = ours.recv()
        assert "needs the package" in reason
        records.append(bench_data._record(name, Result(absent=reason), "utterances", work))
    assert all(record["audio_s_per_s"] is None for record in records)
    bench_data.show(records, work)
    shown = capsys.readouterr().out
    assert shown.count("absent") == 6
    assert "ossicle[bench]" in shown


def test_rates_are_medians_of_rounds() -> None:
    result = Result(rounds=[Round(100, 10, 1.0, 2.0), Round(100, 10, 10.0, 1.0), Round(90, 9, 0.5, 1.0)])
    assert (result.rate(), result.cpu_rate(), result.step_ms()) == (100, 90, 100)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("systems=[osicle]", "did you mean ossicle"),
        ("scenario=lon", "did you mean long"),
        ("device=cpuu", "did you mean cpu"),
        ("seconds=0", "seconds=0"),
        ("crop_s=1000", "the longest utterance lasts"),
    ],
)
def test_words_that_mean_nothing_are_refused(override: str, words: str, synthetic_dataset: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        bench_data.task(compose("bench_data", [f"shards={synthetic_dataset}", override]))


def test_bench_lists_what_it_measures_and_refuses_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["bench"], ["bench", "--help"]):
        main(arguments)
        assert capsys.readouterr().out == bench_usage()
    assert all(name in bench_usage() for name in BENCHES)
    with pytest.raises(SystemExit) as caught:
        main(["bench", "dta"])
    assert caught.value.code == 2
    assert "did you mean data" in capsys.readouterr().err


def test_help_of_a_bench_is_light_and_speaks_as_one_types(tmp_path: Path) -> None:
    code = (
        "import atexit, sys; from ossicle.launch.cli import main\n"
        "atexit.register(lambda: print('torch' in sys.modules)); main(sys.argv[1:])"
    )
    for arguments, words in ((["--help"], "num_long"), (["shards=x", "--cfg", "job"], "long_crop_s")):
        ran = subprocess.run(
            [sys.executable, "-c", code, "bench", "data", *arguments],
            capture_output=True, text=True, cwd=tmp_path, check=True,
        )  # fmt: skip
        assert words in ran.stdout
        assert ran.stdout.strip().endswith("False")
    with pytest.raises(SystemExit):
        main(["bench", "data", "shrds=x"])
