"""Attention to places that are learned instead of keys: what Synthesizers share (arXiv 2005.00743)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float
from ossicle.layer.feed_forward import INIT_STD


def learned_places(num_heads: int, max_frames: int, width: int) -> nn.Parameter:
    """A learned vector for each head and place, (H, L, K).

    Raises:
        ConfigError: There is no place.
    """
    if max_frames < 1:
        raise ConfigError(f"mixer.max_frames={max_frames}", "it counts frames: at least those of the longest input")
    places_HLK = nn.Parameter(torch.empty(num_heads, max_frames, width))
    nn.init.normal_(places_HLK, std=INIT_STD)
    return places_HLK


def attend_places(
    q_BHTK: Float[Tensor, "B H T K"],
    places_HLK: Float[Tensor, "H L K"],
    v_BTHK: Float[Tensor, "B T H K"],
    valid_BT: Bool[Tensor, "B T"] | None,
    dropout: float,
) -> Float[Tensor, "B T H K"]:
    """Softmax over the first T places of what stands for queries times what stands for a place, without a scale.

    It has the form of attention, so that a fused kernel serves and no T x T scores are held.

    Args:
        q_BHTK: What stands for queries, shape (B, H, T, K).
        places_HLK: What stands for keys, for L places.
        v_BTHK: Values.
        valid_BT: True where a frame is real, or None where every frame is.
        dropout: Probability with which an attention weight is dropped; 0 outside training.

    Raises:
        ConfigError: There are more frames than places.
    """
    rows, frames = v_BTHK.shape[:2]
    check_places(frames, places_HLK.shape[1])
    k_BHTK = places_HLK[:, :frames].to(q_BHTK.dtype).expand(rows, -1, -1, -1)
    real = None if valid_BT is None else valid_BT[:, None, None, :]
    v_BHTK = v_BTHK.transpose(1, 2)
    return functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, real, dropout, scale=1.0).transpose(1, 2)


def attend_scores(
    scores_BHTS: Float[Tensor, "B H T S"],
    v_BTHK: Float[Tensor, "B S H K"],
    valid_BT: Bool[Tensor, "B S"] | None,
    dropout: float,
) -> Float[Tensor, "B T H K"]:
    """Means of values by the softmax of scores that are written out, as no product of two vectors makes them.

    Args:
        scores_BHTS: Scores of each frame for each place.
        v_BTHK: Values.
        valid_BT: True where a frame is real, or None where every frame is.
        dropout: Probability with which an attention weight is dropped; 0 outside training.
    """
    if valid_BT is not None:
        scores_BHTS = scores_BHTS.masked_fill(~valid_BT[:, None, None, :], torch.finfo(scores_BHTS.dtype).min)
    weights_BHTS = functional.dropout(scores_BHTS.softmax(-1), dropout)
    return (weights_BHTS.to(v_BTHK.dtype) @ v_BTHK.transpose(1, 2)).transpose(1, 2)


def check_places(num_frames: int, max_frames: int) -> None:
    """Refuse more frames than there are places.

    Raises:
        ConfigError: There are more frames than places.
    """
    if num_frames > max_frames:
        raise ConfigError(
            f"a synthesizer with mixer.max_frames={max_frames} was given {num_frames} frames",
            f"set mixer.max_frames={num_frames} or more and train it at that length, or cut the audio",
        )
