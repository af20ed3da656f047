"""The cost card: what a run took, and how each number was obtained."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from rich.table import Table

from ossicle.core.files import read_json, write_json

HOWS = ("measured", "counted", "estimated")


@dataclass(frozen=True, slots=True)
class Entry:
    """One number of a cost card.

    Args:
        value: The number, or None where it is unknown: never a guess.
        how: ``measured`` (a clock or counter), ``counted`` (exact by construction), ``estimated`` (a stated formula),
            or None with the value.
        reason: Why the value is None, or what the estimate rests on.
    """

    value: float | None
    how: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        """Refuse a number without its origin and a gap without its reason."""
        if self.value is None and (self.how is not None or not self.reason):
            raise ValueError("a missing value has no origin, but a reason")
        if self.value is not None and (self.how not in HOWS or not math.isfinite(self.value)):
            raise ValueError(f"{self.value!r} needs an origin, one of {HOWS}, and to be finite; got {self.how!r}")

    @classmethod
    def unknown(cls, reason: str) -> Self:
        """A gap with its reason."""
        return cls(None, None, reason)


@dataclass(frozen=True, slots=True)
class CostCard:
    """What a run took, over all its processes and resumptions.

    Args:
        gpu_hours: GPUs times hours; 0 on a CPU.
        wall_s: Seconds from the first step to the last, without what lay between resumptions.
        audio_hours: Hours of audio that were trained on, all ranks and epochs together.
        audio_s_per_s: Seconds of audio a second of wall time.
        padding_fraction: Part of the samples that were padding.
        data_wait_fraction: Part of the wall time in which hosts waited for batches.
        mfu: Model FLOPs utilisation: training FLOPs over what the devices could do in that time.
        peak_memory_bytes: The largest of the ranks: GPU memory allocated, or the process's resident set on a CPU.
        energy_kwh: Energy drawn by the GPUs; without one by the processors, where these count it.
        co2e_kg: Emissions of that energy at the configured intensity of the grid.
        params: Parameters that were trained.
        macs_per_audio_s: Multiply-accumulates of the encoder's forward pass a second of audio.
    """

    gpu_hours: Entry
    wall_s: Entry
    audio_hours: Entry
    audio_s_per_s: Entry
    padding_fraction: Entry
    data_wait_fraction: Entry
    mfu: Entry
    peak_memory_bytes: Entry
    energy_kwh: Entry
    co2e_kg: Entry
    params: Entry
    macs_per_audio_s: Entry

    def to_json(self) -> dict[str, dict[str, float | str | None]]:
        """Plain containers, one entry a key."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, float | str | None]]) -> Self:
        """The card that :meth:`to_json` wrote."""
        entries = {}
        for field in fields(cls):
            entry = value[field.name]
            number, how, reason = entry["value"], entry["how"], entry.get("reason")
            entries[field.name] = Entry(
                None if number is None else float(number),
                None if how is None else str(how),
                None if reason is None else str(reason),
            )
        return cls(**entries)

    def write(self, path: Path, *, durable: bool = True) -> None:
        """Write cost.json whole; ``durable``: so that it outlasts a loss of power."""
        write_json(path, self.to_json(), durable=durable)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read cost.json."""
        return cls.from_json(read_json(path))


@dataclass(frozen=True, slots=True)
class CostTotals:
    """The sums from which a card is made; they add up over ranks and resumptions.

    Args:
        wall_s: Seconds of training.
        device_s: Seconds times GPUs.
        audio_s: Seconds of audio.
        wait_s: Seconds of waiting for batches, summed over ranks.
        rank_s: Seconds times ranks.
        energy_j: Joules, or None where nothing counts them.
        peak_memory_bytes: The largest of the ranks.
    """

    wall_s: float = 0.0
    device_s: float = 0.0
    audio_s: float = 0.0
    wait_s: float = 0.0
    rank_s: float = 0.0
    energy_j: float | None = 0.0
    peak_memory_bytes: float = 0.0

    def then(self, later: Self) -> Self:
        """The totals of a run and its resumption. Energy is unknown as soon as it was unknown once."""
        known = self.energy_j is not None and later.energy_j is not None
        return type(self)(
            wall_s=self.wall_s + later.wall_s,
            device_s=self.device_s + later.device_s,
            audio_s=self.audio_s + later.audio_s,
            wait_s=self.wait_s + later.wait_s,
            rank_s=self.rank_s + later.rank_s,
            energy_j=self.energy_j + later.energy_j if known else None,  # type: ignore[operator]
            peak_memory_bytes=max(self.peak_memory_bytes, later.peak_memory_bytes),
        )


@dataclass(frozen=True, slots=True)
class CostFacts:
    """What a card needs besides totals.

    Args:
        params: Parameters that are trained.
        macs_per_audio_s: Of the encoder's forward pass, or the reason why it could not be counted.
        peak_flops: Of one device, or the reason why it is unknown.
        energy_reason: Why energy is unknown, where it is.
        energy_source: What its counter counts, where there is one.
        grid_g_per_kwh: Grams of CO2 equivalent a kilowatt-hour, or None where none is configured.
    """

    params: int
    macs_per_audio_s: float | str
    peak_flops: float | str
    energy_reason: str | None = None
    energy_source: str | None = None
    grid_g_per_kwh: float | None = None


def make_card(totals: CostTotals, facts: CostFacts) -> CostCard:
    """The card of some totals."""
    no_time = Entry.unknown("no step was timed")
    timed = totals.wall_s > 0
    energy = _energy(totals, facts)
    macs = facts.macs_per_audio_s
    return CostCard(
        gpu_hours=Entry(totals.device_s / 3600, "measured"),
        wall_s=Entry(totals.wall_s, "measured"),
        audio_hours=Entry(totals.audio_s / 3600, "counted"),
        audio_s_per_s=Entry(totals.audio_s / totals.wall_s, "measured") if timed else no_time,
        padding_fraction=Entry(0.0, "counted", "batches are crops of one length"),
        data_wait_fraction=Entry(totals.wait_s / totals.rank_s, "measured") if totals.rank_s > 0 else no_time,
        mfu=_mfu(totals, facts),
        peak_memory_bytes=Entry(totals.peak_memory_bytes, "measured"),
        energy_kwh=energy,
        co2e_kg=_emissions(energy, facts.grid_g_per_kwh),
        params=Entry(float(facts.params), "counted"),
        macs_per_audio_s=Entry.unknown(macs) if isinstance(macs, str) else Entry(macs, "counted"),
    )


def _energy(totals: CostTotals, facts: CostFacts) -> Entry:
    if totals.energy_j is None:
        return Entry.unknown(facts.energy_reason or "a part of the run had no energy counter")
    return Entry(totals.energy_j / 3.6e6, "measured", facts.energy_source)


def _emissions(energy: Entry, grid_g_per_kwh: float | None) -> Entry:
    if energy.value is None:
        return Entry.unknown("the energy is unknown")
    if grid_g_per_kwh is None:
        return Entry.unknown("no intensity of the grid is configured: callback.cost.grid_g_per_kwh")
    return Entry(energy.value * grid_g_per_kwh / 1000, "estimated", f"at {grid_g_per_kwh:g} g a kWh")


def _mfu(totals: CostTotals, facts: CostFacts) -> Entry:
    """FLOPs of training are three forward passes of two FLOPs a multiply-accumulate; objectives' own are left out."""
    for unknown in (facts.peak_flops, facts.macs_per_audio_s):
        if isinstance(unknown, str):
            return Entry.unknown(unknown)
    assert isinstance(facts.peak_flops, float)
    assert isinstance(facts.macs_per_audio_s, float)
    if totals.device_s <= 0:
        return Entry.unknown("no step was timed on a GPU")
    flops = 6 * facts.macs_per_audio_s * totals.audio_s
    how = "3 x the encoder's forward pass, against the dense bf16 peak of the data sheet"
    return Entry(flops / (totals.device_s * facts.peak_flops), "estimated", how)


