"""Which frames a mixer's outputs know, by gradients."""

import torch
from torch import nn

from ossicle.mixer.base import Mixer


def noisy(mixer: Mixer, std: float = 0.4) -> Mixer:
    """The mixer in float64 and evaluation, with weights that leave nothing at zero."""
    torch.manual_seed(5)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=std)
    return mixer.double().eval()


def known(mixer: Mixer, frames: int, dim: int, lengths: list[int]) -> torch.Tensor:
    """Whether output t of the last row has a gradient at its frame s, shape (T, T); other rows must have none."""
    x_BTD = torch.randn(len(lengths), frames, dim, dtype=torch.float64, requires_grad=True)
    valid_BT = torch.arange(frames) < torch.tensor(lengths)[:, None]
    out_BTD = mixer(x_BTD, valid_BT)
    table = torch.zeros(frames, frames, dtype=torch.bool)
    for t in range(lengths[-1]):
        (grad_BTD,) = torch.autograd.grad(out_BTD[-1, t].square().sum(), x_BTD, retain_graph=True)
        table[t] = grad_BTD[-1].abs().sum(-1) > 0
        assert grad_BTD[:-1].abs().sum() == 0
    return table


def everything(frames: int, length: int) -> torch.Tensor:
    """What a mixer of the whole row knows: every real frame, and no other."""
    real_T = torch.arange(frames) < length
    return real_T[:, None] & real_T
