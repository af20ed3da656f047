from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ossicle.core.errors import DataError
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.data.quarantine import Quarantine
from ossicle.data.utterances import decode_batches, iterate_utterances, length_batches


def test_whole_utterances_come_in_the_indexs_order_with_what_is_known(ramps: Path) -> None:
    index = DatasetIndex.load(ramps, "train")
    seen = list(iterate_utterances(index))
    assert [row for row, _, _ in seen] == list(range(index.num_utterances))
    for row, utterance, wave_S in seen:
        assert utterance == index.read_meta(row)
        assert wave_S.dtype == np.float32
        assert np.array_equal(wave_S, decode(index.read_audio(row)))


def test_ranks_share_the_utterances_and_a_seed_shuffles_them_alike(ramps: Path) -> None:
    index = DatasetIndex.load(ramps, "train")
    parts = [[row for row, _, _ in iterate_utterances(index, rank, 3, shuffle_seed=4)] for rank in range(3)]
    alone = [row for row, _, _ in iterate_utterances(index, shuffle_seed=4)]
    assert sorted(alone) == list(range(index.num_utterances))
    assert alone != sorted(alone)
    assert [part for rank in range(3) for part in parts[rank]] == alone[0::3] + alone[1::3] + alone[2::3]
    assert alone != [row for row, _, _ in iterate_utterances(index, shuffle_seed=5)]


def test_a_corrupt_utterance_stops_or_is_left_out_as_told(
    corrupted: Callable[[list[int]], DatasetIndex], tmp_path: Path
) -> None:
    index = corrupted([4, 30])
    with pytest.raises(DataError):
        list(iterate_utterances(index))
    quarantine = Quarantine(tmp_path / "log.jsonl", 0.5)
    rows = [row for row, _, _ in iterate_utterances(index, quarantine=quarantine)]
    assert rows == [row for row in range(60) if row not in {4, 30}]
    assert (quarantine.num_bad, quarantine.num_seen) == (2, 60)
    assert "ramp/30" in (tmp_path / "log.jsonl").read_text()


def test_stopping_early_leaves_no_thread_at_work(ramps: Path) -> None:
    utterances = iterate_utterances(DatasetIndex.load(ramps, "train"))
    assert next(utterances)[0] == 0
    utterances.close()  # ty: ignore[unresolved-attribute]
    with pytest.raises(StopIteration):
        next(utterances)


def test_batches_hold_every_utterance_once_and_no_more_audio_than_allowed(ramps: Path) -> None:
    index = DatasetIndex.load(ramps, "train")
    samples = index.rows["samples"].astype(int)
    rows = list(range(5, 55))
    batches = length_batches(index, rows, batch_s=6)
    assert sorted(row for batch in batches for row in batch) == rows
    assert max(len(batch) for batch in batches) > 2
    for batch in batches:
        longest, shortest = max(samples[batch]), min(samples[batch])
        assert len(batch) * longest <= 6 * 16_000
        assert shortest >= 0.8 * longest
    assert [len(batch) for batch in length_batches(index, rows, batch_s=0.1)] == [1] * 50
    assert length_batches(index, [], batch_s=6) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_are_decoded_in_their_order_and_lack_what_is_corrupt(
    corrupted: Callable[[list[int]], DatasetIndex], threads: int
) -> None:
    index = corrupted([4, 30])
    quarantine = Quarantine(None, 0.5)
    batches = length_batches(index, range(60), batch_s=6)
    decoded = list(decode_batches(index, batches, quarantine, threads=threads))
    assert [[row for row, _ in batch] for batch in decoded] == [[r for r in b if r not in {4, 30}] for b in batches]
    assert (quarantine.num_bad, quarantine.num_seen) == (2, 60)
    for row, wave_S in decoded[3]:
        assert np.array_equal(wave_S, decode(index.read_audio(row)))
