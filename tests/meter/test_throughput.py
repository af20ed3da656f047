import pytest

from ossicle.meter import throughput
from ossicle.meter.throughput import Throughput


def test_audio_and_waiting_are_counted_by_stretch_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    meter = Throughput()
    now[0] = 110.0
    meter.start()
    now[0] = 112.0
    meter.arrive()
    meter.count(4, 32_000, 16_000)
    now[0] = 115.0
    meter.wait()
    now[0] = 116.0
    meter.arrive()
    meter.count(2, 16_000, 16_000)
    now[0] = 120.0
    first = meter.take()
    assert (first.audio_s, first.wait_s, first.wall_s) == (10.0, 3.0, 10.0)
    meter.count(1, 16_000, 16_000)
    now[0] = 121.0
    second = meter.take()
    assert (second.audio_s, second.wait_s, second.wall_s) == (1.0, 0.0, 1.0)
    assert (meter.audio_s, meter.wait_s) == (11.0, 3.0)
    assert meter.crops == {32_000: 4, 16_000: 3}
