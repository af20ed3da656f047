"""How batches reach a device."""

from typing import final

import torch
from lightning import LightningDataModule
from typing_extensions import override

from ossicle.core.batch import Batch


@final
class Transfer:
    """Copies of batches, which a GPU makes beside its work: the next batch arrives while a step is computed.

    The host is ahead of the GPU, so a copy among the step's work would begin when the step ends. It has a stream of
    its own here, on which only the step that reads the batch waits.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, batch: Batch, device: torch.device) -> Batch:
        """The batch on a device."""
        if device.type != "cuda":
            return batch.to(device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        here = torch.cuda.current_stream(device)
        with torch.cuda.stream(self._stream):
            moved = batch.to(device)
        here.wait_stream(self._stream)
        for tensor in moved.tensors().values():
            tensor.record_stream(here)  # its memory is the other stream's, to be used again when this one is done
        return moved


class BatchModule(LightningDataModule):
    """A data module of batches."""

    def __init__(self) -> None:
        super().__init__()
        self._transfer = Transfer()

    @override
    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return self._transfer(batch, device)
