"""AdamW over decay groups."""

from collections.abc import Sequence

import torch
from torch import nn

from ossicle.core.errors import ConfigError
from ossicle.optim.groups import decay_groups


def adamw(
    module: nn.Module,
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.98),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101, algorithm 2) over a module's parameters, with decay by the type of their owners.

    torch's fused kernel updates everything in one pass on CUDA, and on a CPU takes a quarter of the time of its foreach
    kernel.

    Args:
        module: The module that is trained.
        lr: Peak learning rate.
        betas: Decay rates of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decay of the weights of linear and convolution layers.

    Raises:
        ConfigError: A number is out of its range, or there are not two betas.
    """
    groups = decay_groups(module)
    kinds = {parameter.device.type for parameter in (*groups.decayed, *groups.plain)}
    try:
        first, second = betas
        return torch.optim.AdamW(
            [
                {"params": list(groups.decayed), "weight_decay": weight_decay},
                {"params": list(groups.plain), "weight_decay": 0.0},
            ],
            lr=lr,
            betas=(first, second),
            eps=eps,
            fused=kinds <= {"cuda", "cpu"},
        )
    except ValueError as error:
        raise ConfigError(f"optim: {error}", "mend optim.lr, optim.betas, optim.eps or optim.weight_decay") from error
