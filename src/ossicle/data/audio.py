"""Audio in and out of files and bytes: any format that libsndfile knows, and G.722, to 16 kHz mono and back."""

import io
import os
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ossicle.core.errors import DataError, MissingExtraError

RATE_HZ = 16_000
MIN_SAMPLES = 400
"""25 ms: the shortest sound that gives one frame."""

_MEND = "replace or remove the file"
_MEND_LISTS = "mend the corpus's lists"
_AGAIN = "prepare the dataset again"


def decode(data: bytes, start: int = 0, num_samples: int | None = None) -> NDArray[np.float32]:
    """Decode a crop of encoded mono audio: only the crop is decoded where the format can seek.

    Args:
        data: A whole audio file.
        start: First sample of the crop.
        num_samples: Length of the crop, or None for all that follows.

    Returns:
        Samples in [-1, 1], float32, shape (num_samples,).

    Raises:
        DataError: The bytes are no audio, are cut short, hold more than one channel or hold a NaN or infinity.
    """
    if data[:4] == b"RIFF" and (found := _plain_samples(data)) is not None:
        pcm_S, num_written = found
        stop = _checked_end(start, num_samples, num_written)
        if stop > len(pcm_S):
            raise DataError(f"the audio is cut off: {len(pcm_S)} of {num_written} samples are there", _AGAIN)
        return np.multiply(pcm_S[start:stop], np.float32(1 / 32768), dtype=np.float32)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            wanted = _checked_end(start, num_samples, file.frames) - start
            if start:  # to seek makes the decoder begin anew
                file.seek(start)
            is_short = file.subtype == "PCM_16"  # numpy turns integers into fractions faster than libsndfile does
            wave_S = np.asarray(file.read(wanted, dtype="int16" if is_short else "float32"))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(f"the audio does not decode: {error}", _AGAIN) from error
    if wave_S.ndim != 1 or len(wave_S) != wanted:
        shape = " x ".join(str(size) for size in wave_S.shape)
        raise DataError(f"the audio gave {shape} samples for {wanted}", _AGAIN)
    if is_short:
        return np.multiply(wave_S, np.float32(1 / 32768), dtype=np.float32)
    return _finite(wave_S.astype(np.float32, copy=False), "the audio")


def _checked_end(start: int, num_samples: int | None, frames: int) -> int:
    """The sample after a crop's last one."""
    stop = frames if num_samples is None else start + num_samples
    if not 0 <= start <= stop <= frames:
        problem = f"samples {start} to {stop} were asked for, and the audio has {frames}"
        raise DataError(problem, _AGAIN)
    return stop


