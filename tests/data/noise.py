"""A corpus of noise, and processes that prepare it: what the tests of the prepare engine share."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from typing_extensions import override

from ossicle.core.errors import DataError
from ossicle.data.card import Summary
from ossicle.data.prepare import Preparation, Share, prepare
from ossicle.data.utterance import Corpus, Sample, Source, Utterance

ROOT = Path(__file__).resolve().parents[2]


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


def run(
    corpus: Corpus, output: Path, workers: int = 1, max_bad_fraction: float = 0.1, audio_format: str = "flac"
) -> Summary:
    return prepare(
        corpus, output, shard_s=4, workers=workers, max_bad_fraction=max_bad_fraction, audio_format=audio_format
    )


def run_part(output: Path, part: int, parts: int, corpus: Corpus | None = None, array: str | None = None) -> bool:
    """One task's share; tells whether it wrote the card."""
    preparation = Preparation(corpus or Noise(), output, shard_s=4, max_bad_fraction=0.1)
    return preparation.run(Share(part, parts, array), workers=1) is not None


def contents(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()}


def start_process(output: Path, call: str) -> "subprocess.Popen[bytes]":
    """Start a process that prepares: ``call`` is Python with ``output`` as the directory."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.data.noise import *
if __name__ == "__main__":
    output = Path({str(output)!r})
    {call}
"""
    path = output.parent / f"{output.name}-{time.monotonic_ns()}.py"
    path.write_text(script, encoding="utf-8")
    return subprocess.Popen([sys.executable, str(path)])
