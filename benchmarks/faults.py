"""What the data engine does about faults, counted.

    python benchmarks/faults.py folder=faults out=faults.json

Each fault is made in a small corpus of its own; the record says how many utterances came through, how many were named
in the quarantine log and why, and whether all that is left is what it would be without the fault.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile

from data_prep.folder import FolderCorpus
from ossicle.core.clock import FrameClock
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.data.module import ShardData
from ossicle.data.prepare import prepare, verify
from ossicle.data.stream import StreamData

NUM_FILES, RATE_HZ = 120, 16_000
CLOCK = FrameClock().then(400, 320)


def noise(seconds: float, seed: int, rate_hz: int = RATE_HZ, channels: int = 1) -> np.ndarray:
    """Noise that its seed tells from other noise."""
    return np.random.default_rng(seed).normal(scale=0.1, size=(round(seconds * rate_hz), channels))


def recordings(folder: Path) -> Path:
    """Good recordings of one to three seconds by six speakers."""
    for number in range(NUM_FILES):
        path = folder / f"speaker-{number % 6}" / f"{number:03d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(1 + number % 20 / 10, number), RATE_HZ)
    return folder


def prepared(source: Path, output: Path, workers: int = 1) -> None:
    """Shards of 20 seconds."""
    corpus = FolderCorpus(source, dev_fraction=0, test_fraction=0)
    prepare(corpus, output, shard_s=20, workers=workers, max_bad_fraction=0.2)


def bad_in(log: Path) -> dict[str, str]:
    """Reasons by name."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return {entry["name"]: entry["reason"] for entry in map(json.loads, lines)}


def audio_by_id(output: Path) -> dict[str, bytes]:
    """Encoded audio of every utterance."""
    index = DatasetIndex.load(output, "train")
    return {index.read_meta(row).id: index.read_audio(row) for row in range(index.num_utterances)}


