from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch.multiprocessing import reductions

from ossicle.core.batch import Batch


def test_a_batch_moves_as_a_whole() -> None:
    batch = Batch(torch.zeros(2, 8), 5, torch.arange(2), torch.zeros(2, dtype=torch.int64), torch.ones(2, 3))
    moved = batch.to(torch.device("meta"))
    tensors = (moved.waveform_BS, moved.ids_B, moved.starts_B, moved.labels_BT)
    assert all(t is not None and t.device.type == "meta" for t in tensors)
    assert moved.position == 5


def test_a_batch_without_labels_moves_too() -> None:
    batch = Batch(torch.zeros(2, 8), 0, torch.arange(2), torch.zeros(2))
    assert batch.to(torch.device("meta")).labels_BT is None


def test_the_clean_waveform_moves_with_the_batch_and_is_the_speech_where_there_is_one() -> None:
    index = torch.arange(2)
    plain = Batch(torch.zeros(2, 8), 0, index, index)
    assert plain.speech is plain.waveform_BS
    augmented = Batch(torch.zeros(2, 8), 0, index, index, clean_BS=torch.ones(2, 8))
    assert augmented.speech is augmented.clean_BS
    assert augmented.to(torch.device("meta")).speech.device.type == "meta"


def test_a_batch_goes_to_another_process_whole_and_shares_no_more_than_its_audio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared: list[int] = []
    share = reductions.reduce_storage

    def counted(storage: torch.UntypedStorage) -> object:
        shared.append(storage.nbytes())
        return share(storage)

    monkeypatch.setitem(ForkingPickler._extra_reducers, torch.UntypedStorage, counted)
    index = torch.arange(4)
    batch = Batch(torch.randn(4, 16_000), 9, index, index + 1, torch.ones(4, 49, dtype=torch.int64))
    sent = bytes(ForkingPickler.dumps(batch))
    assert shared == [4 * 16_000 * 4]
    arrived = ForkingPickler.loads(sent)
    assert (arrived.position, arrived.clean_BS) == (9, None)
    for name, tensor in batch.tensors().items():
        assert torch.equal(arrived.tensors()[name], tensor)
        assert arrived.tensors()[name].dtype == tensor.dtype
