import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.core.errors import DataError
from ossicle.data import flac
from ossicle.data.audio import decode, encode_flac
from ossicle.data.crops import FlacFrames, encoded_crop

FRAME = 4_096
NUM_SAMPLES = 400_000


def uneven(num_samples: int = NUM_SAMPLES) -> np.ndarray:
    """Loud noise, silence and tones by turns: frames of very different sizes."""
    draw = np.random.default_rng(0)
    loudness = np.repeat(10.0 ** draw.uniform(0, 4, num_samples // 5_000 + 1), 5_000)[:num_samples]
    loudness[num_samples // 3 : num_samples // 2] = 0
    return (draw.normal(size=num_samples) * loudness / 3).clip(-32_768, 32_767).astype(np.int16)


PCM = uneven()
ENCODED = encode_flac(PCM)


class Counted:
    """Reads some bytes, and counts how many."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.num_reads = 0
        self.num_bytes = 0

    def __call__(self, first: int, size: int) -> bytes:
        self.num_reads += 1
        self.num_bytes += size
        return self.data[first : first + size]


def cropped(data: bytes, start: int, num_samples: int) -> np.ndarray:
    crop = encoded_crop(Counted(data), len(data), start, num_samples)
    assert isinstance(crop, FlacFrames)
    out_S = np.full(num_samples, np.nan, np.float32)
    crop.decode_into(out_S)
    return out_S * 32_768


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cut_stream_holds_the_samples_of_the_whole(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, NUM_SAMPLES - 1))
    length = data.draw(st.integers(1, NUM_SAMPLES - start))
    np.testing.assert_array_equal(cropped(ENCODED, start, length), PCM[start : start + length])


@pytest.mark.parametrize("num_samples", [1, 5, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME, 3 * FRAME + 7])
def test_crops_at_the_borders_of_frames_and_of_the_audio_are_right(num_samples: int) -> None:
    pcm = PCM[:num_samples]
    encoded = encode_flac(pcm)
    for start in {0, num_samples - 1, num_samples // FRAME * FRAME, max(0, num_samples - FRAME)} - {num_samples}:
        for length in {1, num_samples - start}:
            np.testing.assert_array_equal(cropped(encoded, start, length), pcm[start : start + length])


def test_a_crop_out_of_long_audio_needs_few_bytes_and_few_reads() -> None:
    pcm = uneven(3_200_000)
    encoded = encode_flac(pcm)
    most = 0
    for start in np.random.default_rng(0).integers(0, len(pcm) - 32_000, 50).tolist():
        read = Counted(encoded)
        encoded_crop(read, len(encoded), start, 32_000)
        most = max(most, read.num_bytes)
        assert read.num_reads < 12
    assert most < len(encoded) / 5


def test_the_numbers_of_frames_are_those_of_the_stream() -> None:
    layout = flac.Layout.of(ENCODED[: flac.HEAD_BYTES], len(ENCODED))
    assert layout is not None
    info = soundfile.info(io.BytesIO(ENCODED))
    assert (layout.num_samples, layout.frame_samples) == (info.frames, FRAME)
    numbers = [number for number, _ in flac._numbers(ENCODED, layout)]
    whole = NUM_SAMPLES // FRAME  # the last frame is shorter, and marked otherwise
    assert numbers == list(range(whole))


@pytest.mark.parametrize("number", [0, 1, 127, 128, 2_047, 2_048, 65_535, 65_536, 2_097_151, 2_097_152, 2**31 - 1])
def test_numbers_of_any_length_are_read(number: int) -> None:
    # FLAC codes a number as UTF-8 did when it still reached 31 bits
    coded = chr(number).encode("utf-8", "surrogatepass") if number < 0x110000 else long_utf8(number)
    header = b"\xff\xf8\xc5\x08" + coded
    header += bytes([crc8(header)])
    assert flac.frame_number(header + b"\0" * 8) == number
    wrong = header[:-1] + bytes([header[-1] ^ 1])
    assert flac.frame_number(wrong + b"\0" * 8) is None


def long_utf8(number: int) -> bytes:
    size = 5 if number < 1 << 26 else 6
    tail = [0x80 | number >> 6 * k & 0x3F for k in reversed(range(size - 1))]
    return bytes([0xFF00 >> size & 0xFF | number >> 6 * (size - 1), *tail])


def crc8(data: bytes) -> int:
    """Bit by bit, polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc


def test_damage_gives_an_error_or_the_right_samples() -> None:
    draw = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(ENCODED)
        place = int(draw.integers(200, len(ENCODED) - 50))
        damaged[place : place + 20] = draw.bytes(20)
        start = int(draw.integers(0, NUM_SAMPLES - 60_000))
        out_S = np.empty(60_000, np.float32)
        try:
            encoded_crop(Counted(bytes(damaged)), len(damaged), start, 60_000).decode_into(out_S)
        except DataError:
            outcomes.add("error")
        else:
            np.testing.assert_array_equal(out_S * 32_768, PCM[start : start + 60_000])
            outcomes.add("right")
    assert outcomes == {"error", "right"}


def test_samples_that_look_like_a_frame_header_give_no_wrong_samples() -> None:
    noise = np.random.default_rng(0).integers(-32_768, 32_768, 40 * FRAME, dtype=np.int16)
    fake = b"\xff\xf8\xc5\x08\x14"  # frame 20
    fake += bytes([crc8(fake)])
    noise[18 * FRAME + 100 : 18 * FRAME + 103] = struct.unpack(">3h", fake)
    encoded = encode_flac(noise)
    assert fake in encoded  # noise is stored as it is
    out_S = np.empty(2 * FRAME, np.float32)
    for frame in range(17, 22):
        try:
            encoded_crop(Counted(encoded), len(encoded), frame * FRAME, 2 * FRAME).decode_into(out_S)
        except DataError:
            continue  # the reader then decodes the whole
        np.testing.assert_array_equal(out_S * 32_768, noise[frame * FRAME : (frame + 2) * FRAME])


def test_streams_of_other_kinds_are_left_to_the_decoder() -> None:
    stereo = io.BytesIO()
    soundfile.write(stereo, np.zeros((9_000, 2), np.int16), 16_000, format="FLAC")
    for data in (b"", b"fLaC", ENCODED[:50], b"RIFF" + ENCODED[4:], stereo.getvalue()):
        assert flac.Layout.of(data[: flac.HEAD_BYTES], len(data)) is None
    no_frames = ENCODED[:8_192] + bytes(len(ENCODED) - 8_192)
    layout = flac.Layout.of(no_frames[: flac.HEAD_BYTES], len(no_frames))
    assert layout is not None
    assert flac.cut(Counted(no_frames), layout, NUM_SAMPLES - 9_000, 500) is None
    with pytest.raises(DataError):
        decode(no_frames, NUM_SAMPLES - 9_000, 500)
