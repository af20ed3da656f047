"""Stateless randomness: a generator is a pure function of what it is for.

Nothing keeps a random state from step to step, so a resumed run draws what the uninterrupted run would have drawn.
"""

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *parts: int | str) -> int:
    """A 63-bit seed from a run's seed and any parts: purpose, step, rank, epoch."""
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 1


def generator(seed: int, step: int, rank: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch generator on a device for one purpose in one step of one rank.

    Training passes the batch's global position as ``step`` and 0 as ``rank``: position = micro-step * world + rank
    holds both, and then a batch draws the same masks on whichever rank it lands.
    """
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, step, rank))


def seed_default_generators(seed: int, device: torch.device) -> None:
    """Seed torch's default generators of the host and of a device, as :func:`torch.manual_seed` does for all there are.

    That one writes down the stack for each kind of accelerator that is not there: milliseconds in every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


def numpy_generator(seed: int, *parts: int | str) -> np.random.Generator:
    """A fresh numpy generator (Philox) for the same use on the host."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, *parts)))
