"""What libsndfile alone does on one core: the encoded bytes lie in memory, and nothing but crops is decoded."""

import io
from collections.abc import Iterator

import numpy as np
import soundfile
import torch
from torch import Tensor

from ossicle.core.seeds import numpy_generator
from ossicle.data.crops import Crop, encoded_crop
from ossicle.data.index import DatasetIndex
from ossicle.launch.bench.work import Work

_HELD_BYTES = 1 << 28  # of encoded audio in memory
_HELD_CROPS = 512


def batches(work: Work) -> Iterator[Tensor]:
    """Open, seek, read, as soundfile's manual has it, out of whole utterances in memory."""
    index = work.index()
    rows = _long_enough(work, index)
    rows = rows[np.cumsum([index.audio_bytes(row) for row in rows]) < _HELD_BYTES] if len(rows) > 1 else rows
    held = [index.read_audio(int(row)) for row in rows]
    samples = [int(index.rows[int(row)]["samples"]) for row in rows]
    draw = numpy_generator(work.seed, "bench")
    batch_BS = np.empty((work.rows, work.crop_samples), dtype=np.float32)
    while True:
        for out_S in batch_BS:
            k = int(draw.integers(len(held)))
            with soundfile.SoundFile(io.BytesIO(held[k])) as file:
                file.seek(int(draw.integers(samples[k] - work.crop_samples + 1)))
                file.read(out=out_S)
        yield torch.from_numpy(batch_BS)


def frame_batches(work: Work) -> Iterator[Tensor]:
    """The least that can be done: each crop's FLAC frames lie in memory as a stream, found beforehand; no seeking."""
    index = work.index()
    rows = _long_enough(work, index)
    draw = numpy_generator(work.seed, "bench")
    held: list[Crop] = []
    for row in rows[draw.integers(len(rows), size=_HELD_CROPS)].tolist():
        start = int(draw.integers(int(index.rows[row]["samples"]) - work.crop_samples + 1))

        def read(first: int, size: int, row: int = row) -> bytes:
            return index.read_audio_part(row, first, size)

        held.append(encoded_crop(read, index.audio_bytes(row), start, work.crop_samples))
    batch_BS = np.empty((work.rows, work.crop_samples), dtype=np.float32)
    while True:
        for out_S in batch_BS:
            held[int(draw.integers(len(held)))].decode_into(out_S)
        yield torch.from_numpy(batch_BS)


def _long_enough(work: Work, index: DatasetIndex) -> np.ndarray:
    rows = np.flatnonzero(index.rows["samples"] >= work.crop_samples)
    return numpy_generator(work.seed, "held").permutation(rows)
