"""The linear maps around attention in heads (arXiv 1706.03762, section 3.2.2)."""

from torch import Tensor, nn

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float
from ossicle.layer.feed_forward import init_linear


class MultiHead(nn.Module):
    """What mixers inherit that map frames to queries, keys and values, and mixed values back.

    The maps are modules of their own, called one by one: adapters that wrap them stay in the path.

    Args:
        dim: Model width (D).
        num_heads: Attention heads (H); None counts them by ``head_dim``.
        head_dim: Width of a head (K); None for D / H. With both, H x K need not be the model's width.

    Raises:
        ConfigError: If the heads do not divide the width, or a head's width does not where it counts them.
    """

    def __init__(self, dim: int, num_heads: int | None, head_dim: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.head_dim = head_sizes(dim, num_heads, head_dim)
        inner = self.num_heads * self.head_dim
        self.query = init_linear(nn.Linear(dim, inner))
        self.key = init_linear(nn.Linear(dim, inner))
        self.value = init_linear(nn.Linear(dim, inner))
        self.out = init_linear(nn.Linear(inner, dim))

    def heads(
        self, x_BTD: Float[Tensor, "*rows D"]
    ) -> tuple[Float[Tensor, "*rows H K"], Float[Tensor, "*rows H K"], Float[Tensor, "*rows H K"]]:
        """Queries, keys and values of frames, shape (..., H, K)."""
        return (
            split_heads(self.query(x_BTD), self.num_heads),
            split_heads(self.key(x_BTD), self.num_heads),
            split_heads(self.value(x_BTD), self.num_heads),
        )

    def join(self, mixed_BTHK: Float[Tensor, "*rows H K"]) -> Float[Tensor, "*rows D"]:
        """Frames of mixed values, shape (..., D)."""
        return self.out(mixed_BTHK.flatten(-2))


def split_heads(x_BTD: Float[Tensor, "*rows D"], num_heads: int) -> Float[Tensor, "*rows H K"]:
    """Frames cut into heads: (..., D) to (..., H, K)."""
    return x_BTD.unflatten(-1, (num_heads, -1))


def head_sizes(dim: int, num_heads: int | None, head_dim: int | None) -> tuple[int, int]:
    """Heads of a width, and the width of one.

    Args:
        dim: Model width (D).
        num_heads: Heads (H); None for D / K.
        head_dim: Width of a head (K); None for D / H.

    Raises:
        ConfigError: Neither is stated, one of them is no size, or the one that is stated does not divide the width.
    """
    if num_heads is None and head_dim is None:
        raise ConfigError("mixer.num_heads and mixer.head_dim are both null", "state one of them, or both")
    if head_dim is not None and head_dim < 1:
        raise ConfigError(f"mixer.head_dim={head_dim} is no width", "give 1 or more, such as 64")
    if head_dim is None:
        assert num_heads is not None
        return check_heads(dim, num_heads), dim // num_heads
    if num_heads is None:
        if dim % head_dim:
            raise ConfigError(
                f"mixer.head_dim={head_dim} does not divide the width {dim}", "give a divisor, or mixer.num_heads too"
            )
        return dim // head_dim, head_dim
    if num_heads < 1:
        raise ConfigError(f"mixer.num_heads={num_heads} is no number of heads", "give 1 or more")
    return num_heads, head_dim


def check_heads(dim: int, num_heads: int) -> int:
    """The count of heads itself.

    Raises:
        ConfigError: If it does not divide the width.
    """
    if num_heads < 1 or dim % num_heads:
        fitting = [count for count in range(1, dim + 1) if dim % count == 0]
        nearest = min(fitting, key=lambda count: abs(count - num_heads))
        raise ConfigError(
            f"mixer.num_heads={num_heads} does not divide the width {dim}", f"the nearest that does is {nearest}"
        )
    return num_heads
