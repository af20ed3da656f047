"""One of two gloo processes that hear halves of a batch; writes the codebooks after a step."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.target.test_online_codebook import halves, started

if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, target = started()
    target.codes(halves()[rank])
    target.follow(model, step=1)
    torch.save(target.state_KVE, folder / f"{rank}.pt")
    dist.destroy_process_group()
