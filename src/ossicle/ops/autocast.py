"""What autocast asks of an operation that is not torch's own."""

import torch


def autocast_dtype(device: str) -> torch.dtype | None:
    """The type of products under autocast on a kind of device, or None where it is off or there is none.

    Args:
        device: Device type, such as ``cuda``.
    """
    # torch.amp.is_autocast_available would say so in general, but breaks the graph when torch 2.11 compiles it
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
