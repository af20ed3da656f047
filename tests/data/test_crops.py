from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ossicle.core.errors import DataError
from ossicle.data import crops
from ossicle.data.audio import decode
from ossicle.data.codecs import CODECS
from ossicle.data.crops import FlacFrames, PlainSamples, WholeFile, encoded_crop
from ossicle.data.index import DatasetIndex
from ossicle.data.plan import BatchSpec
from ossicle.data.reader import BatchReader

KINDS = {"flac": FlacFrames, "pcm": PlainSamples, "opus": WholeFile}


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize("num_samples", [20_000, 300_000])
def test_a_crop_of_every_codec_is_what_the_whole_file_decodes_to(codec: str, num_samples: int) -> None:
    pcm = np.random.default_rng(0).integers(-9_000, 9_000, num_samples, dtype=np.int16)
    data = CODECS[codec].encode(pcm)
    for start, length in ((0, num_samples), (0, 1), (7_000, 9_000), (num_samples - 400, 400)):
        crop = encoded_crop(lambda first, size: data[first : first + size], len(data), start, length)
        assert isinstance(crop, KINDS[codec])
        out_S = np.full(length, np.nan, np.float32)
        crop.decode_into(out_S)
        np.testing.assert_array_equal(out_S, decode(data, start, length))


def test_plain_samples_are_read_and_nothing_else() -> None:
    data = CODECS["pcm"].encode(np.zeros(300_000, np.int16))
    read: list[tuple[int, int]] = []

    def part(first: int, size: int) -> bytes:
        read.append((first, size))
        return data[first : first + size]

    encoded_crop(part, len(data), 1_000, 500)
    assert read[1:] == [(44 + 2_000, 1_000)]


@pytest.mark.parametrize("codec", sorted(CODECS))
@pytest.mark.parametrize(("start", "length"), [(0, 30_001), (-1, 5), (29_999, 2)])
def test_a_crop_outside_the_audio_is_refused(codec: str, start: int, length: int) -> None:
    data = CODECS[codec].encode(np.zeros(30_000, np.int16))
    with pytest.raises(DataError, match="the audio has 30000"):
        encoded_crop(lambda first, size: data[first : first + size], len(data), start, length).decode_into(
            np.empty(length, np.float32)
        )


@pytest.mark.parametrize("codec", ["flac", "pcm"])
def test_audio_that_is_cut_off_is_an_error(codec: str) -> None:
    pcm = np.random.default_rng(0).integers(-9_000, 9_000, 30_000, dtype=np.int16)
    data = CODECS[codec].encode(pcm)[:20_000]
    with pytest.raises(DataError):
        encoded_crop(lambda first, size: data[first : first + size], len(data), 20_000, 9_000).decode_into(
            np.empty(9_000, np.float32)
        )


def test_an_utterance_whose_frames_are_not_found_right_is_decoded_whole(
    ramps: Path, reader_of: Callable[..., BatchReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = DatasetIndex.load(ramps, "train")
    spec = BatchSpec(0, 0, 0, np.arange(6))
    right = reader_of(index).read(spec)
    monkeypatch.setattr(crops.flac, "cut", lambda *_: (b"fLaC and then nothing", 0))
    reader = reader_of(index)
    batch = reader.read(spec)
    assert batch.ids_B.tolist() == right.ids_B.tolist() == list(range(6))
    assert np.array_equal(batch.waveform_BS.numpy(), right.waveform_BS.numpy())
    assert reader.quarantine.num_bad == 0
