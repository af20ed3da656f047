"""What processes that share one piece of work say to each other: few words, all of them exact."""

from abc import ABC, abstractmethod
from datetime import timedelta
from typing import Self, TypeVar, cast, final

import torch
from torch import Tensor
from torch import distributed as dist
from typing_extensions import override

from ossicle.core.world import World

_PATIENCE = timedelta(days=2)  # a rank may wait for another that has more left to do

T = TypeVar("T")


class Peers(ABC):
    """The processes that share a piece of work. Every one of them makes the same calls in the same order.

    Attributes:
        rank: This process's number, in [0, size).
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @abstractmethod
    def total(self, counts: Tensor) -> Tensor:
        """The sum of all ranks' int64 tensors of one shape: integers add up to the same in any order."""

    @abstractmethod
    def gather(self, rows: Tensor) -> Tensor:
        """All ranks' rows, end to end in the order of ranks, on the CPU. Ranks may have different numbers of rows."""

    @abstractmethod
    def told_by(self, rank: int, value: T) -> T:
        """What one rank says; the others' values are not looked at. It travels as a pickle."""

    @abstractmethod
    def wait(self) -> None:
        """Go on when all have come here."""


@final
class Alone(Peers):
    """One process that shares with nobody."""

    @override
    def total(self, counts: Tensor) -> Tensor:
        return counts

    @override
    def gather(self, rows: Tensor) -> Tensor:
        return rows.cpu()

    @override
    def told_by(self, rank: int, value: T) -> T:
        return value

    @override
    def wait(self) -> None:
        return


@final
class Connected(Peers):
    """Ranks of a torch.distributed group over gloo, whatever device they compute on: little is said.

    Args:
        group: The group; None for the default one, which must be of gloo.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    @classmethod
    def start(cls, world: World, init_method: str = "env://") -> Self:
        """Connect the processes of a world.

        Args:
            world: This process's place.
            init_method: Where they meet: an address, a file, or the environment.
        """
        dist.init_process_group(
            "gloo", init_method=init_method, rank=world.rank, world_size=world.size, timeout=_PATIENCE
        )
        return cls()

    def stop(self) -> None:
        """Part."""
        dist.destroy_process_group(self.group)

    @override
    def total(self, counts: Tensor) -> Tensor:
        if counts.dtype != torch.int64:
            raise TypeError(f"only integers add up exactly, and these are {counts.dtype}")
        summed = counts.cpu().contiguous()
        summed = summed.clone() if summed is counts else summed
        dist.all_reduce(summed, group=self.group)
        return summed.to(counts.device)

    @override
    def gather(self, rows: Tensor) -> Tensor:
        rows = rows.cpu()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(rows)]), group=self.group)
        most = max(int(size) for size in sizes)
        if most == 0:
            return rows
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded, group=self.group)
        return torch.cat([part[: int(size)] for part, size in zip(found, sizes, strict=True)])

    @override
    def told_by(self, rank: int, value: T) -> T:
        said = [value if rank == self.rank else None]
        dist.broadcast_object_list(said, src=rank, group=self.group)
        return cast("T", said[0])

    @override
    def wait(self) -> None:
        dist.barrier(group=self.group)
