"""Linear recurrences in plain torch by an associative scan, and selective state spaces by it."""

from typing import Final, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ossicle.core.shapes import Float
from ossicle.ops.precision import without_autocast

SEGMENT: Final = 256
"""Frames whose states are in memory at once."""


def selective_scan_by_pairs(  # noqa: PLR0917
    x_BTE: Float[Tensor, "B T E"],
    step_BTE: Float[Tensor, "B T E"],
    rates_EN: Float[Tensor, "E N"],
    enter_BTN: Float[Tensor, "B T N"],
    leave_BTN: Float[Tensor, "B T N"],
    segment: int = SEGMENT,
) -> Float[Tensor, "B T E"]:
    """What ``ossicle.ops.selective_scan.selective_scan`` says, differentiated by autograd.

    Frames go through in segments, one after another, whose states are computed again in the backward pass: memory grows
    with the frames and not with their states.

    Args:
        x_BTE: As all to ``leave_BTN`` what it takes there, of one type.
        step_BTE: See there.
        rates_EN: See there.
        enter_BTN: See there.
        leave_BTN: See there.
        segment: Frames of a segment.
    """
    frames = [tensor.split(segment, 1) for tensor in (x_BTE, step_BTE, enter_BTN, leave_BTN)]
    state_BEN = x_BTE.new_zeros(len(x_BTE), *rates_EN.shape)
    again = len(frames[0]) > 1 and torch.is_grad_enabled()
    said = []
    for parts in zip(*frames, strict=True):
        arguments = (*parts, rates_EN, state_BEN)
        if again:
            said_BTE, state_BEN = checkpoint(_segment, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            said_BTE, state_BEN = _segment(*arguments)
        said.append(said_BTE)
    return torch.cat(said, 1)


def _segment(  # noqa: PLR0917
    x_BTE: Tensor, step_BTE: Tensor, enter_BTN: Tensor, leave_BTN: Tensor, rates_EN: Tensor, state_BEN: Tensor
) -> tuple[Tensor, Tensor]:
    """What a segment says, and the states that it ends with."""
    kept_BTEN = torch.exp(step_BTE[..., None] * rates_EN)
    entered_BTEN = (step_BTE * x_BTE)[..., None] * enter_BTN[:, :, None]
    first_BTEN = torch.addcmul(entered_BTEN[:, :1], kept_BTEN[:, :1], state_BEN[:, None])
    states_BTEN = linear_scan(kept_BTEN, torch.cat([first_BTEN, entered_BTEN[:, 1:]], 1))
    with without_autocast(x_BTE):
        said_BTE = (states_BTEN @ leave_BTN[..., None]).squeeze(-1)
    return said_BTE, states_BTEN[:, -1]


def linear_scan(kept: Float[Tensor, "B T *rest"], entered: Float[Tensor, "B T *rest"]) -> Float[Tensor, "B T *rest"]:
    """h_t = kept_t h_{t-1} + entered_t from zero, with work of O(T) in O(log T) steps, there and back.

    One operation to torch.compile, which would otherwise write out every step.

    Args:
        kept: Factors, shape (B, T, ...).
        entered: Summands, same shape.
    """
    return _linear_scan(kept, entered)


def _scan(kept: Tensor, entered: Tensor) -> Tensor:
    """By pairs: the states at odd places are a scan of half the length, and those at even places follow from them."""
    num_frames = kept.shape[1]
    if num_frames == 1:
        return entered
    pairs = num_frames // 2
    later = kept[:, 1::2]
    odd = _scan(kept[:, : 2 * pairs : 2] * later, torch.addcmul(entered[:, 1::2], later, entered[:, : 2 * pairs : 2]))
    following = torch.addcmul(entered[:, 2::2], kept[:, 2::2], odd[:, : (num_frames - 1) // 2])
    even = torch.cat([entered[:, :1], following], 1)
    both = torch.stack([even[:, :pairs], odd], 2).flatten(1, 2)
    return both if num_frames % 2 == 0 else torch.cat([both, even[:, -1:]], 1)


@torch.library.custom_op("ossicle::linear_scan", mutates_args=())
def _linear_scan(kept: Tensor, entered: Tensor) -> Tensor:
    return _scan(kept, entered).contiguous() if kept.shape[1] > 1 else entered.clone()


@_linear_scan.register_fake
def _linear_scan_shape(kept: Tensor, entered: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(entered, memory_format=torch.contiguous_format)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    """Keep what the way back needs."""
    ctx.save_for_backward(inputs[0], output)


def _gradient(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
    """A scan from the last frame to the first."""
    kept, states = cast("tuple[Tensor, Tensor]", getattr(ctx, "saved_tensors"))  # noqa: B009
    following = torch.cat([kept[:, 1:], torch.zeros_like(kept[:, :1])], 1)
    total = _linear_scan(following.flip(1), grad.flip(1)).flip(1)
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    return total * before, total


_linear_scan.register_autograd(_gradient, setup_context=_save)
