"""The step around a peer's model: autocast, backward, clipping and AdamW, as its own training script has them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.launch.bench.steps import Facts, StepWork, Subject

COMMON = "autocast, backward, clip_grad_norm_, fused AdamW, zero_grad; no loader, no schedule, no logging"


class TorchStep(Subject):
    """Steps of a peer's model.

    Args:
        model: The model with all that its loss needs, on the device.
        loss: Says the loss of the batch, a scalar to be minimised.
        work: What is asked for.
        macs: Multiply-accumulates of a forward pass over one crop, or why they are unknown.
        note: What this peer's step includes and what not, beside what is common.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[], Tensor], work: StepWork, *, macs: int | str, note: str
    ) -> None:
        self.model = model.train()
        self.loss = loss
        self.work = work
        self.macs = macs
        self.note = note
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # a rate at which random labels lead nowhere: what a step costs does not depend on it
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1e-7, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True
        )

    @override
    def step(self) -> Tensor:
        with torch.autocast(self.work.device, torch.bfloat16, enabled=self.work.bfloat16):
            loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    @override
    def facts(self) -> Facts:
        return Facts(
            params=sum(p.numel() for p in self.parameters),
            macs_per_audio_s=self.macs
            if isinstance(self.macs, str)
            else self.macs * self.work.rate_hz / self.work.samples,
            precision="bfloat16" if self.work.bfloat16 else "float32",
            compiled=self.work.compile,
            note=f"{self.note}; {COMMON}",
        )
