"""Attention by feature maps: sums over keys are made once for all queries, so that cost is linear in T."""

import torch
from torch import Tensor

from ossicle.core.shapes import Bool, Float
from ossicle.ops.precision import without_autocast

SMALLEST = 1e-20
"""What a sum of weights is at least; far below that of any real frame, so that only rows without one feel it."""


def elu_features(x_BTHK: Float[Tensor, "B T H K"]) -> Float[Tensor, "B T H K"]:
    """elu(x) + 1 (arXiv 2006.16236, equation 7), in float32 at least.

    Written as a sum without a difference: in half precision (exp(x) - 1) + 1 is zero from x = -6 on.
    """
    x_BTHK = x_BTHK.to(torch.promote_types(x_BTHK.dtype, torch.float32))
    return x_BTHK.clamp(max=0).exp() + x_BTHK.relu()


def attend_features(
    q_BTHC: Float[Tensor, "B T H C"],
    k_BTHC: Float[Tensor, "B T H C"],
    v_BTHK: Float[Tensor, "B T H K"],
    valid_BT: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T H K"]:
    """Means of values weighted by the products of query and key features (arXiv 2006.16236, equations 5 and 6).

    Sums over frames are taken in float32 at least, whatever comes in: they grow with T.

    Args:
        q_BTHC: Features of queries, not negative, shape (B, T, H, C).
        k_BTHC: Features of keys, not negative, same shape.
        v_BTHK: Values, shape (B, T, H, K).
        valid_BT: True where a frame is real, or None where every frame is; the others are not attended to.

    Returns:
        Mixed values in the type of the values, shape (B, T, H, K).
    """
    wide = torch.promote_types(v_BTHK.dtype, torch.float32)
    if valid_BT is not None:
        k_BTHC = k_BTHC.masked_fill(~valid_BT[..., None, None], 0)
    with without_autocast(v_BTHK):
        q_BHTC, k_BHTC, v_BHTK = (x.to(wide).transpose(1, 2) for x in (q_BTHC, k_BTHC, v_BTHK))
        sums_BHCK = k_BHTC.mT @ v_BHTK
        total_BHC1 = k_BHTC.sum(2)[..., None]
        mixed_BHTK = (q_BHTC @ sums_BHCK) / (q_BHTC @ total_BHC1).clamp(min=SMALLEST)
    return mixed_BHTK.transpose(1, 2).to(v_BTHK.dtype)
