"""Audio in and out of files and bytes: any format that libsndfile knows, and G.722, to 16 kHz mono and back."""

import io
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
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            wanted = file.frames - start if num_samples is None else num_samples
            if start < 0 or wanted < 0 or start + wanted > file.frames:
                problem = f"samples {start} to {start + wanted} were asked for, and the audio has {file.frames}"
                raise DataError(problem, "prepare the dataset again")
            file.seek(start)
            wave_S = np.asarray(file.read(wanted, dtype="float32"), dtype=np.float32)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(f"the audio does not decode: {error}", "prepare the dataset again") from error
    if wave_S.ndim != 1 or len(wave_S) != wanted:
        shape = " x ".join(str(size) for size in wave_S.shape)
        raise DataError(f"the audio gave {shape} samples for {wanted}", "prepare the dataset again")
    return _finite(wave_S, "the audio")


def read_audio_file(path: Path, start_s: float = 0.0, end_s: float | None = None) -> NDArray[np.int16]:
    """Read a file of any rate and channel count as 16 kHz mono: channels averaged, soxr HQ, offset kept.

    Args:
        path: WAV, FLAC, MP3, OGG, Opus or another format of libsndfile, by its content; G.722 by its suffix.
        start_s: Where to begin, in seconds: what lies before is not decoded where the format can seek.
        end_s: Where to end, in seconds, or None at the file's end.

    Returns:
        Samples, int16, shape (S,).

    Raises:
        DataError: The file cannot be read, is no audio, is empty, too short, cut off, or holds a NaN or infinity.
        MissingExtraError: A G.722 file, and the extra g722 is not installed.
    """
    is_g722 = path.suffix.lower() == ".g722"
    wave_SC, rate_hz = _read_g722(path, start_s, end_s) if is_g722 else _read_soundfile(path, start_s, end_s)
    if len(wave_SC) == 0:
        raise DataError(f"{path} holds no samples", _MEND)
    wave_S = _finite(wave_SC, str(path)).mean(axis=1, dtype=np.float32)
    pcm_S = to_pcm(wave_S, rate_hz)
    if len(pcm_S) < MIN_SAMPLES:
        problem = f"{path} holds {len(pcm_S)} samples at {RATE_HZ} Hz, fewer than the {MIN_SAMPLES} of one frame"
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


def _span(start_s: float, end_s: float | None, frames: int, rate_hz: int, path: Path) -> tuple[int, int]:
    """First sample of a span and the one after its last; its end may round to a sample past the file's end."""
    start = round(start_s * rate_hz)
    end = frames if end_s is None else min(frames, round(end_s * rate_hz))
    if not 0 <= start <= end or (end_s is not None and end_s > frames / rate_hz + 0.1):
        problem = f"{path} lasts {frames / rate_hz:.2f} s and has no span from {start_s} to {end_s} s"
        raise DataError(problem, "mend the corpus's lists")
    return start, end


def _read_soundfile(path: Path, start_s: float, end_s: float | None) -> tuple[NDArray[np.float32], int]:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is an empty file", _MEND)
        with soundfile.SoundFile(path) as file:
            start, end = _span(start_s, end_s, file.frames, file.samplerate, path)
            file.seek(start)
            wave_SC = np.asarray(file.read(end - start, dtype="float32", always_2d=True), dtype=np.float32)
            if len(wave_SC) < end - start:
                problem = f"{path} is cut off: {start + len(wave_SC)} of {file.frames} samples can be read"
                raise DataError(problem, _MEND)
            return wave_SC, file.samplerate
    except (OSError, soundfile.SoundFileError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as audio: {error}", _MEND) from error


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
    start, end = _span(start_s, end_s, len(wave_S), RATE_HZ, path)
    return wave_S[start:end, None], RATE_HZ
