import os
import sys
from pathlib import Path
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


def package(folder: Path, name: str, microjoules: int, most: int = 1_000_000_000) -> Path:
    """What the kernel shows of a counter."""
    zone = folder / name
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    (zone / "max_energy_range_uj").write_text(f"{most}\n")
    return zone


def test_packages_are_summed_their_parts_are_not_and_a_full_counter_goes_on(tmp_path: Path) -> None:
    first, _ = package(tmp_path, "intel-rapl:0", 900_000_000), package(tmp_path, "intel-rapl:1", 5_000_000)
    package(tmp_path, "intel-rapl:0:0", 70_000_000)
    counter = EnergyCounter.of_packages(tmp_path)
    before = counter.joules()
    assert before == 905.0
    package(tmp_path, first.name, 100_000_000)
    assert counter.joules() == before + 200.0
    package(tmp_path, first.name, 150_000_000)
    assert counter.joules() == before + 250.0


def test_a_machine_without_counters_or_the_right_to_read_them_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no energy counter" in str(EnergyCounter.of_packages(tmp_path).reason)
    zone = package(tmp_path, "intel-rapl:0", 1)
    if os.getuid() == 0:  # root reads everything: the refusal is made
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(PermissionError))
    else:
        (zone / "energy_uj").chmod(0)
    counter = EnergyCounter.of_packages(tmp_path)
    assert "sudo chmod" in str(counter.reason)
    assert counter.joules() is None


def test_without_a_counter_energy_is_unknown_for_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for counter, reason in (
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
