"""Several ranks on one machine: a process each, and one that watches over them.

Every rank gets the run directory, whose config.yaml is the resolved config, and nothing of the command line: so a job
of a multirun can have ranks too. Where a launcher has already made the ranks (SLURM, torchrun), none is made here.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ossicle.core.errors import ConfigError, OssicleError
from ossicle.core.world import World
from ossicle.launch.config import Config
from ossicle.launch.experiment import world_size

log = logging.getLogger(__name__)

POLL_S = 0.1
GRACE_S = 30.0
FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class RankError(OssicleError):
    """A rank ended badly; what it said stands above."""


def needs_ranks(config: Config) -> bool:
    """Whether this process must make the ranks that the config asks for.

    Raises:
        ConfigError: Several nodes are asked for, and no launcher has made their processes.
    """
    wanted, present = world_size(config), World.from_environment().size
    if wanted in {1, present}:
        return False
    if config["cluster"]["num_nodes"] > 1 or present > 1:
        raise ConfigError(
            f"the config asks for {wanted} ranks, and the launcher made {present}",
            "start it with cluster=slurm, or as many processes a node as cluster.devices (torchrun, srun)",
        )
    return True


def run_ranks(config: Config, directory: Path, program: str = "ossicle.launch.ranks") -> None:
    """Run every rank of a run as a process of its own, and wait for all.

    Args:
        config: The resolved config, which lies in ``directory`` as well.
        directory: The run directory.
        program: The module that each rank runs, with the directory as its argument.

    Raises:
        RankError: A rank ended badly; the others were ended too.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = world_size(config)
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    command = [sys.executable, "-m", program, str(directory)]
    ranks = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})  # noqa: S603  our own module
        for rank in range(size)
    ]
    with forwarding(ranks):
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            time.sleep(POLL_S)
        end(ranks)
    failed = [number for number, rank in enumerate(ranks) if rank.returncode]
    if failed:
        raise RankError(
            f"rank {failed[0]} of {size} in {directory} ended with {ranks[failed[0]].returncode}",
            "its reason stands above; mend it and start the same command again",
        )


@contextmanager
def forwarding(ranks: list[subprocess.Popen[bytes]]) -> Generator[None]:
    """Pass signals that ask for an end on to the ranks, which save and end by themselves."""

    def forward(number: int, _frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Wait for ranks whose peers have ended; end those that wait for a peer that is gone."""
    deadline = time.monotonic() + GRACE_S
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
        rank.wait()


def main() -> None:
    """One rank: train what the run directory's config describes."""
    from ossicle.launch.encoders import config_of
    from ossicle.launch.pretrain import pretrain

    directory = Path(sys.argv[1])
    logging.basicConfig(level=logging.INFO if World.from_environment().is_first else logging.WARNING)
    try:
        pretrain(config_of(directory), directory)
    except OssicleError as error:
        sys.stderr.write(f"\nossicle pretrain, rank {World.from_environment().rank}: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
