"""A real SLURM of virtual nodes on this machine: munge, a controller, and a daemon for every node."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

SETTINGS = """
ClusterName=ossicle
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
KillWait=5
CompleteWait=0
PropagateResourceLimits=NONE
NodeName=DEFAULT CPUs=8 RealMemory=16000 State=UNKNOWN
"""


def require_slurm() -> None:
    """Skip, with the reason, where SLURM is not installed or this user may not start it."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if missing:
        pytest.skip(f"no SLURM here ({', '.join(missing)}): apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons are started as root")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert isinstance(port, int)
    return port


def write_settings(folder: Path, num_nodes: int) -> None:
    host = socket.gethostname().partition(".")[0]
    text = SETTINGS.format(host=host, port=free_port(), folder=folder)
    for node in range(1, num_nodes + 1):
        text += f"NodeName=node{node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()}\n"
    nodes = f"Nodes=node[1-{num_nodes}] MaxTime=INFINITE State=UP"
    text += f"PartitionName=main {nodes} Default=YES PriorityTier=1 GraceTime=60\n"
    text += f"PartitionName=urgent {nodes} PriorityTier=10 PreemptMode=OFF\n"
    (folder / "slurm.conf").write_text(text)


def wait_until(what: str, holds: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come to pass in {timeout_s} s"
        time.sleep(0.2)


@contextmanager
def slurm_cluster(folder: Path, num_nodes: int) -> Generator[Mapping[str, str]]:
    """Start a cluster with its state in a folder; gives the environment that clients need, and stops it afterwards."""
    require_slurm()
    for name in ("state", *(f"spool/node{node}" for node in range(1, num_nodes + 1))):
        (folder / name).mkdir(parents=True)
    write_settings(folder, num_nodes)
    key, munge_socket = folder / "munge.key", folder / "munge.socket"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    files = [f"--{name}-file={folder / f'munge.{name}'}" for name in ("pid", "log", "seed")]

    def answers(*arguments: str) -> str:
        # a daemon that is not up yet answers with an error, and is asked again
        ran = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=30, check=False)
        return ran.stdout if ran.returncode == 0 else ""

    with ExitStack() as stack:

        def spawn(*arguments: str) -> None:
            process = subprocess.Popen(
                arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)

        spawn("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge_socket}", *files)
        wait_until("munge", lambda: bool(answers("munge", f"--socket={munge_socket}", "-n")))
        spawn("slurmctld", "-D")
        wait_until("the controller", lambda: "UP" in answers("scontrol", "ping"))
        for node in range(1, num_nodes + 1):
            spawn("slurmd", "-D", "-N", f"node{node}")
        wait_until(
            "idle nodes",
            lambda: answers("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split().count("idle") == num_nodes,
        )
        stack.callback(subprocess.run, ["scancel", "--user=root"], env=environment, check=False)
        # ranks meet at the first node, whose name no resolver of this machine knows
        yield environment | {"MASTER_ADDR": "127.0.0.1"}
