"""Memory for time: what is not kept for the gradient is made again on the way back (arXiv 1604.06174)."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch.utils.checkpoint import checkpoint

P = ParamSpec("P")
R = TypeVar("R")


def recomputed(call: Callable[P, R]) -> Callable[P, R]:
    """A call of which nothing is kept for its gradient but what goes in.

    The way back makes the call again, with the same dropout: the states of torch's default generators, of the CPU and
    of the device, are put back for it.
    """

    @functools.wraps(call)
    def again(*args: P.args, **kwargs: P.kwargs) -> R:
        return checkpoint(functools.partial(call, *args, **kwargs), use_reentrant=False)

    return again
