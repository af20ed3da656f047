"""Energy that GPUs drew, by the counters they carry."""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Self

import torch


class EnergyCounter:
    """NVML's total-energy counters of some GPUs: exact, in millijoules, read twice and subtracted.

    Args:
        handles: NVML device handles.
        nvml: The ``pynvml`` module, initialised.
        reason: Why there is nothing to read, where there is not.
    """

    def __init__(
        self, handles: Sequence[object] = (), nvml: ModuleType | None = None, reason: str | None = None
    ) -> None:
        self.handles = tuple(handles)
        self.nvml = nvml
        self.reason = reason

    @classmethod
    def of_device(cls, device: torch.device) -> Self:
        """The counter of the GPU that a torch device stands for; one that reads None, with its reason, elsewhere."""
        if device.type != "cuda":
            return cls(reason="no GPU, and a CPU's energy counters belong to root")
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
        return cls([handle], nvml)

    def joules(self) -> float | None:
        """The counters' sum in joules since the driver was loaded, or None where there is no counter."""
        if self.nvml is None:
            return None
        return sum(self.nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self.handles) / 1000.0
