"""A recording of any length, read block by block: memory holds one block, and what comes is what a whole read gives."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from ossicle.data.audio import RATE_HZ, opened_audio, read_audio_file, read_samples, sample_span, to_mono, to_pcm

BLOCK_S = 30
"""Seconds that are decoded at once."""

_G722_BYTES_PER_S = 8_000


def length_s(file: Path | bytes, name: str) -> float:
    """How long a file is, by its header, in seconds.

    Args:
        file: The file, or its bytes.
        name: What messages call it.

    Raises:
        DataError: It cannot be read as audio.
    """
    if isinstance(file, Path) and file.suffix.lower() == ".g722":
        return file.stat().st_size / _G722_BYTES_PER_S if file.is_file() else 0.0
    with opened_audio(io.BytesIO(file) if isinstance(file, bytes) else file, name) as audio:
        return audio.frames / audio.samplerate


def stream_audio(
    file: Path | bytes, name: str, start_s: float = 0.0, end_s: float | None = None, channel: int | None = None
) -> Iterator[NDArray[np.int16]]:
    """Read a file as 16 kHz mono, block by block: the blocks together are, to the bit, what the whole read gives.

    A G.722 file, which holds one rate and no header, is read whole.

    Args:
        file: The file, or its bytes.
        name: What messages call it.
        start_s: Where to begin, in seconds.
        end_s: Where to end, in seconds, or None at the file's end.
        channel: The channel to take, from 0, or None for the mean of all.

    Yields:
        Samples, int16, shape (S,), about :data:`BLOCK_S` long.

    Raises:
        DataError: The file cannot be read, is no audio, is cut off, or holds a NaN or infinity.
    """
    if isinstance(file, Path) and file.suffix.lower() == ".g722":
        yield read_audio_file(file, start_s, end_s, channel)
        return
    with opened_audio(io.BytesIO(file) if isinstance(file, bytes) else file, name) as audio:
        rate_hz = audio.samplerate
        place, end = sample_span(start_s, end_s, audio.frames, rate_hz, name)
        audio.seek(place)
        resampler = None if rate_hz == RATE_HZ else soxr.ResampleStream(rate_hz, RATE_HZ, 1, "float32", "HQ")
        while place < end:
            num_samples = min(BLOCK_S * rate_hz, end - place)
            wave_S = to_mono(read_samples(audio, num_samples, name), name, channel)
            place += num_samples
            if resampler is not None:
                wave_S = resampler.resample_chunk(wave_S, last=place == end)
            if len(wave_S):
                yield to_pcm(wave_S, RATE_HZ)


def in_blocks(blocks: Iterable[NDArray[np.int16]], num_samples: int) -> Iterator[NDArray[np.int16]]:
    """The same samples in blocks of one length, the last one shorter."""
    held: list[NDArray[np.int16]] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += len(block)
        if size < num_samples:
            continue
        joined = np.concatenate(held)
        full = size - size % num_samples
        yield from (joined[i : i + num_samples] for i in range(0, full, num_samples))
        held, size = [joined[full:]], size - full
    if size:
        yield np.concatenate(held)


def in_spans(
    blocks: Iterable[NDArray[np.int16]], spans: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int, NDArray[np.int16]]]:
    """Start, end and samples of spans that follow one another; memory holds one span and one block.

    Args:
        blocks: Samples from the first on.
        spans: First sample of each and the one after its last, in order and without overlap.
    """
    incoming = iter(blocks)
    place, block = 0, np.zeros(0, np.int16)
    for start, end in spans:
        parts: list[NDArray[np.int16]] = []
        while True:
            parts.append(block[max(0, start - place) : max(0, end - place)])
            if place + len(block) >= end:
                break
            place += len(block)
            block = next(incoming)
        yield start, end, np.concatenate(parts)