def plain_place(data: bytes) -> tuple[int, int] | None:
    """Where the samples of a mono WAV of 16 bits begin, in bytes, and how many its header tells; None for others."""
    place, is_plain = 12, False
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        if name == b"fmt " and place + 24 <= len(data):
            kind, channels, _, _, _, bits = struct.unpack_from("<HHIIHH", data, place + 8)
            is_plain = (kind, channels, bits) == (1, 1, 16)
        elif name == b"data":
            return (place + 8, size // 2) if is_plain else None
        place += 8 + size + size % 2
    return None


def _plain_samples(data: bytes) -> tuple[NDArray[np.int16], int] | None:
    """The samples of a mono WAV of 16 bits as a view of its bytes, and how many its header tells; None for others."""
    found = plain_place(data)
    if found is None:
        return None
    place, num_written = found
    return np.frombuffer(data, "<i2", min(num_written, (len(data) - place) // 2), place), num_written


def read_audio_file(
    path: Path, start_s: float = 0.0, end_s: float | None = None, channel: int | None = None
) -> NDArray[np.int16]:
    """Read a file of any rate and channel count as 16 kHz mono: channels averaged, soxr HQ, offset kept.

    Args:
        path: WAV, FLAC, MP3, OGG, Opus or another format of libsndfile, by its content; G.722 by its suffix.
        start_s: Where to begin, in seconds: what lies before is not decoded where the format can seek.
        end_s: Where to end, in seconds, or None at the file's end.
        channel: The channel to take, from 0, or None for the mean of all.

    Returns:
        Samples, int16, shape (S,).

    Raises:
        DataError: The file cannot be read, is no audio, is empty, too short, cut off, or holds a NaN or infinity.
        MissingExtraError: A G.722 file, and the extra g722 is not installed.
    """
    is_g722 = path.suffix.lower() == ".g722"
    read = _read_g722(path, start_s, end_s) if is_g722 else _read_soundfile(path, str(path), start_s, end_s)
    return _checked_pcm(*read, str(path), channel)


def read_audio_bytes(
    data: bytes, name: str, start_s: float = 0.0, end_s: float | None = None, channel: int | None = None
) -> NDArray[np.int16]:
    """Read a file that lies in memory, as :func:`read_audio_file` reads one on the disk; G.722 excepted.

    Args:
        data: The file's bytes.
        name: What messages call it.
        start_s: Where to begin, in seconds.
        end_s: Where to end, in seconds, or None at the file's end.
        channel: The channel to take, from 0, or None for the mean of all.

    Raises:
        DataError: As for a file.
    """
    return _checked_pcm(*_read_soundfile(io.BytesIO(data), name, start_s, end_s), name, channel)


def to_mono(wave_SC: NDArray[np.float32], name: str, channel: int | None = None) -> NDArray[np.float32]:
    """One channel of a file, or the mean of all.

    Args:
        wave_SC: Samples, float32, shape (S, C).
        name: The file, for messages.
        channel: The channel to take, or None.

    Returns:
        Samples, float32, shape (S,).

    Raises:
        DataError: There is no such channel, or samples are NaN or infinite.
    """
    _finite(wave_SC, name)
    if channel is None:
        return wave_SC.mean(axis=1, dtype=np.float32)
    if not 0 <= channel < wave_SC.shape[1]:
        raise DataError(f"{name} has {wave_SC.shape[1]} channels, and none is number {channel}", _MEND_LISTS)
    return np.ascontiguousarray(wave_SC[:, channel])


def _checked_pcm(wave_SC: NDArray[np.float32], rate_hz: int, name: str, channel: int | None) -> NDArray[np.int16]:
    if len(wave_SC) == 0:
        raise DataError(f"{name} holds no samples", _MEND)
    pcm_S = to_pcm(to_mono(wave_SC, name, channel), rate_hz)
    if len(pcm_S) < MIN_SAMPLES:
        problem = f"{name} holds {len(pcm_S)} samples at {RATE_HZ} Hz, fewer than the {MIN_SAMPLES} of one frame"
        raise DataError(problem, _MEND)
    return pcm_S


def to_pcm(wave_S: NDArray[np.float32], rate_hz: int) -> NDArray[np.int16]:
    """Resample to 16 kHz and round to 16 bits; what lies outside [-1, 1] is clipped.

    Args:
        wave_S: Mono samples in [-1, 1], float32, shape (S,).
        rate_hz: Their rate.

    Returns:
        Samples at 16 kHz, int16; equal input gives equal output.
    """
    if rate_hz != RATE_HZ:
        # never in int16: there soxr 1.1 reads uninitialised memory at the end of some lengths (132421 at 22050 Hz)
        wave_S = soxr.resample(wave_S, rate_hz, RATE_HZ, quality="HQ")
    return np.clip(np.rint(wave_S * 32768), -32768, 32767).astype(np.int16)


def encode_flac(pcm_S: NDArray[np.int16], rate_hz: int = RATE_HZ) -> bytes:
    """Encode mono 16-bit samples, shape (S,), as FLAC: lossless, and equal samples give equal bytes."""
    file = io.BytesIO()
    soundfile.write(file, pcm_S, rate_hz, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _finite(wave: NDArray[np.float32], what: str) -> NDArray[np.float32]:
    bad = wave.size - int(np.isfinite(wave).sum())
    if bad:
        raise DataError(f"{what} holds {bad} samples that are NaN or infinite", _MEND)
    return wave


def sample_span(start_s: float, end_s: float | None, frames: int, rate_hz: int, name: str) -> tuple[int, int]:
    """First sample of a span and the one after its last; its end may round to a sample past the file's end.

    Args:
        start_s: Where it begins, in seconds.
        end_s: Where it ends, or None at the file's end.
        frames: The file's length in samples.
        rate_hz: Its rate.
        name: The file, for messages.

    Raises:
        DataError: The file has no such span.
    """
    start = round(start_s * rate_hz)
    end = frames if end_s is None else min(frames, round(end_s * rate_hz))
    if not 0 <= start <= end or (end_s is not None and end_s > frames / rate_hz + 0.1):
        problem = f"{name} lasts {frames / rate_hz:.2f} s and has no span from {start_s} to {end_s} s"
        raise DataError(problem, _MEND_LISTS)
    return start, end


@contextmanager
def opened_audio(file: Path | io.BytesIO, name: str) -> Generator[soundfile.SoundFile]:
    """A file opened by libsndfile, whose errors, while it is open too, are ours.

    Raises:
        DataError: It is empty, or cannot be read as audio.
    """
    try:
        if (file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())) == 0:
            raise DataError(f"{name} is an empty file", _MEND)
        # a name may be no text: soundfile encodes text strictly, and takes bytes
        with soundfile.SoundFile(os.fsencode(file) if isinstance(file, Path) else file) as audio:  # ty: ignore[invalid-argument-type]
            yield audio
    except (OSError, soundfile.SoundFileError, RuntimeError) as error:
        raise DataError(f"{name} cannot be read as audio: {error}", _MEND) from error


def read_samples(audio: soundfile.SoundFile, num_samples: int, name: str) -> NDArray[np.float32]:
    """The next samples of an open file, float32, shape (S, C).

    Raises:
        DataError: The file ends before them.
    """
    start = audio.tell()
    wave_SC = np.asarray(audio.read(num_samples, dtype="float32", always_2d=True), dtype=np.float32)
    if len(wave_SC) < num_samples:
        raise DataError(f"{name} is cut off: {start + len(wave_SC)} of {audio.frames} samples can be read", _MEND)
    return wave_SC


def _read_soundfile(
    file: Path | io.BytesIO, name: str, start_s: float, end_s: float | None
) -> tuple[NDArray[np.float32], int]:
    with opened_audio(file, name) as audio:
        start, end = sample_span(start_s, end_s, audio.frames, audio.samplerate, name)
        audio.seek(start)
        return read_samples(audio, end - start, name), audio.samplerate


def _read_g722(path: Path, start_s: float, end_s: float | None) -> tuple[NDArray[np.float32], int]:
    try:
        import av  # noqa: PLC0415  an extra, needed for this one format
    except ImportError as error:
        raise MissingExtraError("av", "g722", f"reading {path.name}") from error
    try:
        with av.open(str(path), format="g722") as container:
            parts = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    except (OSError, av.FFmpegError) as error:
        raise DataError(f"{path} cannot be read as G.722: {error}", _MEND) from error
    if not parts:
        raise DataError(f"{path} is an empty file", _MEND)
    # the codec knows one rate, and the file has no header that could say another
    wave_S = np.concatenate(parts).astype(np.float32) / 32768
    start, end = sample_span(start_s, end_s, len(wave_S), RATE_HZ, str(path))
    return wave_S[start:end, None], RATE_HZ
