import pytest
import torch

from ossicle.core.batch import Batch
from ossicle.data.transfer import Transfer


def batch_of(value: float, samples: int = 16_000) -> Batch:
    none_B = torch.zeros(4, dtype=torch.int64)
    return Batch(torch.full((4, samples), value), 3, none_B, none_B + 1, labels_BT=torch.ones(4, 49, dtype=torch.int64))


def test_a_batch_stays_whole_on_its_way() -> None:
    moved = Transfer()(batch_of(0.5), torch.device("meta"))
    assert (moved.position, moved.clean_BS) == (3, None)
    assert set(moved.tensors()) == {"waveform_BS", "ids_B", "starts_B", "labels_BT"}
    assert all(tensor.is_meta for tensor in moved.tensors().values())


def test_on_a_cpu_nothing_is_copied() -> None:
    batch = batch_of(0.5)
    assert Transfer()(batch, torch.device("cpu")).waveform_BS is batch.waveform_BS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_gpu_reads_has_arrived_and_is_not_written_over_before_it_was_read() -> None:
    device = torch.device("cuda")
    transfer = Transfer()
    busy = torch.randn(4096, 4096, device=device)
    sums = []
    for number in range(20):
        batch = transfer(batch_of(float(number), samples=1_000_000).pin_memory(), device)
        busy = (busy @ busy).clamp(-1, 1)  # so that the host is ahead by the time that this batch is read
        sums.append(batch.waveform_BS.mean() + 0 * busy[0, 0])
    torch.testing.assert_close(torch.stack(sums).cpu(), torch.arange(20.0))
