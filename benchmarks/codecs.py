"""What a way to store audio takes: bytes, and processor time to encode, to decode and to cut crops.

    python benchmarks/codecs.py shards=corpora/synthetic passes=9 out=codecs.json

Utterances of 3 to 12 s, and 300 s of them in one file, are encoded in memory by each codec and read as the reader reads
shards; the system libsndfile is soundfile.read alone. A figure is the best of its passes, in seconds of audio a second
of one thread's processor time.
"""

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from ossicle.data.audio import RATE_HZ, decode
from ossicle.data.codecs import CODECS
from ossicle.data.crops import encoded_crop
from ossicle.data.index import DatasetIndex

SHORTEST_S, LONGEST_S, NUM_UTTERANCES, LONG_S, CROP_S = 3, 12, 60, 300, 2


def utterances(index: DatasetIndex) -> list[NDArray[np.int16]]:
    """Utterances of a usual length, int16, shape (S,) each."""
    seconds_N = index.rows["samples"] / RATE_HZ
    rows = np.flatnonzero((seconds_N >= SHORTEST_S) & (seconds_N <= LONGEST_S))[:NUM_UTTERANCES]
    return [(decode(index.read_audio(row)) * 32768).astype(np.int16) for row in rows.tolist()]


def best_s(work: Callable[[], object], passes: int) -> float:
    """The least processor time of several passes, in seconds."""
    times = []
    for _ in range(passes):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def decode_all(files: Sequence[bytes]) -> None:
    """Every file as a whole."""
    for data in files:
        decode(data)


def cut_all(files: Sequence[bytes], places: Sequence[tuple[int, int]]) -> None:
    """A crop at each place, a file and the crop's first sample, into one array, as the reader does."""
    out_S = np.empty(CROP_S * RATE_HZ, np.float32)
    for number, start in places:
        data = files[number]
        encoded_crop(partial(part_of, data), len(data), start, len(out_S)).decode_into(out_S)


def part_of(data: bytes, first: int, size: int) -> bytes:
    """Some bytes."""
    return data[first : first + size]


def places_in(waves: Sequence[NDArray[np.int16]], num_crops: int) -> list[tuple[int, int]]:
    """Crops at random, in files by turns."""
    draw = np.random.default_rng(0)
    numbers = [number % len(waves) for number in range(num_crops)]
    return [(number, int(draw.integers(0, len(waves[number]) - CROP_S * RATE_HZ))) for number in numbers]


def measure(waves: Sequence[NDArray[np.int16]], name: str, passes: int) -> dict[str, object]:
    """One codec's figures."""
    whole = np.concatenate(waves)
    long = [np.resize(whole, LONG_S * RATE_HZ)]
    audio_s = len(whole) / RATE_HZ
    encode = CODECS[name].encode
    start = time.process_time()
    files = [encode(wave) for wave in waves]
    encode_s = time.process_time() - start
    crops, far = places_in(waves, 2 * len(waves)), places_in(long, 2 * len(waves))
    one = [encode(long[0])]
    crops_s = best_s(lambda: cut_all(files, crops), passes)
    return {
        "system": "ossicle", "device": "cpu", "codec": name, "mb_an_hour": sum(map(len, files)) / audio_s * 3600 / 1e6,
        "whole": audio_s / best_s(lambda: decode_all(files), passes),
        "crops": CROP_S * len(crops) / crops_s,
        "crops_of_long": CROP_S * len(far) / best_s(lambda: cut_all(one, far), passes),
        "us_a_crop": crops_s / len(crops) * 1e6,
        "encode": audio_s / encode_s,
    }  # fmt: skip


def peer(waves: Sequence[NDArray[np.int16]], dtype: str, passes: int) -> dict[str, object]:
    """FLAC by soundfile.read, as samples of a type."""
    files = [CODECS["flac"].encode(wave) for wave in waves]
    took_s = best_s(lambda: [soundfile.read(io.BytesIO(data), dtype=dtype) for data in files], passes)
    audio_s = sum(map(len, waves)) / RATE_HZ
    return {"system": "libsndfile", "device": "cpu", "codec": "flac", "dtype": dtype, "whole": audio_s / took_s}


def main(arguments: list[str]) -> None:
    """Measure, print a table, and write the records where ``out`` is given."""
    given = dict(argument.split("=", 1) for argument in arguments)
    waves = utterances(DatasetIndex.load(given["shards"], given.get("split", "train")))
    print(f"{len(waves)} utterances, {sum(map(len, waves)) / RATE_HZ:.0f} s")
    passes = int(given.get("passes", "9"))
    records = [measure(waves, name, passes) for name in CODECS]
    for key in ("mb_an_hour", "whole", "crops", "crops_of_long", "us_a_crop", "encode"):
        print(f"{key:<14}" + "".join(f"{record['codec']:>8} {record[key]:>10,.1f}" for record in records))
    for dtype in ("float32", "int16"):
        records.append(peer(waves, dtype, passes))
        print(f"soundfile.read of FLAC as {dtype}: {records[-1]['whole']:,.1f} whole")
    if "out" in given:
        Path(given["out"]).write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
