"""Keeps the run's cost card."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from typing_extensions import override

from ossicle.core.files import read_json, write_json
from ossicle.core.memory import peak_resident_bytes
from ossicle.meter.cost import CostFacts, CostTotals, make_card
from ossicle.meter.energy import EnergyCounter
from ossicle.meter.flops import macs_or_reason, macs_per_audio_s, peak_flops
from ossicle.system.pretraining import Pretraining
from ossicle.system.watcher import Watcher

CHECKPOINT_KEY = "cost"


class CostMeter(Watcher):
    """Writes cost.json at every reading of the metrics and when the run ends.

    What a run took before it was resumed counts, steps that were lost with a crash included: checkpoints carry the sums
    so far, and so does checkpoints/cost.json between them.

    Args:
        run_dir: Where the run writes.
        config: The resolved config; not used.
        grid_g_per_kwh: Grams of CO2 equivalent a kilowatt-hour of the grid that feeds the machine, or None.
    """

    def __init__(self, *, run_dir: Path, config: Mapping[str, object], grid_g_per_kwh: float | None = None) -> None:
        del config
        self.path = Path(run_dir) / "cost.json"
        self.sums_path = Path(run_dir) / "checkpoints" / "cost.json"
        self.grid_g_per_kwh = grid_g_per_kwh
        self.before = CostTotals()
        self.counter = EnergyCounter(reason="training has not begun")
        self._started: tuple[float, float | None] | None = None
        self._macs: dict[int, int] = {}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        sums = cast("dict[str, float]", checkpoint.get(CHECKPOINT_KEY, {}))
        self.before = CostTotals(**sums)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.sums_path.is_file():
            later = CostTotals(**read_json(self.sums_path))
            self.before = max(self.before, later, key=lambda totals: totals.wall_s)
        self.counter = EnergyCounter.of_device(pl_module.device)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._started = (time.perf_counter(), self.counter.joules())

    def totals(self, system: LightningModule, world_size: int) -> CostTotals:
        """What the run took so far, over ranks and resumptions. Call it on every rank."""
        if self._started is None:
            return self.before
        assert isinstance(system, Pretraining)
        device = system.device
        on_gpu = device.type == "cuda"
        wall_s = time.perf_counter() - self._started[0]
        joules, joules_before = self.counter.joules(), self._started[1]
        energy_j = math.nan if joules is None or joules_before is None else joules - joules_before
        if not on_gpu and system.trainer.local_rank > 0:
            energy_j = 0.0  # the counters are the machine's: its first rank tells of them for all
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else peak_resident_bytes()
        counts = [wall_s if on_gpu else 0.0, system.throughput.audio_s, system.throughput.wait_s, wall_s, energy_j]
        sums = torch.tensor(counts, dtype=torch.float64, device=device)
        top = torch.tensor(float(peak), dtype=torch.float64, device=device)
        if world_size > 1:
            dist.all_reduce(sums)
            dist.all_reduce(top, op=dist.ReduceOp.MAX)
        device_s, audio_s, wait_s, rank_s, energy_j = sums.tolist()
        session = CostTotals(
            wall_s=wall_s,
            device_s=device_s,
            audio_s=audio_s,
            wait_s=wait_s,
            rank_s=rank_s,
            energy_j=None if math.isnan(energy_j) else energy_j,
            peak_memory_bytes=top.item(),
        )
        return self.before.then(session)

    def facts(self, system: Pretraining) -> CostFacts:
        """What is known of the model and the device."""
        device = system.device
        peak: float | str = "the peak of a CPU depends on its clock, which nothing here knows"
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
            peak = peak_flops(name) or f"the peak of {name} is not in the table"
        return CostFacts(
            params=sum(parameter.numel() for parameter in system.parameters() if parameter.requires_grad),
            macs_per_audio_s=self.macs_per_audio_s(system),
            peak_flops=peak,
            energy_reason=self.counter.reason,
            energy_source=self.counter.source,
            grid_g_per_kwh=self.grid_g_per_kwh,
        )

    def macs_per_audio_s(self, system: Pretraining) -> float | str:
        """Multiply-accumulates a second of audio over the crops of this rank, or why they cannot be counted."""
        crops = system.throughput.crops
        if not crops:
            return "no batch was seen"
        for num_samples in crops.keys() - self._macs.keys():
            macs = macs_or_reason(system.model, num_samples)
            if isinstance(macs, str):
                return macs
            self._macs[num_samples] = macs
        return macs_per_audio_s(self._macs, crops, system.model.clock.rate_hz)

    def write(self, trainer: Trainer, system: LightningModule, *, durable: bool = True) -> None:
        """Write cost.json and the sums behind it; ``durable``: so that they outlast a loss of power."""
        assert isinstance(system, Pretraining)
        totals = self.totals(system, trainer.world_size)
        if trainer.is_global_zero:
            make_card(totals, self.facts(system)).write(self.path, durable=durable)
            write_json(self.sums_path, asdict(totals), durable=durable)

    @override
    def on_metrics(self, trainer: Trainer, system: LightningModule, metrics: Mapping[str, float], step: int) -> None:
        self.write(trainer, system, durable=False)  # a disk takes longer than a step

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, pl_module)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        checkpoint[CHECKPOINT_KEY] = asdict(self.totals(pl_module, trainer.world_size))
