"""Where half precision would not do."""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A stretch in which products on a tensor's device keep the precision of what they take.

    Args:
        x: Any tensor on the device, which may be the meta device.
    """
    if torch.amp.is_autocast_available(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()
