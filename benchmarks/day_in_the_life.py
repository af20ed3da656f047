"""A day in the life of the data engine: prepare, label, train two epochs that are killed three times, and audit them.

    python benchmarks/day_in_the_life.py hours=20 folder=/tmp/day out=day.json

Everything runs through the command line, as a user's would. The training processes are ended by SIGKILL after numbers
of batches that are drawn by ``seed``, and started again by the same command. What was trained on is then read from the
run's audit log and held against the corpus: each piece of each utterance once an epoch, each crop inside its piece, and
the sequence that of a run that nobody killed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np

from ossicle.core.files import read_json
from ossicle.data.card import read_summary
from ossicle.data.labels import LabelSet
from ossicle.data.module import ShardData

EPOCHS, KILLS, BATCH_S = 2, 3, 32.0
DATA = {
    "max_crop_s": 4.0, "min_crop_s": 1.0, "num_shapes": 6, "batch_s": BATCH_S, "max_cut": 0.1, "window_shards": 8,
    "workers": 1, "max_bad_fraction": 0.01,
}  # fmt: skip
MODEL = (
    "encoder.dim=32", "encoder.num_layers=1", "encoder.ffn_dim=64", "mixer.num_heads=2", "schedule.warmup_steps=10",
    "stage.iterations.0.clusters=50", "target.num_classes=50", f"batch_s={BATCH_S}", "log_every=100", "threads=1",
    "wandb.mode=disabled",
)  # fmt: skip


def ossicle(*arguments: str) -> list[str]:
    """The command line as this Python runs it."""
    return [sys.executable, "-m", "ossicle.launch.cli", *arguments]


def timed(*arguments: str) -> float:
    """Run a command; its wall time in seconds."""
    start = time.monotonic()
    subprocess.run(ossicle(*arguments), check=True)  # noqa: S603  our own command
    return round(time.monotonic() - start, 1)


def plan_of(shards: Path) -> ShardData:
    """The data as the training plans them."""
    return ShardData(shards, seed=0, **DATA)


def audit_of(runs: Path) -> list[dict[str, object]]:
    """The lines of the run's log."""
    files = list(runs.rglob("audit-0.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def train_and_kill(command: list[str], runs: Path, kill_at: list[int]) -> list[int]:
    """Start a training again and again, killing it when its log first holds so many batches; the kills' positions."""
    killed: list[int] = []
    for wanted in kill_at:
        process = subprocess.Popen(command, start_new_session=True)  # noqa: S603
        while not any(line.get("position", -1) >= wanted for line in audit_of(runs)):
            if process.poll() is not None:
                raise SystemExit(f"training ended by itself with {process.returncode} before batch {wanted}")
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)  # its reading processes too, as a node's end would
        process.wait()
        killed.append(max(line["position"] for line in audit_of(runs) if "position" in line))
    subprocess.run(command, check=True)  # noqa: S603
    return killed


def sequence_of(lines: list[dict[str, object]]) -> tuple[list[dict[str, object]], list[int], int]:
    """What is in the weights, in order; where sessions began; and how many batches were lost with killed processes."""
    kept: dict[int, dict[str, object]] = {}
    begun: list[int] = []
    for line in lines:
        if "from" in line:
            begun.append(int(line["from"]))
            kept = {position: batch for position, batch in kept.items() if position < begun[-1]}
        else:
            position = int(line["position"])
            assert position not in kept, f"batch {position} was trained on twice in one session"
            kept[position] = line
    assert sorted(kept) == list(range(len(kept))), "a batch is missing"
    return (
        [kept[position] for position in range(len(kept))],
        begun,
        sum("position" in line for line in lines) - len(kept),
    )


def checked(shards: Path, batches: list[dict[str, object]]) -> dict[str, int]:
    """Hold what was trained on against the corpus and the plan; how much was seen how often."""
    data = plan_of(shards)
    plan, stride = data.plan, 160
    items: dict[int, list[tuple[int, int]]] = {}
    spans: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for position, batch in enumerate(batches):
        spec = plan.batch(position)
        assert batch["rows"] == spec.ids.tolist(), f"batch {position} is not that of the unbroken run"
        assert spec.pieces is not None
        length = data.shapes.lengths[spec.bucket]
        for row, piece, start in zip(batch["rows"], spec.pieces.tolist(), batch["starts"], strict=True):
            items.setdefault(spec.bucket, []).append((row, piece))
            epoch = (len(items[spec.bucket]) - 1) // plan.sizes[spec.bucket]
            spans.setdefault((epoch, row), []).append((start, start + length))
    seen: Counter[tuple[int, int]] = Counter()
    for bucket, found in items.items():
        size = plan.sizes[bucket]
        for epoch in range(EPOCHS):
            one = found[epoch * size : (epoch + 1) * size]
            assert len(one) == len(set(one)) == size, f"epoch {epoch} of shape {bucket}: {len(one)} of {size}"
            seen.update(one)
    assert set(seen.values()) == {EPOCHS}
    for found in spans.values():
        assert all(after[0] > before[1] - stride for before, after in pairwise(sorted(found))), "crops overlap"
    samples = data.index.rows["samples"]
    rows = {row for row, _ in seen}
    assert rows == set(np.flatnonzero(samples >= data.shapes.lengths[0]).tolist()), "an utterance was never heard"
    return {"utterances": len(rows), "pieces": len(seen), "times_each": EPOCHS}


def main(hours: float, folder: Path, out: Path, seed: int) -> None:
    """Spend the day and write its figures down."""
    shards, runs = folder / "corpus", folder / "runs"
    figures: dict[str, object] = {"hours": hours, "seed": seed}
    prepare = ("prepare", "corpus=synthetic", f"corpus.hours={hours}", f"output={shards}", "shard_s=1800", "workers=2")
    figures["prepare_s"] = timed(*prepare)
    figures["prepare_again_s"] = timed(*prepare)
    figures["verify_s"] = timed("prepare", "corpus=synthetic", f"output={shards}", "verify=true", "workers=2")
    summary = read_summary(shards)
    figures["corpus"] = {
        name: [s.num_shards, s.num_utterances, round(s.hours, 2)] for name, s in summary.splits.items()
    }
    figures["corpus_gb"] = round(sum(s.bytes for s in summary.splits.values()) / 1e9, 3)
    experiment = ("experiment=hubert_tiny", f"data.shards={shards}", *MODEL)
    figures["label_s"] = timed("label", *experiment)
    figures["label_again_s"] = timed("label", *experiment)
    data = plan_of(shards)
    steps = data.plan.first_position(EPOCHS)
    figures["shapes_s"] = [length / 16_000 for length in data.shapes.lengths]
    figures["unused_fraction"] = round(data.unused_fraction, 4)
    command = ossicle(
        "pretrain", *experiment, *(f"data.{key}={value}" for key, value in DATA.items()), f"runs={runs}",
        f"max_steps={steps}", f"checkpoint_every={steps // 20}", "+callback@callback.audit=audit",
    )  # fmt: skip
    draw = random.Random(seed)
    kill_at = sorted(draw.sample(range(steps // 20, steps - steps // 20), KILLS))
    start = time.monotonic()
    figures["killed_at"] = train_and_kill(command, runs, kill_at)
    figures["train_wall_s"] = round(time.monotonic() - start, 1)
    batches, begun, lost = sequence_of(audit_of(runs))
    assert len(batches) == steps
    figures |= {"steps": steps, "resumed_from": begun, "batches_lost_and_read_again": lost}
    figures["audit"] = checked(shards, batches)
    card = read_json(next(runs.rglob("iteration-1/cost.json")))
    figures["cost"] = {
        key: card[key]["value"] for key in ("wall_s", "audio_hours", "audio_s_per_s", "data_wait_fraction")
    }
    labels = LabelSet.load(next(path.parent for path in (shards / "labels").rglob("card.json")))
    size = sum(path.stat().st_size for path in labels.path.iterdir())
    figures["labels"] = {
        "frames": labels.card.num_frames,
        "perplexity": round(labels.card.perplexity, 1),
        "mb": size / 1e6,
    }
    out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    main(
        float(given.get("hours", 20)), Path(given.get("folder", "day")), Path(given.get("out", "day.json")),
        int(given.get("seed", 0)),
    )  # fmt: skip
