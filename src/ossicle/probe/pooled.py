"""Linear heads on one vector an utterance: ridge classification, solved exactly for every strength at once.

Utterances are few and the vectors wide, so the head is least squares on one-hot classes with an L2 penalty. It has a
closed form, so no feature is trained better than another; its strength is chosen from a grid on the dev split, or where
there is none by leaving one out, which for this head is exact without refitting (Golub, Heath & Wahba 1979,
doi:10.1080/00401706.1979.10489751).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.core.shapes import Float, Int64

_STRENGTHS = tuple(10.0**power for power in range(-3, 5))
_MIXING_STEPS = 60
_MIXING_RATE = 0.1


@dataclass(frozen=True, slots=True)
class Standardisation:
    """z = (x - mean) / scale, measured in training."""

    mean_E: Tensor
    scale_E: Tensor

    @classmethod
    def fit(cls, x_UE: Float[Tensor, "U E"]) -> "Standardisation":
        """Measure mean and standard deviation; a constant column is left as it is."""
        scale_E, mean_E = torch.std_mean(x_UE, dim=0, correction=0)
        return cls(mean_E, torch.where(scale_E > 1e-6, scale_E, torch.ones_like(scale_E)))

    def apply(self, x_UE: Float[Tensor, "U E"]) -> Float[Tensor, "U E"]:
        """Standardised vectors."""
        return (x_UE - self.mean_E) / self.scale_E


@dataclass(frozen=True, slots=True)
class RidgePath:
    """Ridge heads of every strength on one training set.

    Args:
        weight_KEV: Weights by strength, shape (K, E, V).
        mean_E: Mean of the training vectors, shape (E,).
        bias_V: Mean of the one-hot classes, shape (V,).
        left_out_KU: Class of every training utterance by the head that was fitted without it, shape (K, U).
    """

    weight_KEV: Tensor
    mean_E: Tensor
    bias_V: Tensor
    left_out_KU: Tensor

    def predict(self, x_UE: Float[Tensor, "U E"]) -> Int64[Tensor, "K U"]:
        """The class of every utterance by strength."""
        return (torch.einsum("ue,kev->kuv", x_UE - self.mean_E, self.weight_KEV) + self.bias_V).argmax(-1)


def fit_ridge(x_UE: Float[Tensor, "U E"], y_U: Int64[Tensor, " U"], num_classes: int) -> RidgePath:
    """Solve for all strengths by one singular value decomposition.

    Args:
        x_UE: Standardised vectors, shape (U, E).
        y_U: Classes, shape (U,).
        num_classes: Classes (V).
    """
    target_UV = functional.one_hot(y_U, num_classes).to(torch.float64)
    bias_V = target_UV.mean(0)
    mean_E = x_UE.double().mean(0)
    left_UR, values_R, right_RE = torch.linalg.svd(x_UE.double() - mean_E, full_matrices=False)
    inner_RV = left_UR.T @ (target_UV - bias_V)
    strengths_K = torch.tensor(_STRENGTHS, dtype=torch.float64, device=x_UE.device) * len(x_UE) / 100
    kept_KR = values_R.square() / (values_R.square() + strengths_K[:, None])
    fitted_KUV = torch.einsum("ur,kr,rv->kuv", left_UR, kept_KR, inner_RV) + bias_V
    leverage_KU = torch.einsum("ur,kr->ku", left_UR.square(), kept_KR) + 1 / len(x_UE)
    residual_KUV = (target_UV - fitted_KUV) / (1 - leverage_KU).clamp(min=1e-6)[..., None]
    shrunk_KR = values_R / (values_R.square() + strengths_K[:, None])
    weight_KEV = torch.einsum("re,kr,rv->kev", right_RE, shrunk_KR, inner_RV)
    return RidgePath(weight_KEV.float(), mean_E.float(), bias_V.float(), (target_UV - residual_KUV).argmax(-1))


def learn_mix(
    x_LUE: Float[Tensor, "L U E"], y_U: Int64[Tensor, " U"], num_classes: int, *, weight_decay: float = 0.1
) -> Float[Tensor, " L"]:
    """Weights of layers that lower the cross-entropy of a linear head on their sum, both learned together.

    Args:
        x_LUE: Standardised vectors of every layer, shape (L, U, E).
        y_U: Classes, shape (U,).
        num_classes: Classes (V).
        weight_decay: L2 penalty of the head, so that the sum, not the head, is what separates.
    """
    layers, _, dim = x_LUE.shape
    share_L = torch.zeros(layers, device=x_LUE.device, requires_grad=True)
    weight_EV = torch.zeros(dim, num_classes, device=x_LUE.device, requires_grad=True)
    bias_V = torch.zeros(num_classes, device=x_LUE.device, requires_grad=True)
    optimiser = torch.optim.Adam(
        [{"params": [weight_EV, bias_V], "lr": 0.3 / dim**0.5}, {"params": [share_L], "lr": _MIXING_RATE}]
    )
    for _ in range(_MIXING_STEPS):
        mixed_UE = torch.einsum("l,lue->ue", share_L.softmax(0), x_LUE)
        penalty = weight_decay / 2 * weight_EV.square().sum()
        (functional.cross_entropy(mixed_UE @ weight_EV + bias_V, y_U) + penalty).backward()
        optimiser.step()
        optimiser.zero_grad()
    return share_L.detach().softmax(0)
