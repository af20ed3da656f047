import io
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.streaming import BLOCK_S, in_blocks, in_spans, length_s, stream_audio
from ossicle.core.errors import DataError
from ossicle.data.audio import read_audio_bytes, read_audio_file


def noise(seconds: float, rate_hz: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.4, 0.4, (round(seconds * rate_hz), channels))


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
def test_blocks_together_are_the_whole_read_to_the_bit(tmp_path: Path, rate_hz: int) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(2.3 * BLOCK_S, rate_hz, 2), rate_hz)
    blocks = list(stream_audio(path, "a"))
    assert len(blocks) >= 3
    assert max(map(len, blocks)) <= 16_000 * (BLOCK_S + 1)
    np.testing.assert_array_equal(np.concatenate(blocks), read_audio_file(path))
    span = np.concatenate(list(stream_audio(path, "a", 1.5, 44.25, 1)))
    np.testing.assert_array_equal(span, read_audio_file(path, 1.5, 44.25, 1))
    assert length_s(path, "a") == pytest.approx(2.3 * BLOCK_S, abs=1e-3)


def test_bytes_are_read_as_a_file_is(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1.0, 22_050), 22_050)
    data = path.read_bytes()
    np.testing.assert_array_equal(read_audio_bytes(data, "a"), read_audio_file(path))
    np.testing.assert_array_equal(read_audio_bytes(data, "a", 0.25, 0.5), read_audio_file(path, 0.25, 0.5))
    np.testing.assert_array_equal(np.concatenate(list(stream_audio(data, "a"))), read_audio_file(path))
    assert length_s(data, "a") == 1.0


def test_g722_is_taken_too(tmp_path: Path) -> None:
    path = tmp_path / "a.g722"
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray((noise(1.0, 16_000)[:, 0] * 9000).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    np.testing.assert_array_equal(np.concatenate(list(stream_audio(path, "a"))), read_audio_file(path))
    assert length_s(path, "a") == pytest.approx(1.0, abs=0.02)


def test_bad_files_are_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    soundfile.write(whole, noise(1.0, 16_000), 16_000, format="WAV", subtype="PCM_16")
    cases = {
        "empty": (b"", "is an empty file"),
        "text": (b"no audio at all", "cannot be read as audio"),
    }
    for name, (data, reason) in cases.items():
        with pytest.raises(DataError, match=f"{name} {reason}"):
            list(stream_audio(data, name))
        with pytest.raises(DataError, match=f"{name} {reason}"):
            read_audio_bytes(data, name)
    with pytest.raises(DataError, match="has 1 channels, and none is number 1"):
        list(stream_audio(whole.getvalue(), "mono", channel=1))
    soundfile.write(tmp_path / "nan.wav", np.full(900, np.nan), 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match="NaN"):
        list(stream_audio(tmp_path / "nan.wav", "nan"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 30))
def test_blocks_of_one_length_hold_the_same_samples(sizes: list[int], length: int) -> None:
    wave = np.arange(sum(sizes), dtype=np.int16)
    parts = np.split(wave, np.cumsum(sizes)[:-1]) if sizes else []
    blocks = list(in_blocks(parts, length))
    assert all(len(block) == length for block in blocks[:-1])
    np.testing.assert_array_equal(np.concatenate([*blocks, wave[:0]]), wave)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.data())
def test_spans_are_slices_of_the_whole(sizes: list[int], data: st.DataObject) -> None:
    wave = np.arange(sum(sizes), dtype=np.int16)
    bounds = data.draw(st.lists(st.integers(0, len(wave)), max_size=8).map(sorted))
    spans = list(zip(bounds[::2], bounds[1::2], strict=False))
    found = list(in_spans(np.split(wave, np.cumsum(sizes)[:-1]), spans))
    assert [(start, end) for start, end, _ in found] == spans
    for start, end, part in found:
        np.testing.assert_array_equal(part, wave[start:end])
