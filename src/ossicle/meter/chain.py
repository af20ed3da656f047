"""The cost of a chain of runs: one card for all."""

from collections.abc import Callable, Sequence

from ossicle.meter.cost import CostCard, Entry


def chain_card(cards: Sequence[CostCard]) -> CostCard:
    """The card of runs that followed each other.

    Time, audio, energy and emissions add up; the speed is that of all audio over all time; fractions are weighted by
    each run's time; memory is the largest; parameters and operations are those of the last run. What one card does not
    know, the chain does not know.

    Args:
        cards: A card a run, in order; one at least.
    """
    wall_s = _combine([card.wall_s for card in cards], sum)
    audio_hours = _combine([card.audio_hours for card in cards], sum)
    return CostCard(
        gpu_hours=_combine([card.gpu_hours for card in cards], sum),
        wall_s=wall_s,
        audio_hours=audio_hours,
        audio_s_per_s=_combine([audio_hours, wall_s], lambda both: 3600 * both[0] / both[1] if both[1] else 0.0),
        padding_fraction=_by_time([card.padding_fraction for card in cards], cards),
        data_wait_fraction=_by_time([card.data_wait_fraction for card in cards], cards),
        mfu=_by_time([card.mfu for card in cards], cards),
        peak_memory_bytes=_combine([card.peak_memory_bytes for card in cards], max),
        energy_kwh=_combine([card.energy_kwh for card in cards], sum),
        co2e_kg=_combine([card.co2e_kg for card in cards], sum),
        params=cards[-1].params,
        macs_per_audio_s=cards[-1].macs_per_audio_s,
    )


def _combine(entries: Sequence[Entry], rule: Callable[[list[float]], float]) -> Entry:
    """One entry from several by a rule; the first gap among them where there is one."""
    for entry in entries:
        if entry.value is None:
            return entry
    hows = [entry.how for entry in entries]
    how = next(name for name in ("estimated", "measured", "counted") if name in hows)
    return Entry(rule([entry.value for entry in entries if entry.value is not None]), how, entries[-1].reason)


def _by_time(entries: Sequence[Entry], cards: Sequence[CostCard]) -> Entry:
    times = [card.wall_s.value or 0.0 for card in cards]
    total = sum(times) or 1.0
    return _combine(entries, lambda values: sum(v * t for v, t in zip(values, times, strict=True)) / total)
