"""How long a plan over a large index takes, and how much memory: shapes, components, epochs and single batches.

    python benchmarks/planning.py utterances=20000000 languages=1 alpha=1.0 num_shapes=18 out=planning.json

The index is made up (lengths as in docs/results/batching.md) and mapped from a file, as a prepared dataset's is. Memory
of the process's own is told apart from pages of the file, which the system takes back when it needs them.
"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.lengths import drawn_lengths
from ossicle.data.buckets import CHUNK, choose_shapes
from ossicle.data.component import Splitter
from ossicle.data.index import INDEX_DTYPE
from ossicle.data.mixture import heard_samples, passes_of, shares_of
from ossicle.data.plan import PlannedSequence

Result = TypeVar("Result")

SHARD_UTTERANCES = 2_000


def write_index(path: Path, num_utterances: int, languages: int) -> None:
    """An index file of made-up utterances; languages fall off as 1/rank."""
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=INDEX_DTYPE, shape=(num_utterances,))
    falling = 1 / np.arange(1, languages + 1)
    for start in range(0, num_utterances, CHUNK):
        part = rows[start : start + CHUNK]
        part["shard"] = np.arange(start, start + len(part)) // SHARD_UTTERANCES
        part["samples"] = drawn_lengths(len(part), seed=start)
        part["language"] = np.random.default_rng(start).choice(languages, len(part), p=falling / falling.sum())
    rows.flush()


def own_bytes() -> int:
    """Memory of this process that is no file's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class Peak:
    """Looks at the process's own memory every few milliseconds, and keeps the most that it saw."""

    def __init__(self) -> None:
        self.bytes = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.look)

    def __enter__(self) -> Self:
        """Begin to look."""
        self.thread.start()
        return self

    def look(self) -> None:
        """Until it ends."""
        while not self.ended.wait(0.005):
            self.bytes = max(self.bytes, own_bytes())

    def __exit__(self, *_: object) -> None:
        """Look no more."""
        self.ended.set()
        self.thread.join()


class Bench:
    """Times pieces of work, and says what memory an utterance takes during and after each.

    Args:
        num_utterances: Utterances in the index.
    """

    def __init__(self, num_utterances: int) -> None:
        self.num_utterances = num_utterances
        self.before = own_bytes()
        self.records: list[dict[str, object]] = []

    def time(self, what: str, work: Callable[[], Result]) -> Result:
        """Do it, and print a line."""
        start = time.perf_counter()
        with Peak() as peak:
            result = work()
        seconds = time.perf_counter() - start
        most, held = ((size - self.before) / self.num_utterances for size in (peak.bytes, own_bytes()))
        self.records.append(
            {
                "system": "ossicle",
                "device": "cpu",
                "what": what,
                "seconds": seconds,
                "bytes_held": held,
                "bytes_peak": most,
            }
        )
        print(f"{what:<28} {seconds:9.4f} s   {max(0.0, most):6.1f} bytes an utterance at most, {held:6.1f} after")
        return result


def measure(rows: NDArray[np.void], *, languages: int, alpha: float, num_shapes: int) -> list[dict[str, object]]:
    """Plan over an index, step by step."""
    bench = Bench(len(rows))
    shapes = bench.time(
        "shapes",
        lambda: choose_shapes(
            rows["samples"], max_crop_s=15.6, min_crop_s=2, num_shapes=num_shapes, batch_s=87.5, max_cut=0.1
        ),
    )
    splitter = Splitter(shapes, window_shards=8, num_rows=len(rows))
    names = [f"l{number}" for number in range(languages)] if languages > 1 else []
    components = list(bench.time("components", lambda: splitter.split(rows, "all", languages=names)).values())
    heard = heard_samples(components, shapes)
    passes = passes_of(heard, shares_of([heard], weights=[1.0], alpha=alpha, source_alpha=1.0))
    plan = PlannedSequence(components, passes, splitter.items(), shapes, seed=0)
    bench.time("first epoch", lambda: plan.epoch(0))
    bench.time("second epoch", lambda: plan.epoch(1))
    bench.time("1000 batches", lambda: [plan.batch(position) for position in range(1000)])
    far = plan.first_position(1_000_000) + 7
    bench.time("a batch of epoch 1,000,000", lambda: plan.batch(far))
    print(f"{plan.epoch(1_000_000).num_batches} batches an epoch, {len(plan.items.extra_rows)} further pieces")
    return bench.records


def main(arguments: list[str]) -> None:
    """Measure, print a table, and write the records where ``out`` is given."""
    given = dict(argument.split("=", 1) for argument in arguments)
    languages = int(given.get("languages", "1"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.npy"
        write_index(path, int(given.get("utterances", "20000000")), languages)
        records = measure(
            np.load(path, mmap_mode="r"),
            languages=languages,
            alpha=float(given.get("alpha", "1")),
            num_shapes=int(given.get("num_shapes", "18")),
        )
    if "out" in given:
        Path(given["out"]).write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
