import pytest

from ossicle.meter.chain import chain_card
from ossicle.meter.cost import CostFacts, CostTotals, make_card

FACTS = CostFacts(params=10, macs_per_audio_s=5.0, peak_flops="a CPU states none", energy_reason="no counter")


def test_one_run_is_a_chain_of_one() -> None:
    totals = CostTotals(wall_s=10, audio_s=3600, wait_s=1, rank_s=10, energy_j=None, peak_memory_bytes=7)
    card = make_card(totals, FACTS)
    assert chain_card([card]) == card


def test_time_and_audio_add_up_speed_is_of_all_and_memory_is_the_largest() -> None:
    first = make_card(
        CostTotals(wall_s=10, audio_s=100, wait_s=5, rank_s=10, energy_j=None, peak_memory_bytes=7), FACTS
    )
    later = make_card(
        CostTotals(wall_s=30, audio_s=900, wait_s=3, rank_s=30, energy_j=None, peak_memory_bytes=3), FACTS
    )
    both = chain_card([first, later])
    assert both.wall_s.value == 40
    assert both.audio_hours.value == pytest.approx(1000 / 3600)
    assert both.audio_s_per_s.value == pytest.approx(25)
    assert both.data_wait_fraction.value == pytest.approx(8 / 40)
    assert both.peak_memory_bytes.value == 7
    assert both.params == later.params


def test_what_one_run_does_not_know_the_chain_does_not_know() -> None:
    facts = CostFacts(params=10, macs_per_audio_s=5.0, peak_flops=1e9, grid_g_per_kwh=100.0)
    known = make_card(CostTotals(wall_s=1, audio_s=1, rank_s=1, device_s=1, energy_j=3.6e6), facts)
    unknown = make_card(CostTotals(wall_s=1, audio_s=1, rank_s=1, device_s=1, energy_j=None), FACTS)
    assert chain_card([known, known]).energy_kwh.value == pytest.approx(2)
    assert chain_card([known, unknown]).energy_kwh.value is None
    assert chain_card([known, unknown]).energy_kwh.reason
