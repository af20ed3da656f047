import torch

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
