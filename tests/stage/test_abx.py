import math
from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.data.utterance import Phone, Utterance
from ossicle.stage.abx import AbxSetting, Token, abx, tokens_of

CLOCK = FrameClock().then(320, 320)
SYMBOLS = ("a", "e", "i")


def spoken(num_utterances: int = 12, seed: int = 0) -> tuple[list[Utterance], list[int], Tensor]:
    """Utterances of random phones by three speakers, and frames that tell phones and speakers apart a little."""
    draws = np.random.default_rng(seed)
    places = {name: draws.normal(size=6) for name in (*SYMBOLS, "s0", "s1", "s2")}
    utterances, counts, frames = [], [], []
    for number in range(num_utterances):
        phones, position = [], 0
        for _ in range(14):
            length = int(draws.integers(2, 6)) * 320
            phones.append(Phone(position, position + length, str(draws.choice(SYMBOLS))))
            position += length
        speaker = f"s{number % 3}"
        utterances.append(Utterance(f"u{number}", "test", "xx", speaker, "", tuple(phones)))
        counts.append(CLOCK.num_frames(position))
        symbols = [phone.symbol for phone in phones for _ in range((phone.end - phone.start) // 320)]
        clean = np.stack([places[symbol] + 0.5 * places[speaker] for symbol in symbols])
        frames.append(clean + 1.5 * draws.normal(size=clean.shape))
    return utterances, counts, torch.from_numpy(np.concatenate(frames)).float()


def slow_dtw(x: np.ndarray, y: np.ndarray) -> float:
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
    distances = np.arccos(np.clip(x @ y.T / norms, -1, 1)) / math.pi
    cost = np.full((len(x), len(y)), math.inf)
    steps = np.zeros((len(x), len(y)), dtype=int)
    for t, u in product(range(len(x)), range(len(y))):
        before = [(cost[p], steps[p]) for p in ((t - 1, u - 1), (t, u - 1), (t - 1, u)) if min(p) >= 0]
        least, count = min(before, key=lambda pair: pair[0]) if before else (0.0, 0)
        cost[t, u], steps[t, u] = least + distances[t, u], count + 1
    return float(cost[-1, -1] / steps[-1, -1])


def slow_abx(frames: np.ndarray, tokens: list[Token], *, across: bool) -> float:
    """The definition, one triple after another, in float64."""
    cut = [frames[token.start : token.start + token.length] for token in tokens]
    known: dict[tuple[int, int], float] = {}

    def distance(one: int, other: int) -> float:
        if (one, other) not in known:
            known[one, other] = slow_dtw(cut[one], cut[other])
        return known[one, other]

    cells: dict[tuple[str, str, str, str, str], list[float]] = defaultdict(list)
    for (a, one), (b, two), (x, three) in product(enumerate(tokens), repeat=3):
        if one.phone != three.phone or one.phone == two.phone or a == x:
            continue
        if not one.context == two.context == three.context or one.speaker != two.speaker:
            continue
        if (one.speaker != three.speaker) != across:
            continue
        near, far = distance(a, x), distance(b, x)
        cells[one.phone, two.phone, one.speaker, three.speaker, one.context].append(
            float(far < near) + 0.5 * float(far == near)
        )
    speakers: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for (a, b, speaker, _, _), errors in cells.items():
        speakers[a, b, speaker].append(float(np.mean(errors)))
    pairs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (a, b, _), errors in speakers.items():
        pairs[a, b].append(float(np.mean(errors)))
    return float(np.mean([np.mean(errors) for errors in pairs.values()]))


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("any_context", [False, True])
def test_the_error_is_that_of_the_definition_by_brute_force(across: bool, any_context: bool) -> None:
    utterances, counts, frames_PD = spoken(6 if any_context else 9)
    tokens = tokens_of(utterances, counts, CLOCK, any_context=any_context)
    setting = AbxSetting(across_speakers=across, any_context=any_context, most_tokens=10**6, most_speakers=10**6)
    found = abx(frames_PD, tokens, setting)
    assert found.error == pytest.approx(slow_abx(frames_PD.double().numpy(), tokens, across=across), abs=1e-9)
    assert 0.05 < found.error < 0.45
    assert found.triples > found.cells > 0


def test_fastabx_finds_the_same(tmp_path: Path) -> None:
    fastabx = pytest.importorskip("fastabx", reason="fastabx needs Python 3.12")
    utterances, counts, frames_PD = spoken(30)
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    first = 0
    for utterance, count in zip(utterances, counts, strict=True):
        torch.save(frames_PD[first : first + count].clone(), tmp_path / f"{utterance.id}.pt")
        first += count
        phones = utterance.phones
        for before, phone, after in zip(phones, phones[1:], phones[2:], strict=False):
            onset, offset = before.start / 16_000, after.end / 16_000
            names = f"{phone.symbol} {before.symbol} {after.symbol} {utterance.speaker}"
            lines.append(f"{utterance.id} {onset:.4f} {offset:.4f} {names}")
    (tmp_path / "test.item").write_text("\n".join(lines) + "\n")
    tokens = [t for t in tokens_of(utterances, counts, CLOCK, any_context=False) if whole(t)]
    for across in (False, True):
        setting = AbxSetting(across_speakers=across, most_tokens=10**6, most_speakers=10**6)
        theirs = fastabx.zerospeech_abx(
            tmp_path / "test.item", tmp_path, max_size_group=None, max_x_across=None,
            speaker="across" if across else "within", context="within", device="cpu", progress=False,
        )  # fmt: skip
        assert abx(frames_PD, tokens, setting).error == pytest.approx(theirs, abs=1e-5)


def whole(token: Token) -> bool:
    """Whether the token stands between two others."""
    _, before, after = token.context.split("\x1f")
    return bool(before and after)


def test_features_that_name_the_phone_make_no_error_and_noise_is_chance() -> None:
    utterances, counts, _ = spoken()
    tokens = tokens_of(utterances, counts, CLOCK, any_context=True)
    symbols = [p.symbol for u in utterances for p in u.phones for _ in range((p.end - p.start) // 320)]
    named = torch.eye(3)[[SYMBOLS.index(symbol) for symbol in symbols]]
    for across in (False, True):
        setting = AbxSetting(across_speakers=across, any_context=True)
        assert abx(named, tokens, setting).error == 0
        noise = torch.randn(len(symbols), 8, generator=torch.Generator().manual_seed(0))
        assert abx(noise, tokens, setting).error == pytest.approx(0.5, abs=0.04)
        collapsed = torch.eye(3)[:1].expand(len(symbols), -1)
        assert abx(collapsed, tokens, setting).error == 0.5


def test_a_tokens_frames_are_those_whose_centres_lie_in_it() -> None:
    clock = FrameClock().then(400, 320)
    phones = (Phone(0, 1000, "a"), Phone(1000, 1160, "b"), Phone(1160, 2400, "_"), Phone(2400, 4000, "a"))
    (alone,) = [
        t for t in tokens_of([Utterance("u", "x", phones=phones)], [11], clock, any_context=True) if "b" in t.phone
    ]
    inside = [t for t in range(11) if 1000 <= clock.centre_samples(t) < 1160]
    assert (alone.start, alone.length) == (inside[0], len(inside))
    triphones = tokens_of([Utterance("u", "x", phones=phones)] * 2, [11, 11], clock, any_context=False)
    (first, second) = [t for t in triphones if t.phone.endswith("b")]
    inside = [t for t in range(11) if 0 <= clock.centre_samples(t) < 2400]
    assert (first.start, first.length) == (inside[0], len(inside))
    assert second.start == first.start + 11
    assert not any(t.phone.endswith("_") for t in triphones)


def test_crowded_groups_are_thinned_alike_each_time() -> None:
    utterances, counts, frames_PD = spoken(30)
    tokens = tokens_of(utterances, counts, CLOCK, any_context=True)
    few = AbxSetting(any_context=True, most_tokens=4)
    assert abx(frames_PD, tokens, few) == abx(frames_PD, tokens, few)
    assert abx(frames_PD, tokens, few).triples == 3 * 6 * 4 * 4 * 3  # speakers, ordered pairs, A and B, X but A
    everything = AbxSetting(any_context=True, most_tokens=10**6)
    assert abx(frames_PD, tokens, few).error == pytest.approx(abx(frames_PD, tokens, everything).error, abs=0.1)


def test_where_nothing_can_be_compared_it_is_said() -> None:
    with pytest.raises(DataError, match="no two phones"):
        abx(torch.zeros(4, 2), [Token("a", "", "s", 0, 2), Token("a", "", "s", 2, 2)])
