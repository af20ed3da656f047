"""No mixer holds a number for each pair of 64,000 frames: seen on the meta device, where tensors have no memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from ossicle.core.errors import MissingExtraError
from ossicle.mixer.base import build_mixers
from ossicle.mixer.local_attention import LocalAttention
from ossicle.mixer.strided_attention import StridedAttention
from tests.mixer.test_contract import DIM, NAMES, Chain, factory

FRAMES = 64_000
BOUND = FRAMES**2 // 2
"""Bytes of the largest tensor: an eighth of a float32, or half of a bool, for each pair of frames."""
OTHERS = {
    "local_attention with global frames": lambda dim: LocalAttention(dim, 3, num_global=2),
    "strided_attention, merged": lambda dim: StridedAttention(dim, 3, stride=256, pattern="merged"),
}


class Fused(TorchFunctionMode):
    """Attention as fused kernels have it: no scores. What comes out stands in shape and gradient for the real thing."""

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3]
        out = query + key.mean(-2, keepdim=True) + value.mean(-2, keepdim=True)
        mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        return out if mask is None else out + mask.to(out.dtype).mean(-1, keepdim=True)


class Largest(TorchDispatchMode):
    """Watches for the tensor with the most bytes; views have those of what they look at."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.made_by = 0, ""

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and (size := made.untyped_storage().nbytes()) > self.bytes:
                self.bytes, self.made_by = size, f"{func} {tuple(made.shape)}"
        return out


def largest(chain: Chain) -> Largest:
    """The largest tensor of a forward and a backward pass over 64,000 frames."""
    x_BTD = torch.empty(1, FRAMES, DIM, device="meta", requires_grad=True)
    with Largest() as seen, Fused():
        chain(x_BTD).sum().backward()
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_has_a_number_for_each_pair_of_frames(name: str) -> None:
    try:
        with torch.device("meta"):
            chain = Chain(build_mixers(factory(name, max_frames=FRAMES), [DIM] * 2))
    except MissingExtraError as error:
        pytest.skip(str(error))
    seen = largest(chain)
    assert 4 * FRAMES * DIM <= seen.bytes < BOUND, seen.made_by


@pytest.mark.parametrize("name", OTHERS)
def test_nor_has_one_of_other_settings(name: str) -> None:
    with torch.device("meta"):
        chain = Chain(build_mixers(OTHERS[name], [DIM] * 2))
    seen = largest(chain)
    assert 4 * FRAMES * DIM <= seen.bytes < BOUND, seen.made_by


def test_scores_that_are_written_out_are_found() -> None:
    with torch.device("meta"):
        chain = Chain(build_mixers(factory("attention", backend="reference"), [DIM]))
    assert largest(chain).bytes == 3 * 4 * FRAMES**2
