"""Rotary position embedding (arXiv 2104.09864)."""

import torch
from torch import Tensor

from ossicle.core.shapes import Float, Int


def rotary_angles(
    place_T: Int[Tensor, "*rows T"], head_dim: int, base: float = 10_000.0
) -> Float[Tensor, "*rows T half"]:
    """Angles of each pair of channels at each frame: place x base^(-2i / K) (arXiv 2104.09864, equation 15).

    Args:
        place_T: Places of frames.
        head_dim: Width of a head (K), even.
        base: Of the frequencies.

    Returns:
        Radians in float32, shape (..., T, K / 2).
    """
    exponents = torch.arange(0, head_dim, 2, device=place_T.device, dtype=torch.float32) / head_dim
    return place_T[..., None] * base**-exponents


def rotate(x_BTHK: Float[Tensor, "*rows H K"], angle_T: Float[Tensor, "*places half"]) -> Float[Tensor, "*rows H K"]:
    """Channels i and i + K/2 turned as a pair by their frame's angle (arXiv 2104.09864, equation 34).

    The paper pairs neighbours, the released models the two halves; the two differ by an order of channels.

    Args:
        x_BTHK: Queries or keys, shape (..., T, H, K).
        angle_T: Angles of :func:`rotary_angles`, shape (..., T, K / 2).
    """
    wide = torch.promote_types(x_BTHK.dtype, torch.float32)
    angle_T1 = angle_T.to(wide)[..., None, :]
    cos, sin = angle_T1.cos(), angle_T1.sin()
    first, second = x_BTHK.to(wide).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x_BTHK.dtype)
