"""Who this process is among its peers."""

import os
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class World:
    """A process's place: rank in [0, size), and the rank on its own node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def current(cls) -> Self:
        """The place that torch.distributed says, else that the launcher's environment says, else alone."""
        import torch.distributed as dist  # noqa: PLC0415  torch is slow to import and this module must stay light

        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
        return cls.from_environment()

    @classmethod
    def from_environment(cls) -> Self:
        """The place that torchrun or SLURM wrote into the environment; alone where neither did."""
        launchers = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
        for rank, size, local in launchers:
            if rank in os.environ and size in os.environ:
                return cls(int(os.environ[rank]), int(os.environ[size]), int(os.environ.get(local, "0")))
        return cls()

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0
