"""Linear heads on frozen frames: multinomial logistic regression, trained alike for every feature.

Features differ in scale and conditioning by orders of magnitude, and a fixed number of gradient steps would favour the
well-conditioned ones. So every head works in coordinates in which the classes' shared covariance is the identity (an
affine map, folded into the head afterwards: the family of heads stays the linear one), starts from Fisher's linear
discriminant there (closed form), and is trained to lower the cross-entropy by a few epochs of Adam. Of the heads after
each epoch, the discriminant included, the caller keeps the one that errs least on voices it was not trained on.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ossicle.core.seeds import generator
from ossicle.core.shapes import Float, Int64

_CHUNK_FRAMES = 16_384


@dataclass(frozen=True, slots=True)
class HeadTraining:
    """The budget of a frame head, the same for every feature and layer.

    Args:
        epochs: Passes over the training frames.
        batch_frames: Frames an update.
        learning_rate: Adam's rate at the start, in whitened coordinates; falls linearly to 0.
        weight_decay: Decoupled weight decay.
        shrinkage: Share of the mean variance added to every direction before whitening.
        mixing_rate: Adam's rate for the weights of the layers.
    """

    epochs: int = 3
    batch_frames: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    shrinkage: float = 1e-2
    mixing_rate: float = 0.1


@dataclass(frozen=True, slots=True)
class LinearHead:
    """logits = x @ weight + bias."""

    weight_DV: Tensor
    bias_V: Tensor

    def predict(self, x_PD: Float[Tensor, "P D"]) -> Int64[Tensor, " P"]:
        """The most probable class of every frame."""
        chunks = [(chunk @ self.weight_DV + self.bias_V).argmax(-1) for chunk in x_PD.split(_CHUNK_FRAMES)]
        return torch.cat(chunks)


@dataclass(frozen=True, slots=True)
class Whitening:
    """z = (x - mean) @ matrix, in which the covariance within classes is the identity."""

    mean_D: Tensor
    matrix_DD: Tensor

    @classmethod
    def fit(
        cls, x_PD: Float[Tensor, "P D"], y_P: Int64[Tensor, " P"], num_classes: int, shrinkage: float
    ) -> "Whitening":
        """Measure the pooled covariance within classes, shrink it towards its diagonal, and take its inverse root."""
        mean_D = x_PD.mean(0)
        scale_D = x_PD.std(0, correction=0).clamp(min=1e-6 * float(x_PD.std()) + 1e-12)
        dim = x_PD.shape[1]
        total_DD = torch.zeros(dim, dim, dtype=torch.float64, device=x_PD.device)
        sums_VD = torch.zeros(num_classes, dim, device=x_PD.device)
        for x, y in zip(x_PD.split(_CHUNK_FRAMES), y_P.split(_CHUNK_FRAMES), strict=True):
            unit = (x - mean_D) / scale_D
            total_DD += (unit.T @ unit).double()
            sums_VD.index_add_(0, y, unit)
        counts_V = torch.bincount(y_P, minlength=num_classes).clamp(min=1).double()
        between_DD = (sums_VD.double() / counts_V[:, None]).T @ sums_VD.double()
        within_DD = (total_DD - between_DD) / len(x_PD)
        floor = shrinkage * within_DD.diagonal().mean().clamp(min=1e-6)
        within_DD += floor * torch.eye(dim, dtype=torch.float64, device=x_PD.device)
        root_DD = torch.linalg.cholesky(within_DD)
        identity = torch.eye(dim, dtype=torch.float64, device=x_PD.device)
        inverse_DD = torch.linalg.solve_triangular(root_DD, identity, upper=False)
        return cls(mean_D, (inverse_DD.T / scale_D[:, None].double()).float())

    def apply(self, x_PD: Float[Tensor, "P D"]) -> Float[Tensor, "P D"]:
        """Whitened frames."""
        return torch.cat([(chunk - self.mean_D) @ self.matrix_DD for chunk in x_PD.split(_CHUNK_FRAMES)])

    def fold(self, weight_DV: Tensor, bias_V: Tensor) -> LinearHead:
        """A head on whitened frames as a head on the frames themselves."""
        weight = self.matrix_DD @ weight_DV
        return LinearHead(weight, bias_V - self.mean_D @ weight)


def discriminant(
    z_PD: Float[Tensor, "P D"], y_P: Int64[Tensor, " P"], num_classes: int
) -> tuple[Float[Tensor, "D V"], Float[Tensor, " V"]]:
    """Fisher's linear discriminant of whitened frames: weight and bias (doi:10.1111/j.1469-1809.1936.tb02137.x)."""
    sums_VD = torch.zeros(num_classes, z_PD.shape[1], device=z_PD.device)
    sums_VD.index_add_(0, y_P, z_PD)
    counts_V = torch.bincount(y_P, minlength=num_classes).float()
    means_VD = sums_VD / counts_V.clamp(min=1)[:, None]
    prior_V = (counts_V + 0.5).log() - (counts_V + 0.5).sum().log()
    return means_VD.T.contiguous(), prior_V - means_VD.square().sum(1) / 2


