"""The terms that objectives are summed from, computed in float32 whatever autocast says."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.core.shapes import Float, Int64


def contrastive_logits(
    context_BMD: Float[Tensor, "B M D"],
    quantised_BMD: Float[Tensor, "B M D"],
    codes_BMG: Int64[Tensor, "B M G"],
    negatives_BMN: Int64[Tensor, "B M N"],
    *,
    temperature: float,
) -> Float[Tensor, "B M _"]:
    """Cosine similarity of each context with its own quantised frame and with its negatives (arXiv 2006.11477, eq. 3).

    All pairs of a row come from one matrix product, of which the negatives are picked: N vectors a frame are never
    laid out. A negative that has the codes of the positive is the positive under another index and gets -inf, as in
    the authors' implementation.

    Args:
        context_BMD: What the encoder says of the masked frames, projected.
        quantised_BMD: The frames' quantised vectors, projected.
        codes_BMG: The frames' codes in each group of the quantiser.
        negatives_BMN: Places of the negatives among the row's masked frames.
        temperature: Divides the similarities.

    Returns:
        Float32 logits of shape (B, M, 1 + N), the positive first.
    """
    with torch.autocast(context_BMD.device.type, enabled=False):
        context = functional.normalize(context_BMD.float(), dim=-1)
        quantised = functional.normalize(quantised_BMD.float(), dim=-1)
        similarity_BMM = context @ quantised.transpose(1, 2) / temperature
    rows, masked, num = negatives_BMN.shape
    flat = negatives_BMN.reshape(rows, masked * num, 1).expand(-1, -1, codes_BMG.shape[-1])
    negative_codes = codes_BMG.gather(1, flat).reshape(rows, masked, num, -1)
    same_BMN = (negative_codes == codes_BMG.unsqueeze(2)).all(-1)
    positive_BM1 = similarity_BMM.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    negative_BMN = similarity_BMM.gather(2, negatives_BMN).masked_fill(same_BMN, -math.inf)
    return torch.cat((positive_BM1, negative_BMN), dim=-1)


def diversity_loss(code_probabilities_GV: Float[Tensor, "G V"]) -> Float[Tensor, ""]:
    """The share of codes that a quantiser leaves unused, in [0, 1): (GV - sum of the groups' perplexities) / GV.

    arXiv 2006.11477, equation 4, in the form that the authors' implementation trains.

    Args:
        code_probabilities_GV: Probability of each code, averaged over frames; sums to 1 in each group.
    """
    probabilities = code_probabilities_GV.float()
    tiny = torch.finfo(torch.float32).tiny  # keeps the gradient finite where a probability underflows to 0
    entropy_G = -(probabilities * probabilities.clamp_min(tiny).log()).sum(-1)
    return 1 - entropy_G.exp().sum() / probabilities.numel()


def feature_penalty(features_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, ""]:
    """Mean square of a frontend's frames before normalisation, which keeps them from growing."""
    return features_BTC.float().square().mean()


def frame_deviation(x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, ""]:
    """Standard deviation over a row's frames, averaged over channels and rows: near 0 where all frames are alike."""
    x_BTD = x_BTD.detach().float()
    if x_BTD.is_cuda:
        return x_BTD.std(dim=1, correction=0).mean()
    # a CPU takes twenty times longer for std over frames, value by value, than for these vectors
    centred_BTD = x_BTD - x_BTD.mean(1, keepdim=True)
    return centred_BTD.square_().mean(1).sqrt().mean()


def regression_loss(
    predicted_BMD: Float[Tensor, "B M D"], wanted_BMD: Float[Tensor, "B M D"], *, beta: float
) -> Float[Tensor, ""]:
    """Distance of predictions and targets, summed over frames, float32.

    A frame's distance is summed over channels and divided by the root of their number, as in the authors' recipes of
    data2vec. With beta above 0 each channel's is d^2 / (2 beta) up to beta and |d| - beta / 2 beyond (arXiv 2202.03555,
    equation 3); at 0 it is d^2.

    Args:
        predicted_BMD: Predictions.
        wanted_BMD: Targets.
        beta: Where the square turns into a line.
    """
    with torch.autocast(predicted_BMD.device.type, enabled=False):
        predicted, wanted = predicted_BMD.float(), wanted_BMD.float()
        if beta:
            total = functional.smooth_l1_loss(predicted, wanted, reduction="sum", beta=beta)
        else:
            total = functional.mse_loss(predicted, wanted, reduction="sum")
    return total / math.sqrt(predicted_BMD.shape[-1])
