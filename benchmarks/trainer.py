"""The whole trainer beside its bare step: ``ossicle pretrain`` on real shards, and ``ossicle bench step`` of the same.

    PYTHONPATH=src:. python benchmarks/trainer.py --out results.json --device cuda --batch 64
    PYTHONPATH=src:. python benchmarks/trainer.py --out results.json --crop-s 2 --batch 16 experiment=hubert_tiny

Recordings of one length are made up and sharded by ``ossicle prepare``; what they hold does not matter for speed. The
bare step is measured before and after the trainer, since machines drift (``--no-after``: before alone). Classes come
from a random projection, which needs no labels, so that both do the same. Beside the results lies a profile of a step
of the trainer (.trace.txt): what of it is no kernel, and what made the host wait.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from ossicle.core.files import read_json, write_json

RATE_HZ = 16_000
SAME = (
    "target=random_projection", "target.num_classes=500", "stage=single", "encoder.layer_drop=0",
    "schedule.warmup_steps=1", "optim.lr=1e-5",
)  # fmt: skip
"""What both are told: as many classes, and every step the same work, on weights that change alike and hardly."""


def ossicle(*words: str) -> None:
    """Run a command line of Ossicle to its end."""
    subprocess.run([sys.executable, "-m", "ossicle.launch.cli", *words], check=True, env=os.environ)  # noqa: S603  our own


def recordings(folder: Path, number: int, seconds: float) -> None:
    """Write noise that fades in and out, each recording another part of it."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(0)
    samples = round(seconds * RATE_HZ)
    noise = 0.1 * drawn.standard_normal(samples + number * 997).astype(np.float32)
    noise *= 1 + np.sin(np.arange(len(noise), dtype=np.float32) / RATE_HZ * 8)
    for index in range(number):
        soundfile.write(folder / f"{index:05d}.flac", noise[index * 997 :][:samples], RATE_HZ)


def prepare(options: argparse.Namespace) -> Path:
    """Recordings and their shards, where there are none; each recording stands there several times."""
    shards, source = options.work / options.audio_format, options.work / "recordings"
    if (shards / "dataset.json").is_file():
        return shards
    recordings(source, max(8, 5 * options.batch), options.crop_s + 0.4)
    for file in sorted(source.glob("*.flac")):
        for copy in range(1, options.copies):
            shutil.copy(file, file.with_stem(f"{file.stem}_{copy}"))
    ossicle("prepare", "corpus=folder", f"input={source}", f"output={shards}", f"audio_format={options.audio_format}")
    return shards


def bare(options: argparse.Namespace, out: Path) -> Mapping[str, object]:
    """Measure the bare step."""
    on = [f"device={options.device}", f"batch={options.batch}", f"crop_s={options.crop_s}", f"out={out}"]
    often = [f"steps={options.steps}", "rounds=2", "warmup=3", "seed=0", "apart=false"]
    ossicle("bench", "step", *options.words, *SAME, *on, *often)
    record: Mapping[str, object] = read_json(out)[0]
    return record


def trained(options: argparse.Namespace, runs: Path, shards: Path) -> list[float]:
    """Train, and read the audio a second from metrics.csv.

    Neither the first reading, in which things compile, nor the last, in which a step is profiled, counts.
    """
    runs.mkdir(parents=True, exist_ok=True)
    runs = Path(tempfile.mkdtemp(dir=runs))  # a run that is finished would not train again
    audio_s = options.batch * options.crop_s
    ossicle(
        "pretrain", *options.words, *SAME,
        f"data.shards={shards}", f"data.batch_s={audio_s}", f"batch_s={audio_s}", "data.num_shapes=1",
        f"data.max_crop_s={options.crop_s}", f"data.min_crop_s={options.crop_s}", f"data.workers={options.workers}",
        f"cluster.accelerator={options.device}", f"max_steps={options.steps * 4}", f"log_every={options.steps}",
        f"runs={runs}", "seed=0", "wandb.mode=disabled",
        "+callback@callback.trace=trace", f"callback.trace.after_step={options.steps * 3}", "callback.trace.steps=1",
    )  # fmt: skip
    (trace,) = runs.glob("*/*/trace-0.txt")
    options.out.with_suffix(".trace.txt").write_text(trace.read_text(encoding="utf-8"), encoding="utf-8")
    (metrics,) = runs.glob("*/*/metrics.csv")
    with metrics.open(newline="", encoding="utf-8") as file:
        return [float(row["meter/audio_s_per_s"]) for row in csv.DictReader(file)][1:-1]


def main(argv: Sequence[str] | None = None) -> Mapping[str, object]:
    """Measure both and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--work", type=Path, default=Path("trainer"), help="where recordings, shards and runs lie")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--batch", type=int, default=4, help="crops in a step")
    parser.add_argument("--crop-s", type=float, default=15.6)
    parser.add_argument("--steps", type=int, default=40, help="steps between two readings")
    parser.add_argument("--workers", type=int, default=4, help="reading processes")
    parser.add_argument("--after", action=argparse.BooleanOptionalAction, default=True, help="the bare step once more")
    parser.add_argument("--copies", type=int, default=1, help="how often each recording stands in the shards")
    parser.add_argument("--audio-format", choices=("flac", "pcm"), default="flac", help="of the shards")
    parser.add_argument("--prepare", action="store_true", help="make recordings and shards, and no more")
    parser.add_argument("words", nargs="*", default=["experiment=hubert_base"], help="overrides for both")
    options = parser.parse_args(argv)
    shards = prepare(options)
    if options.prepare:
        return {}
    steps = [bare(options, options.work / "bare.json")]
    write_json(options.out, {"bare": steps})  # what follows may be cut off
    readings = trained(options, options.work / "runs", shards)
    if options.after:
        steps.append(bare(options, options.work / "bare.json"))
    rates = [float(str(step["audio_s_per_s"])) for step in steps]
    found = {
        "trainer_audio_s_per_s": statistics.median(readings),
        "bare_audio_s_per_s": statistics.mean(rates),
        "ratio": statistics.median(readings) / statistics.mean(rates),
        "readings": readings,
        "bare": steps,
    }
    write_json(options.out, found)
    sys.stdout.write(json.dumps({key: found[key] for key in ("trainer_audio_s_per_s", "bare_audio_s_per_s", "ratio")}))
    sys.stdout.write("\n")
    return found


if __name__ == "__main__":
    main()