def train_head(
    z_PD: Float[Tensor, "P D"],
    y_P: Int64[Tensor, " P"],
    num_classes: int,
    *,
    whitening: Whitening,
    training: HeadTraining,
    seed: int,
) -> Iterator[LinearHead]:
    """The head on frames after each epoch, the discriminant it starts from first.

    Args:
        z_PD: Whitened training frames, shape (P, D).
        y_P: Their classes, shape (P,).
        num_classes: Classes (V).
        whitening: What whitened them; folded into the heads.
        training: The budget.
        seed: Draws the order.
    """
    weight_DV, bias_V = (tensor.requires_grad_() for tensor in discriminant(z_PD, y_P, num_classes))
    groups = [{"params": [weight_DV, bias_V], "lr": training.learning_rate, "weight_decay": training.weight_decay}]

    def loss(batch: Tensor) -> Tensor:
        return functional.cross_entropy(z_PD[batch] @ weight_DV + bias_V, y_P[batch])

    yield whitening.fold(weight_DV.detach(), bias_V.detach())
    for _ in _epochs(len(y_P), loss, groups, training, seed):
        yield whitening.fold(weight_DV.detach(), bias_V.detach())


@dataclass(frozen=True, slots=True)
class MixedHead:
    """A head on a weighted sum of layers, each normalised frame by frame to mean 0 and variance 1.

    Args:
        layer_weights_L: Weights that sum to 1, shape (L,).
        head: The head on the sum.
    """

    layer_weights_L: Tensor
    head: LinearHead

    def predict(self, x_LPD: Float[Tensor, "L P D"]) -> Int64[Tensor, " P"]:
        """The most probable class of every frame."""
        chunks = x_LPD.split(_CHUNK_FRAMES, dim=1)
        return torch.cat([self.head.predict(mix(normalise(chunk), self.layer_weights_L)) for chunk in chunks])


def normalise(x_LPD: Float[Tensor, "L P D"]) -> Float[Tensor, "L P D"]:
    """Layer norm without parameters, so that no layer wins the sum by its scale."""
    return functional.layer_norm(x_LPD, x_LPD.shape[-1:])


def mix(x_LPD: Float[Tensor, "L P D"], weights_L: Float[Tensor, " L"]) -> Float[Tensor, "P D"]:
    """The weighted sum over layers."""
    return torch.einsum("l,lpd->pd", weights_L, x_LPD)


def train_mixed_head(
    x_LPD: Float[Tensor, "L P D"],
    y_P: Int64[Tensor, " P"],
    rows: Int64[Tensor, " N"],
    num_classes: int,
    *,
    whitening: Whitening,
    training: HeadTraining,
    seed: int,
) -> Iterator[MixedHead]:
    """Learn the weights of layers (a softmax, from equal shares) and a head on their sum together; one an epoch.

    Args:
        x_LPD: Normalised frames of every layer, shape (L, P, D).
        y_P: Classes, shape (P,).
        rows: The frames to train on.
        num_classes: Classes (V).
        whitening: Of the sum with equal shares; a preconditioner, fixed while the shares move.
        training: The budget.
        seed: Draws the order.
    """
    equal_L = torch.full((len(x_LPD),), 1 / len(x_LPD), device=x_LPD.device)
    chunks = [whitening.apply(mix(x_LPD[:, chunk], equal_L)) for chunk in rows.split(_CHUNK_FRAMES)]
    start = discriminant(torch.cat(chunks), y_P[rows], num_classes)
    del chunks
    weight_DV, bias_V = (tensor.requires_grad_() for tensor in start)
    share_L = torch.zeros(len(x_LPD), device=x_LPD.device, requires_grad=True)
    groups = [
        {"params": [weight_DV, bias_V], "lr": training.learning_rate, "weight_decay": training.weight_decay},
        {"params": [share_L], "lr": training.mixing_rate, "weight_decay": 0.0},
    ]

    def loss(batch: Tensor) -> Tensor:
        chosen = rows[batch]
        mixed_BD = mix(x_LPD[:, chosen], share_L.softmax(0)) - whitening.mean_D
        return functional.cross_entropy(mixed_BD @ (whitening.matrix_DD @ weight_DV) + bias_V, y_P[chosen])

    def head() -> MixedHead:
        return MixedHead(share_L.detach().softmax(0), whitening.fold(weight_DV.detach(), bias_V.detach()))

    yield head()
    for _ in _epochs(len(rows), loss, groups, training, seed):
        yield head()


def _epochs(
    num_rows: int,
    loss: Callable[[Tensor], Tensor],
    groups: list[dict[str, Any]],
    training: HeadTraining,
    seed: int,
) -> Iterator[int]:
    """Lower a loss of shuffled batches of row numbers; yields after each epoch."""
    optimiser = torch.optim.AdamW(groups, foreach=True)
    device = groups[0]["params"][0].device
    updates = training.epochs * math.ceil(num_rows / training.batch_frames)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 1e-3, total_iters=updates)
    for epoch in range(training.epochs):
        order = torch.randperm(num_rows, generator=generator(seed, epoch, 0, "probe/order")).to(device)
        for batch in order.split(training.batch_frames):
            with torch.enable_grad():
                loss(batch).backward()
            optimiser.step()
            optimiser.zero_grad()
            decay.step()
        yield epoch
