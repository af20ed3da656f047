import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile
from scipy.signal import correlate

from benchmarks.codecs import measure
from ossicle.core.errors import ConfigError, DataError
from ossicle.data.audio import decode
from ossicle.data.codecs import CODECS, codec_named, with_fixed_serial


def sweep(num_samples: int) -> np.ndarray:
    """A tone that rises through the telephone band, so that no part of it is like another."""
    t = np.arange(num_samples) / 16_000
    return (9000 * np.sin(2 * np.pi * (300 + 100 * t) * t)).astype(np.int16)


@pytest.mark.parametrize("name", ["flac", "pcm"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_lossless_codecs_give_back_every_sample_of_every_crop(name: str, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 30_000))
    pcm = np.random.default_rng(length).integers(-32768, 32768, length, dtype=np.int16)
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    encoded = CODECS[name].encode(pcm)
    np.testing.assert_array_equal(decode(encoded) * 32768, pcm)
    np.testing.assert_array_equal(decode(encoded, start, stop - start) * 32768, pcm[start:stop])


@pytest.mark.parametrize("length", [1, 100, 319, 320, 321, 400, 959, 16_000, 16_001, 50_001, 480_000])
def test_opus_keeps_the_length_to_the_sample(length: int) -> None:
    assert len(decode(CODECS["opus"].encode(sweep(length)))) == length


def test_opus_keeps_every_sample_in_its_place() -> None:
    pcm = sweep(160_000)
    whole = decode(CODECS["opus"].encode(pcm)).astype(np.float64)
    lags = correlate(whole[4000:156_000], pcm[4000:156_000] / 32768, mode="same", method="fft")
    assert int(np.argmax(lags)) == len(lags) // 2  # neither early nor late by a sample


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 128_000), st.integers(1, 32_000))
def test_a_crop_of_opus_is_the_slice_of_the_whole(start: int, length: int) -> None:
    pcm = sweep(160_000)
    encoded = CODECS["opus"].encode(pcm)
    whole = decode(encoded)[start : start + length]
    crop = decode(encoded, start, length)
    assert len(crop) == length
    assert np.abs(crop - whole).max() < 4e-3  # of a tone of 0.27: the decoder warms up for 80 ms before a crop


def test_equal_samples_give_equal_opus_though_libsndfile_draws_a_serial_number() -> None:
    files = [io.BytesIO() for _ in range(2)]
    for file in files:
        soundfile.write(file, sweep(40_000), 16_000, format="OGG", subtype="OPUS")
    assert files[0].getvalue() != files[1].getvalue()
    assert with_fixed_serial(files[0].getvalue()) == with_fixed_serial(files[1].getvalue())
    assert with_fixed_serial(files[0].getvalue()) == CODECS["opus"].encode(sweep(40_000))


def test_checksums_of_ogg_pages_are_those_of_a_loop_over_bits() -> None:
    data = CODECS["opus"].encode(sweep(20_000))
    first = data.index(b"OggS", 1)
    page = bytearray(data[:first])
    (found,) = struct.unpack_from("<I", page, 22)
    page[22:26] = bytes(4)
    remainder = 0
    for byte in page:
        remainder ^= byte << 24
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x104C11DB7 if remainder >> 31 else 0)) & 0xFFFFFFFF
    assert found == remainder


def test_what_is_no_ogg_stream_is_refused() -> None:
    with pytest.raises(DataError, match="begins no Ogg page"):
        with_fixed_serial(b"RIFF")


def test_other_programs_read_pcm() -> None:
    pcm = sweep(5000)
    rate_hz, read = wavfile.read(io.BytesIO(CODECS["pcm"].encode(pcm)))
    assert rate_hz == 16_000
    np.testing.assert_array_equal(read, pcm)


def test_wav_with_other_chunks_or_of_another_kind_is_read_too() -> None:
    pcm = sweep(3001)
    encoded = CODECS["pcm"].encode(pcm)
    with_note = encoded[:36] + struct.pack("<4sI", b"LIST", 5) + b"note!\0" + encoded[36:]
    np.testing.assert_array_equal(decode(with_note, 7, 100) * 32768, pcm[7:107])
    file = io.BytesIO()
    soundfile.write(file, pcm, 16_000, format="WAV", subtype="PCM_24")
    np.testing.assert_allclose(decode(file.getvalue()) * 32768, pcm)
    stereo = io.BytesIO()
    soundfile.write(stereo, np.stack([pcm, pcm], 1), 16_000, format="WAV")
    with pytest.raises(DataError, match="gave 3001 x 2"):
        decode(stereo.getvalue())


@pytest.mark.parametrize("name", CODECS)
def test_audio_that_is_cut_off_is_refused(name: str) -> None:
    encoded = CODECS[name].encode(sweep(60_000))
    with pytest.raises(DataError):
        decode(encoded[: len(encoded) // 2], 50_000, 5000)
    with pytest.raises(DataError, match="the audio has 60000"):
        decode(encoded, 59_000, 1001)


def test_an_unknown_codec_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="flac, opus, pcm"):
        codec_named("mp3")


def test_what_a_codec_takes_is_measured() -> None:
    waves = [sweep(48_000), sweep(64_000)]
    found = {name: measure(waves, name, passes=1) for name in CODECS}
    sizes = {name: record["mb_an_hour"] for name, record in found.items()}
    assert sizes["opus"] < sizes["flac"] < sizes["pcm"] == pytest.approx(115.2, rel=1e-3)
    assert all(record[key] > 0 for record in found.values() for key in ("whole", "crops", "crops_of_long", "encode"))
