"""Which parameters decay: decided by the module that owns them, not by their names."""

from dataclasses import dataclass

from torch import nn

# Matrices that multiply activations. What they are scaled to matters, so weight decay has a meaning for them. A module
# of this package that has such without being one of these says so: ``decays = True``.
DECAYED = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.MultiheadAttention,
    nn.RNNBase,
)


@dataclass(frozen=True, slots=True)
class DecayGroups:
    """Every trained parameter of a module, once.

    Args:
        decayed: Weights of linear and convolution layers, weight-normalised ones included.
        plain: Biases, norms, embeddings, codebooks and all other vectors and tables.
    """

    decayed: tuple[nn.Parameter, ...]
    plain: tuple[nn.Parameter, ...]


def decay_groups(module: nn.Module) -> DecayGroups:
    """Split a module's parameters by whether weight decay applies to them.

    A parameter shared by several modules decays where any owner lets it. Parameters without gradient are left out.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed: set[int] = set()
    for owner in module.modules():
        if isinstance(owner, DECAYED) or getattr(owner, "decays", False):
            # A parametrisation (weight norm) keeps the weight in a child of its own: the whole subtree is the layer's.
            decayed |= {id(parameter) for parameter in _weights(owner)}
    return DecayGroups(
        decayed=tuple(parameter for parameter in parameters if id(parameter) in decayed),
        plain=tuple(parameter for parameter in parameters if id(parameter) not in decayed),
    )


def _weights(layer: nn.Module) -> list[nn.Parameter]:
    """A layer's matrices; the gain of weight norm, of shape (1, 1, K) beside its direction (D, D, K), is a vector."""
    matrices = [parameter for parameter in layer.parameters() if parameter.ndim > 1]
    largest = max((parameter.numel() for parameter in matrices), default=0)
    return [p for p in matrices if p.numel() == largest or sum(size > 1 for size in p.shape) > 1]