def odd_files(folder: Path, good: Path) -> dict[str, object]:
    """Files that a corpus of strangers holds, among good ones."""
    source = folder / "in"
    shutil.copytree(folder / "recordings", source)
    data = (source / "speaker-0" / "000.flac").read_bytes()
    (source / "bad").mkdir()
    for name, content in {
        "truncated-1.flac": data[: len(data) // 2], "truncated-2.flac": data[:100], "empty.wav": b"",
        "text.mp3": b"no audio at all\n" * 50,
    }.items():  # fmt: skip
        (source / "bad" / name).write_bytes(content)
    soundfile.write(source / "bad" / "one-sample.wav", noise(1 / RATE_HZ, 0), RATE_HZ)
    odd = source / "odd"
    long_name = odd / ("語" * 80) / ("x" * 200) / f"{'ß' * 100}.wav"
    long_name.parent.mkdir(parents=True)
    soundfile.write(long_name, noise(1, 1), RATE_HZ)
    soundfile.write(odd / "8-khz.wav", noise(1, 2, 8_000), 8_000)
    soundfile.write(odd / "44-khz-stereo.wav", noise(1, 3, 44_100, 2), 44_100)
    soundfile.write(odd / "24-bit.flac", noise(1, 4), RATE_HZ, subtype="PCM_24")
    with soundfile.SoundFile(odd / "three-hours.flac", "w", 8_000, 1) as file:
        for minute in range(180):
            file.write(noise(60, minute, 8_000))
    prepared(source, folder / "out")
    made, reasons = audio_by_id(folder / "out"), bad_in(folder / "out" / "quarantine.jsonl")
    before = audio_by_id(good)
    index = DatasetIndex.load(folder / "out", "train")
    return {
        "good": len(made),
        "expected": NUM_FILES + 5,
        "quarantined": sorted(reasons.items()),
        "rest_intact": all(made[key] == data for key, data in before.items()) and verify(folder / "out") == len(made),
        "longest_hours": round(int(index.rows["samples"].max()) / RATE_HZ / 3600, 3),
    }


def started(call: str) -> "subprocess.Popen[bytes]":
    """A process of its own that prepares."""
    text = f"from pathlib import Path\nfrom benchmarks.faults import *\nif __name__ == '__main__':\n    {call}\n"
    path = Path(os.environ["FAULTS"]) / f"{time.monotonic_ns()}.py"
    path.write_text(text, encoding="utf-8")
    return subprocess.Popen([sys.executable, str(path)], start_new_session=True)  # noqa: S603


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def two_jobs(folder: Path, good: Path) -> dict[str, object]:
    """Two commands prepare one directory at the same time."""
    call = f"prepared(Path({str(folder / 'recordings')!r}), Path({str(folder / 'out')!r}))"
    codes = [process.wait() for process in [started(call), started(call)]]
    same = contents(folder / "out") == contents(good)
    return {"good": NUM_FILES, "expected": NUM_FILES, "ends": codes, "rest_intact": same}


def killed_job(folder: Path, good: Path) -> dict[str, object]:
    """A command with two processes is killed with all of them, three times, and started again."""
    call = f"prepared(Path({str(folder / 'recordings')!r}), Path({str(folder / 'out')!r}), 2)"
    done = []
    for wanted in (1, 4, 7):
        process = started(call)
        while process.poll() is None and len(list((folder / "out" / ".records").glob("*/*.json"))) < wanted:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done.append(len(list((folder / "out" / ".records").glob("*/*.json"))))
    started(call).wait()
    return {
        "good": NUM_FILES, "expected": NUM_FILES, "shards_when_killed": done,
        "rest_intact": contents(folder / "out") == contents(good),
    }  # fmt: skip


def module(shards: Path, log: Path, workers: int = 0, **changes: object) -> ShardData:
    """Planned batches of it."""
    values: dict[str, object] = {
        "max_crop_s": 1.0, "min_crop_s": 0.9, "num_shapes": 1, "batch_s": 4.0, "window_shards": 1, "workers": workers,
        "seed": 0, "max_bad_fraction": 0.5, "quarantine": log, **changes,
    }  # fmt: skip
    data = ShardData(shards, **values)
    data.set_clock(CLOCK)
    return data


def epoch_of(data: ShardData, fault: Callable[[], None] | None = None) -> dict[int, bytes]:
    """Crops of an epoch by row, after a fault that comes with the second batch."""
    found: dict[int, bytes] = {}
    for number, batch in enumerate(islice(iter(data.train_dataloader()), data.plan.first_position(1))):
        if number == 1 and fault is not None:
            fault()
        for row, wave in zip(batch.ids_B.tolist(), batch.waveform_BS.numpy(), strict=True):
            found.setdefault(row, wave.tobytes())
    return found


def reading(
    folder: Path, good: Path, fault: Callable[[DatasetIndex], None], *, before: bool = False
) -> dict[str, object]:
    """An epoch over a copy that is damaged before it or in its middle."""
    copy, log = folder / "copy", folder / "bad.jsonl"
    shutil.copytree(good, copy)
    data, whole = module(copy, log), epoch_of(module(good, folder / "none.jsonl"))
    if before:
        fault(data.index)
    heard = epoch_of(data, None if before else lambda: fault(data.index))
    reasons = bad_in(log)
    named = {int(name.split(" row ")[1].split()[0]) for name in reasons}
    return {
        "good": len(heard), "expected": len(whole), "quarantined": len(named),
        "reason": min(reasons.values(), default=""),
        "rest_intact": set(heard) | named == set(whole) and not set(heard) & named,
    }  # fmt: skip


def corrupt(index: DatasetIndex) -> None:
    """Noise over the audio of six utterances."""
    for row in range(5, 35, 5):
        entry = index.rows[row]
        with index.shard_paths[int(entry["shard"])].open("r+b") as file:
            file.seek(int(entry["audio_offset"]))
            file.write(np.random.default_rng(row).bytes(int(entry["audio_bytes"])))


def last_shard(index: DatasetIndex) -> Path:
    """The shard that the epoch reads last, which is not open yet."""
    return index.shard_paths[int(index.rows["shard"][epoch_last(index)])]


def epoch_last(index: DatasetIndex) -> int:
    """Row of the epoch's last utterance."""
    data = module(index.path, Path(os.devnull))
    return int(data.plan.batch(data.plan.first_position(1) - 2).ids[-1])


def slow_disk(folder: Path, good: Path) -> dict[str, object]:
    """Every read takes 20 ms more, with reading processes and without."""
    whole = epoch_of(module(good, folder / "none.jsonl"))
    read, times = os.pread, {}
    for workers in (0, 2):
        for pause_s in (0.0, 0.02):
            os.pread = lambda *a, pause_s=pause_s: (time.sleep(pause_s), read(*a))[1]
            start = time.monotonic()
            same = epoch_of(module(good, folder / "none.jsonl", workers)) == whole
            times[f"workers={workers} pause_ms={pause_s * 1000:.0f}"] = round(time.monotonic() - start, 2)
            assert same
    os.pread = read
    return {"good": len(whole), "expected": len(whole), "quarantined": 0, "epoch_s": times, "rest_intact": True}


def streamed(folder: Path, good: Path) -> dict[str, object]:
    """Tars without an index: one cut off, one gone, one with names that climb, links, doubles and no audio."""
    urls = [str(shutil.copy(path, folder / path.name)) for path in sorted((good / "train").glob("*.tar"))]
    cut = Path(urls[1])
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with tarfile.open(folder / "odd.tar", "w") as tar:
        for name in ("../../climbs.flac", "/etc/absolute.flac", "double.flac", "double.flac", "text.flac"):
            data = b"no audio" * 99 if name == "text.flac" else flac(noise(1, len(name)))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    urls += [str(folder / "odd.tar"), str(folder / "gone.tar")]
    data = StreamData(
        urls, max_crop_s=1.0, min_crop_s=0.9, num_shapes=1, batch_s=4.0, shuffle=10, workers=0, seed=0,
        max_bad_fraction=0.5, quarantine=folder / "bad.jsonl",
    )  # fmt: skip
    data.set_clock(CLOCK)
    seen: set[int] = set()
    batches = iter(data.train_dataloader())
    while data.state_dict()["streams"]["floor"] < len(urls):
        seen.update(next(batches).ids_B.tolist())
        data.advance()
    index = DatasetIndex.load(good, "train")
    rest = int((index.rows["shard"] != 1).sum())
    reasons = bad_in(folder / "bad.jsonl")
    return {
        "good": len(seen), "expected": f"{rest} + 3 + those before the cut",
        "quarantined": sorted((Path(name).name, reason[:70]) for name, reason in reasons.items()),
        "rest_intact": len(seen) > rest + 3 and not (folder.parent / "climbs.flac").exists(),
    }  # fmt: skip


def flac(wave: np.ndarray) -> bytes:
    """Encoded."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE_HZ, format="FLAC")
    assert len(decode(buffer.getvalue())) == len(wave)
    return buffer.getvalue()


def main(folder: Path, out: Path) -> None:
    """Make every fault and write down what became of it."""
    os.environ["FAULTS"] = str(folder)
    good = folder / "good"
    prepared(recordings(folder / "recordings"), good)
    faults: dict[str, Callable[[Path, Path], dict[str, object]]] = {
        "odd and damaged files": odd_files,
        "two jobs, one directory": two_jobs,
        "a killed job": killed_job,
        "corrupt audio in shards": lambda f, g: reading(f, g, corrupt, before=True),
        "a shard vanishes in mid-epoch": lambda f, g: reading(f, g, lambda index: last_shard(index).unlink()),
        "a shard is cut off in mid-epoch": lambda f, g: reading(f, g, lambda i: os.truncate(last_shard(i), 5_000)),
        "a slow disk": slow_disk,
        "tars without an index": streamed,
    }
    records = []
    for number, (name, fault) in enumerate(faults.items()):
        place = folder / f"fault-{number}"
        place.mkdir(parents=True)
        (place / "recordings").symlink_to(folder / "recordings")
        records.append({"fault": name, **fault(place, good)})
        print(json.dumps(records[-1], ensure_ascii=False))
    out.write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    main(Path(given.get("folder", "faults")).resolve(), Path(given.get("out", "faults.json")))
