import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ossicle.meter.cost import CostCard, CostFacts, CostTotals, Entry, make_card, render

TOTALS = CostTotals(
    wall_s=1800.0,
    device_s=3600.0,
    audio_s=7200.0,
    wait_s=36.0,
    rank_s=3600.0,
    energy_j=1.8e6,
    peak_memory_bytes=2.0**31,
)
FACTS = CostFacts(params=1_000_000, macs_per_audio_s=1e9, peak_flops=1e12, grid_g_per_kwh=400.0)


def test_a_card_says_what_the_totals_come_to() -> None:
    card = make_card(TOTALS, FACTS)
    values = {name: entry["value"] for name, entry in card.to_json().items()}
    assert values == pytest.approx(
        {
            "gpu_hours": 1.0,
            "wall_s": 1800.0,
            "audio_hours": 2.0,
            "audio_s_per_s": 4.0,
            "padding_fraction": 0.0,
            "data_wait_fraction": 0.01,
            "mfu": 6 * 1e9 * 7200 / (3600 * 1e12),
            "peak_memory_bytes": 2.0**31,
            "energy_kwh": 0.5,
            "co2e_kg": 0.2,
            "params": 1e6,
            "macs_per_audio_s": 1e9,
        }
    )
    assert card.mfu.how == "estimated"
    assert card.energy_kwh.how == "measured"


def test_what_is_unknown_is_null_with_a_reason_and_never_a_guess() -> None:
    totals = replace(TOTALS, energy_j=None)
    facts = replace(FACTS, peak_flops="no such device", macs_per_audio_s="no meta", energy_reason="no counter")
    card = make_card(totals, facts)
    for name in ("mfu", "energy_kwh", "co2e_kg", "macs_per_audio_s"):
        entry: Entry = getattr(card, name)
        assert entry.value is None
        assert entry.how is None
        assert entry.reason
    assert make_card(TOTALS, replace(FACTS, grid_g_per_kwh=None)).co2e_kg.value is None
    assert make_card(CostTotals(), FACTS).audio_s_per_s.value is None


def test_numbers_need_an_origin_and_gaps_a_reason() -> None:
    for arguments in ((1.0, None), (1.0, "guessed"), (math.nan, "measured"), (None, "measured", "why"), (None, None)):
        with pytest.raises(ValueError, match=r"origin|reason"):
            Entry(*arguments)  # type: ignore[arg-type]


def test_totals_add_up_over_resumptions() -> None:
    twice = TOTALS.then(TOTALS)
    assert (twice.wall_s, twice.audio_s, twice.energy_j, twice.peak_memory_bytes) == (3600.0, 14_400.0, 3.6e6, 2.0**31)
    assert TOTALS.then(replace(TOTALS, energy_j=None)).energy_j is None


def test_a_card_survives_its_file(tmp_path: Path) -> None:
    card = make_card(replace(TOTALS, energy_j=None), FACTS)
    card.write(tmp_path / "cost.json")
    assert CostCard.read(tmp_path / "cost.json") == card


def test_the_table_shows_every_entry_and_calls_gaps_unknown() -> None:
    output = io.StringIO()
    Console(file=output, width=140).print(render(make_card(replace(TOTALS, energy_j=None), FACTS)))
    text = output.getvalue()
    assert "2 GiB" in text
    unknown = [line for line in text.splitlines() if "unknown" in line]
    assert ["energy" in unknown[0], "CO2" in unknown[1], len(unknown)] == [True, True, 2]
