"""A dataset of long files, made of the utterances of another."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from typing_extensions import override

from ossicle.core.files import hash_json
from ossicle.core.seeds import numpy_generator
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.data.prepare import prepare
from ossicle.data.utterance import Corpus, Sample, Source, Utterance

SPLIT = "train"


class LongFiles(Corpus):
    """Utterances of a split end to end, in an order that the seed decides, as files of equal length.

    Args:
        shards: Directory of the prepared dataset that lends them.
        split: Its split.
        num_files: How many long files there are.
        file_s: How long each is, in seconds.
        seed: Seeds the orders.
    """

    name = "long"

    def __init__(self, shards: Path, split: str, *, num_files: int, file_s: float, seed: int) -> None:
        self.shards = shards
        self.split = split
        self.num_files = num_files
        self.file_s = file_s
        self.seed = seed

    @override
    def sources(self) -> Iterator[Source]:
        for number in range(self.num_files):
            yield Source(f"long/{number}", SPLIT, self.file_s)

    @override
    def load(self, source: Source) -> Sample:
        index = DatasetIndex.load(self.shards, self.split)
        wanted = round(self.file_s * index.rate_hz)
        draw = numpy_generator(self.seed, source.name)
        parts: list[np.ndarray] = []
        missing = wanted
        while missing > 0:
            row = int(draw.integers(index.num_utterances))
            parts.append((decode(index.read_audio(row))[:missing] * 32768).astype(np.int16))
            missing -= len(parts[-1])
        return Sample(Utterance(source.name, SPLIT), np.concatenate(parts))


def prepare_long(index: DatasetIndex, cache: Path, *, num_files: int, file_s: float, seed: int, workers: int) -> Path:
    """Prepare the long files of a split, or find them prepared.

    Args:
        index: The split that lends its utterances.
        cache: Folder of such datasets.
        num_files: How many long files there are.
        file_s: How long each is, in seconds.
        seed: Seeds the orders.
        workers: Processes that encode.

    Returns:
        The dataset's directory.
    """
    corpus = LongFiles(index.path, index.split, num_files=num_files, file_s=file_s, seed=seed)
    output = cache / f"long-{hash_json([index.content_hash, num_files, file_s, seed])}"
    prepare(corpus, output, shard_s=max(1.0, num_files * file_s / 4), workers=workers, max_bad_fraction=0.0)
    return output
