"""Energy that GPUs or processors drew, by the counters they carry."""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Final, Self

import torch

POWERCAP: Final = Path("/sys/class/powercap")
"""Where Linux shows the energy counters (RAPL) of Intel's and AMD's processors."""


class EnergyCounter:
    """Counters of the energy drawn so far, read twice and subtracted: exact, where there are some.

    A GPU's is NVML's. A processor's counts the whole package, with whatever else runs on it.

    Args:
        readers: Each gives joules since some fixed moment.
        reason: Why there is nothing to read, where there is not.
        source: What is counted, and by whom.
    """

    def __init__(
        self, readers: Sequence[Callable[[], float]] = (), reason: str | None = None, source: str | None = None
    ) -> None:
        self.readers = tuple(readers)
        self.reason = reason
        self.source = source

    @classmethod
    def of_device(cls, device: torch.device) -> Self:
        """The counter of what a torch device stands for; one that reads None, with its reason, where there is none."""
        return cls.of_gpu(device) if device.type == "cuda" else cls.of_packages()

    @classmethod
    def of_gpu(cls, device: torch.device) -> Self:
        """NVML's counter of a GPU."""
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return cls(reason="nvidia-ml-py is not installed: pip install 'ossicle[energy]'")
        try:
            nvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError as error:
            return cls(reason=f"NVML gives no energy counter: {error}")
        return cls([partial(_gpu_joules, nvml, handle)], source="GPUs alone, by NVML's counters")

    @classmethod
    def of_packages(cls, folder: Path = POWERCAP) -> Self:
        """The counters of all processor packages of this machine.

        Args:
            folder: Where the kernel shows them.
        """
        zones = sorted(
            zone for zone in folder.glob("*-rapl:*") if zone.name.count(":") == 1
        )  # more: parts of a package
        if not zones:
            return cls(reason="no GPU, and the kernel shows no energy counter of the processor, as in virtual machines")
        try:
            readers = [Package(zone).joules for zone in zones]
        except PermissionError:
            return cls(reason=f"no GPU, and the processor's counters belong to root: sudo chmod -R a+r {folder}/")
        return cls(readers, source="processors with all that ran on them, by the kernel's counters")

    def joules(self) -> float | None:
        """The counters' sum in joules since some fixed moment, or None where there is no counter."""
        return sum(read() for read in self.readers) if self.readers else None


def _gpu_joules(nvml: ModuleType, handle: object) -> float:
    return nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000.0


class Package:
    """A processor package's counter, which starts anew when it is full: some minutes to an hour of full load.

    Args:
        zone: Its folder.

    Raises:
        PermissionError: It may not be read.
    """

    def __init__(self, zone: Path) -> None:
        self.zone = zone
        self.range = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
        self.last = self._read()
        self.full = 0

    def joules(self) -> float:
        """Joules since a fixed moment, if it was read once while the counter filled."""
        now = self._read()
        if now < self.last:
            self.full += self.range
        self.last = now
        return (self.full + now) / 1e6

    def _read(self) -> int:
        return int((self.zone / "energy_uj").read_text(encoding="ascii"))
