"""Codebooks that follow a teacher's layers while it learns: DinoSR (arXiv 2305.10005, section 3.2) and SpidR."""

from collections.abc import Sequence
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float, Int64
from ossicle.layer.layer_reader import Read
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.ops.masking import gather_frames
from ossicle.ops.momentum import Momentum
from ossicle.target.ema_teacher import EmaTeacher


@final
class OnlineCodebook(EmaTeacher):
    """The nearest code of each of a teacher's last layers; codes are running means of the frames that chose them.

    A code is s / n, where s <- decay * s + (1 - decay) * sum of its frames and n likewise of their number, once an
    optimiser step, over all micro-batches and ranks (equations 3 and 4). A code that nothing chose stays as it is. The
    sums of all codebooks are one tensor: one all-reduce serves them.

    Args:
        clock: The clock of the model's frames.
        feature_dim: Channels of the frontend's frames (C).
        momentum: What the teacher keeps of itself, by optimiser step.
        num_codes: Codes of each layer (V).
        decay: What a codebook keeps of itself in a step.
        code_std: Standard deviation of the first codes; that of a layer's frames is 1. Small ones tell frames by their
            direction first, and so many are chosen from the start.
        top_layers: Layers that have a codebook, counted from the last (K).
        read: What is read of each.
        shared: Names of the model's parts that are not averaged but the student's own.
        masked_only: Whether codes are means of the frames alone that are masked for the student, as in DinoSR's public
            code, and not of all.

    Raises:
        ConfigError: Fewer than two codes, or a decay outside [0, 1).
    """

    state_KVE: Tensor
    pending_KVE: Tensor

    def __init__(
        self,
        clock: FrameClock,
        feature_dim: int,
        *,
        momentum: Momentum,
        num_codes: int = 256,
        decay: float = 0.9,
        code_std: float = 0.1,
        top_layers: int = 8,
        read: Read = "feed_forward",
        shared: Sequence[str] = (),
        masked_only: bool = False,
    ) -> None:
        super().__init__(clock, feature_dim, momentum=momentum, top_layers=top_layers, read=read, shared=shared)
        if num_codes < 2 or not 0 <= decay < 1:
            raise ConfigError(
                f"target.num_codes={num_codes}, target.decay={decay}", "give two codes at least, a decay in [0, 1)"
            )
        self.num_codes = num_codes
        self.decay = decay
        self.code_std = code_std
        self.masked_only = masked_only

    @override
    def adopt(self, model: SpeechEncoder) -> None:
        first = self.copy is None
        super().adopt(model)
        if first:
            codes_KVD = torch.randn(self.top_layers, self.num_codes, model.dim) * self.code_std
            state_KVE = torch.cat([codes_KVD, torch.ones_like(codes_KVD[..., :1])], -1)  # sums and, last, their number
            self.register_buffer("state_KVE", state_KVE)
            self.register_buffer("pending_KVE", torch.zeros_like(state_KVE), persistent=False)

    @property
    def codes_KVD(self) -> Float[Tensor, "K V D"]:
        """The codes."""
        return self.state_KVE[..., :-1] / self.state_KVE[..., -1:]

    @torch.no_grad()
    def codes(
        self,
        batch: Batch,
        features_BTC: Float[Tensor, "B T C"] | None = None,
        masked_BM: Int64[Tensor, "B M"] | None = None,
    ) -> Int64[Tensor, "K B T"]:
        """The code of every frame in every layer; in training they count towards the codebooks' next step.

        Args:
            batch: Crops of one length.
            features_BTC: The student's frontend's frames: see :meth:`~ossicle.target.base.Teacher.hear`.
            masked_BM: The student's masked frames of each row, which alone count with ``masked_only``; None where it
                masks nothing, and all count.
        """
        frames_KBTD = torch.stack(self.layers(batch, features_BTC))
        with torch.autocast(frames_KBTD.device.type, enabled=False):
            frames_KPD = frames_KBTD.flatten(1, 2)
            codes_KVD = self.codes_KVD
            # the nearest code has the largest z.e - |e|^2 / 2
            scores_KPV = torch.baddbmm(
                codes_KVD.square().sum(-1)[:, None], frames_KPD, codes_KVD.transpose(1, 2), beta=-0.5
            )
            chosen_KBT = scores_KPV.argmax(-1).view(frames_KBTD.shape[:-1])
            if self.training:
                if masked_BM is not None and self.masked_only:
                    self._count(*_some(frames_KBTD, chosen_KBT, masked_BM))
                else:
                    self._count(frames_KPD, chosen_KBT.flatten(1))
        return chosen_KBT

    def _count(self, frames_KPD: Float[Tensor, "K P D"], chosen_KP: Int64[Tensor, "K P"]) -> None:
        layers = torch.arange(self.top_layers, device=chosen_KP.device)[:, None]
        places = (layers * self.num_codes + chosen_KP).flatten()
        pending = self.pending_KVE.flatten(0, 1)
        pending[:, :-1].index_add_(0, places, frames_KPD.flatten(0, 1))
        pending[:, -1].index_add_(0, places, torch.ones_like(places, dtype=pending.dtype))

    @override
    @torch.no_grad()
    def follow(self, model: SpeechEncoder, *, step: int) -> None:
        super().follow(model, step=step)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.pending_KVE)
        moved_KVE = torch.lerp(self.pending_KVE, self.state_KVE, self.decay)
        self.state_KVE.copy_(torch.where(self.pending_KVE[..., -1:] > 0, moved_KVE, self.state_KVE))
        self.pending_KVE.zero_()


def _some(
    frames_KBTD: Float[Tensor, "K B T D"], chosen_KBT: Int64[Tensor, "K B T"], frames_BM: Int64[Tensor, "B M"]
) -> tuple[Float[Tensor, "K P D"], Int64[Tensor, "K P"]]:
    """Some frames of each row, the same in every layer, and their codes: P = B * M of them."""
    layers = len(frames_KBTD)
    some_RMD = gather_frames(frames_KBTD.flatten(0, 1), frames_BM.repeat(layers, 1))
    codes_KBM = chosen_KBT.gather(2, frames_BM.expand(layers, -1, -1))
    return some_RMD.view(layers, -1, some_RMD.shape[-1]), codes_KBM.flatten(1)