UNITS = {
    "gpu_hours": ("GPU hours", 1.0, ""),
    "wall_s": ("wall time", 1.0, "s"),
    "audio_hours": ("audio trained on", 1.0, "h"),
    "audio_s_per_s": ("audio a second", 1.0, "s/s"),
    "padding_fraction": ("padding", 100.0, "%"),
    "data_wait_fraction": ("waiting for data", 100.0, "%"),
    "mfu": ("model FLOPs utilisation", 100.0, "%"),
    "peak_memory_bytes": ("peak memory", 2.0**-30, "GiB"),
    "energy_kwh": ("energy", 1.0, "kWh"),
    "co2e_kg": ("CO2 equivalent", 1.0, "kg"),
    "params": ("parameters", 1e-6, "M"),
    "macs_per_audio_s": ("encoder MACs a second of audio", 1e-9, "G"),
}


def render(card: CostCard) -> Table:
    """A card as a console table."""
    table = Table(title="Cost", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("how", style="dim")
    for name, (label, scale, unit) in UNITS.items():
        entry: Entry = getattr(card, name)
        value = "unknown" if entry.value is None else f"{entry.value * scale:,.4g} {unit}".strip()
        table.add_row(label, value, "; ".join(part for part in (entry.how, entry.reason) if part))
    return table
