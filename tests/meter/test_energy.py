import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ossicle.meter.energy import EnergyCounter


class Nvml(ModuleType):
    """One device whose counter grows by 250 joules a reading."""

    NVMLError = RuntimeError

    def __init__(self, *, works: bool) -> None:
        super().__init__("pynvml")
        self.works, self.millijoules = works, 0

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.works:
            raise RuntimeError("Not Supported")
        assert handle == "GPU-1234"
        self.millijoules += 250_000
        return self.millijoules


def counter_with(monkeypatch: pytest.MonkeyPatch, nvml: ModuleType | None) -> EnergyCounter:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234"))
    return EnergyCounter.of_device(torch.device("cuda", 0))


def test_millijoules_become_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = counter_with(monkeypatch, Nvml(works=True))
    first, second = counter.joules(), counter.joules()
    assert first is not None
    assert second is not None
    assert second - first == 250.0


def test_without_a_counter_energy_is_unknown_for_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for counter, reason in (
        (EnergyCounter.of_device(torch.device("cpu")), "no GPU"),
        (counter_with(monkeypatch, None), "ossicle[energy]"),
        (counter_with(monkeypatch, Nvml(works=False)), "Not Supported"),
    ):
        assert counter.joules() is None
        assert reason in str(counter.reason)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_counter_of_a_real_gpu_grows_with_work() -> None:
    pytest.importorskip("pynvml")
    counter = EnergyCounter.of_device(torch.device("cuda", 0))
    before = counter.joules()
    x = torch.randn(4096, 4096, device="cuda")
    for _ in range(200):
        x = torch.nn.functional.normalize(x @ x)
    torch.cuda.synchronize()
    after = counter.joules()
    assert before is not None
    assert after is not None
    assert after > before
