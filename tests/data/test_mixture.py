import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.data.buckets import Shapes
from ossicle.data.index import DatasetIndex
from ossicle.data.mixture import MixtureData, Source, shares_by_language, shares_of
from ossicle.data.plan import PlannedSequence
from tests.data.mixtures import Mixture, mixtures, source_of

CLOCK = FrameClock().then(400, 320)
PLAIN = {
    "alpha": 0.5, "source_alpha": 0.5, "max_crop_s": 1.0, "min_crop_s": 0.3, "num_shapes": 3, "batch_s": 3.0,
    "window_shards": 2, "workers": 0, "seed": 5, "max_bad_fraction": 0.1,
}  # fmt: skip


def mixture_of(sources: dict[str, dict[str, object]], **changes: object) -> MixtureData:
    return MixtureData(sources, **{**PLAIN, **changes})  # ty: ignore[invalid-argument-type]


def component_of(plan: PlannedSequence) -> dict[int, int]:
    """Component of each row."""
    return {
        int(plan.items.rows_and_pieces(items)[0][place]): number
        for number, component in enumerate(plan.components)
        for items in component.items
        for place in range(len(items))
    }


def test_shares_are_those_of_xlsr_within_a_source_and_over_sources() -> None:
    heard = [np.array([900.0, 100.0]), np.array([250.0])]
    shares = shares_of(heard, weights=[1, 1], alpha=0.5, source_alpha=0.5)
    # by hand: sources 1000 and 250 give sqrt(4) : 1, languages 900 and 100 give 3 : 1
    np.testing.assert_allclose(shares, [2 / 3 * 3 / 4, 2 / 3 * 1 / 4, 1 / 3])
    np.testing.assert_allclose(
        shares_of(heard, weights=[1, 1], alpha=1, source_alpha=1), np.array([900, 100, 250]) / 1250
    )
    np.testing.assert_allclose(shares_of(heard, weights=[1, 3], alpha=0, source_alpha=0), [1 / 8, 1 / 8, 3 / 4])


def test_shares_by_language_are_those_of_mhubert_over_the_whole_corpus_and_inside_each_language() -> None:
    heard, languages = [np.array([720.0, 100.0]), np.array([180.0, 400.0])], [("en", "fr"), ("en", "de")]
    shares = shares_by_language(heard, languages, weights=[1, 1], alpha=0.5, source_alpha=0.5)
    # by hand: en 900, fr 100 and de 400 give 30 : 10 : 20; en's sources, 720 and 180, give 2 : 1
    np.testing.assert_allclose(shares, [1 / 2 * 2 / 3, 1 / 6, 1 / 2 * 1 / 3, 1 / 3])
    # a weight of 2 makes en's sources 1 : 1, and leaves the languages alone
    weighed = shares_by_language(heard, languages, weights=[1, 2], alpha=0.5, source_alpha=0.5)
    np.testing.assert_allclose(weighed, [1 / 4, 1 / 6, 1 / 4, 1 / 3])
    plain = shares_by_language(heard, languages, weights=[1, 1], alpha=1, source_alpha=1)
    np.testing.assert_allclose(plain, np.array([720, 100, 180, 400]) / 1400)
    # sources of one language each: the language's temperature acts on them, which sources first leave to source_alpha
    ones, names = [np.array([900.0]), np.array([100.0])], [("en",), ("de",)]
    np.testing.assert_allclose(
        shares_by_language(ones, names, weights=[1, 1], alpha=0.5, source_alpha=1.0), [3 / 4, 1 / 4]
    )
    np.testing.assert_allclose(shares_of(ones, weights=[1, 1], alpha=0.5, source_alpha=1.0), [9 / 10, 1 / 10])


def test_one_source_has_the_same_shares_in_either_order() -> None:
    heard = [np.array([730.0, 11.0, 259.0])]
    first = shares_of(heard, weights=[1], alpha=0.7, source_alpha=0.9)
    np.testing.assert_allclose(
        shares_by_language(heard, [("a", "b", "c")], weights=[1], alpha=0.7, source_alpha=0.9), first, rtol=1e-12
    )


def test_the_order_of_a_mixture_decides_what_its_languages_are_worth(synthetic_dataset: Path) -> None:
    sources = {"a": {"shards": synthetic_dataset}, "b": {"shards": synthetic_dataset, "split": "dev", "weight": 3.0}}
    by_source = mixture_of(sources, alpha=0.0, source_alpha=0.0).heard
    by_language = mixture_of(sources, alpha=0.0, source_alpha=0.0, order="languages").heard
    assert by_source.names == by_language.names
    spoken = {source: [spoken for of, spoken in by_source.names if of == source] for source in "ab"}
    known = {language for _, language in by_source.names}
    assert len(known) > 1
    weights = {"a": 1.0, "b": 3.0}
    for (source, language), first, second in zip(by_source.names, by_source.wanted, by_language.wanted, strict=True):
        assert first == pytest.approx(weights[source] / 4 / len(spoken[source]))
        both = sum(weights[other] for other in "ab" if language in spoken[other])
        assert second == pytest.approx(weights[source] / both / len(known))


def test_an_order_that_is_none_is_refused(ramps: Path) -> None:
    with pytest.raises(ConfigError, match="order=both"):
        mixture_of({"a": {"shards": ramps}}, order="both")


@settings(max_examples=40, deadline=None)
@given(mixtures())
def test_each_component_is_heard_in_passes_without_repetition_whatever_its_share(mixture: Mixture) -> None:
    plan = mixture.sequence()
    component = component_of(plan)
    streams: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for position in range(plan.first_position(3)):
        spec = plan.batch(position)
        pieces = [0] * len(spec.ids) if spec.pieces is None else spec.pieces.tolist()
        assert len(spec.ids) == mixture.shapes.rows[spec.bucket]
        for item in zip(spec.ids.tolist(), pieces, strict=True):
            streams.setdefault((component[item[0]], spec.bucket), []).append(item)
    for (number, bucket), stream in streams.items():
        rows, pieces = plan.items.rows_and_pieces(plan.components[number].items[bucket])
        members = set(zip(rows.tolist(), pieces.tolist(), strict=True))
        for start in range(0, len(stream), len(members)):
            part = stream[start : start + len(members)]
            assert len(set(part)) == len(part)
            assert set(part) <= members
            assert len(part) < len(members) or set(part) == members


@settings(max_examples=40, deadline=None)
@given(mixtures())
def test_realised_shares_stay_within_two_batches_of_each_shape_and_an_utterance_of_each_component(
    mixture: Mixture,
) -> None:
    plan = mixture.sequence()
    component = component_of(plan)
    lengths = mixture.shapes.lengths
    wanted = np.array(plan.speeds) / 2**32  # passes an epoch
    heard = np.array([np.dot(c.sizes, lengths) for c in plan.components]) * wanted
    realised = np.zeros(len(plan.components))
    slack = sum(
        length * (2 * rows + len(plan.components) + 1)
        for length, rows in zip(lengths, mixture.shapes.rows, strict=True)
    )
    for position in range(min(400, plan.first_position(4))):
        spec = plan.batch(position)
        for row in spec.ids.tolist():
            realised[component[row]] += lengths[spec.bucket]
        due = heard / heard.sum() * realised.sum()
        assert np.abs(realised - due).max() <= slack


def test_the_share_of_a_rare_language_is_met_to_the_utterance() -> None:
    rows = source_of([20] * 1_000, [100] * 10, [0] * 990 + [1] * 10)
    plan = Mixture((rows,), (2,), (1.0,), 0.5, 1.0, Shapes((20,), (10,)), 0, 2).sequence()
    component = component_of(plan)
    share = np.sqrt(10) / (np.sqrt(10) + np.sqrt(990))
    counts = Counter[int]()
    for position in range(1_000):
        counts.update(component[row] for row in plan.batch(position).ids.tolist())
        assert abs(counts[1] - share * counts.total()) <= 2
    each = Counter[int]()
    for position in range(1_000):
        each.update(row for row in plan.batch(position).ids.tolist() if component[row] == 1)
    assert max(each.values()) - min(each.values()) <= 1


def test_the_buckets_of_a_mixture_are_interleaved_however_far_the_run() -> None:
    rows = source_of([20, 30, 30] * 400, [120] * 10, [0] * 1_000 + [1] * 200)
    plan = Mixture((rows,), (2,), (1.0,), 0.5, 1.0, Shapes((20, 30), (10, 10)), 0, 2).sequence()
    assert 2**32 not in plan.speeds  # an epoch is no whole number of passes
    for epoch in (0, 10**6, 10**6 + 1):
        first_half = plan.epoch(epoch).buckets[:60]
        assert 10 < int((first_half == 0).sum()) < 30  # a third of the batches


def test_with_natural_shares_an_epoch_is_one_pass_of_everything() -> None:
    sources = (source_of([20] * 30, [7, 23], [0, 1, 2] * 10), source_of([20] * 12, [12], [0] * 12))
    plan = Mixture(sources, (3, 1), (1.0, 1.0), 1.0, 1.0, Shapes((20,), (7,)), 0, 2).sequence()
    assert set(plan.speeds) == {2**32}
    assert sorted(np.concatenate([plan.batch(g).ids for g in range(6)]).tolist()) == list(range(42))


@pytest.fixture
def pair(ramps: Path) -> dict[str, dict[str, object]]:
    return {"one": {"shards": ramps}, "two": {"shards": str(ramps), "weight": 2.0}}


def test_batches_hold_the_audio_of_the_source_that_their_rows_name(
    ramps: Path, pair: dict[str, dict[str, object]]
) -> None:
    data = mixture_of(pair, max_cut=0.0)
    data.set_clock(CLOCK)
    index = DatasetIndex.load(ramps, "train")
    seen = Counter[int]()
    for batch in islice(iter(data.train_dataloader()), 40):
        for wave_S, row, start in zip(batch.waveform_BS, batch.ids_B.tolist(), batch.starts_B.tolist(), strict=True):
            seen[row // index.num_utterances] += len(wave_S)
            assert round(float(wave_S[0]) * 32_768) * 320 == start
            assert start + len(wave_S) <= int(index.rows["samples"][row % index.num_utterances])
        data.advance()
    assert seen[1] / seen.total() == pytest.approx(2 / 3, abs=0.02)
    assert data.heard.names == (("one", "xx"), ("two", "xx"))
    assert data.heard.samples.tolist() == [seen[0], seen[1]]
    np.testing.assert_allclose(data.heard.wanted, [1 / 3, 2 / 3])


def test_what_was_read_ahead_does_not_count_as_heard(pair: dict[str, dict[str, object]]) -> None:
    data = mixture_of(pair)
    data.set_clock(CLOCK)
    batches = list(islice(iter(data.train_dataloader()), 5))
    assert data.heard.samples.sum() == 0
    data.advance()
    assert data.heard.samples.sum() == batches[0].waveform_BS.numel()


def test_a_position_of_other_shares_is_refused(pair: dict[str, dict[str, object]]) -> None:
    state = mixture_of(pair).state_dict()
    mixture_of(pair, workers=2).load_state_dict(state)
    with pytest.raises(ConfigError, match="shares"):
        mixture_of({**pair, "two": {**pair["two"], "weight": 3.0}}).load_state_dict(state)
    state = mixture_of(pair).state_dict()
    with pytest.raises(ConfigError, match="shares"):
        mixture_of(pair, source_alpha=1.0, seed=6).load_state_dict(state)


def test_a_bad_utterance_of_a_source_is_named_with_its_source(
    ramps: Path, corrupted: Callable[[list[int]], DatasetIndex], tmp_path: Path
) -> None:
    damaged = corrupted([3])
    log = tmp_path / "bad.jsonl"
    data = mixture_of({"good": {"shards": ramps}, "bad": {"shards": damaged.path}}, quarantine=log)
    data.set_clock(CLOCK)
    for batch in islice(iter(data.train_dataloader()), 60):
        assert 63 not in batch.ids_B.tolist()
    names = {json.loads(line)["name"] for line in log.read_text().splitlines()}
    assert len(names) == 1
    assert names.pop().startswith("bad: train/")


def test_labels_of_each_source_reach_its_crops(ramps: Path, tmp_path: Path, write_labels: Callable[..., Path]) -> None:
    index = DatasetIndex.load(ramps, "train")
    labels = [write_labels(tmp_path / name, index) for name in "ab"]
    sources = {path.name: {"shards": ramps, "labels": path} for path in labels}
    data = mixture_of(sources)
    data.set_clock(CLOCK, 200)
    for batch in islice(iter(data.train_dataloader()), 20):
        assert batch.labels_BT is not None
        frames = batch.labels_BT.shape[1]
        heard_BT = (batch.waveform_BS[:, : 320 * frames : 320] * 32_768).round().long()
        assert ((heard_BT + batch.ids_B[:, None] % 60) % 200 == batch.labels_BT).all()
    for path, centroid in zip(labels, (1.0, 2.0), strict=True):
        np.save(path / "centroids.npy", np.array([centroid]))
    with pytest.raises(ConfigError, match="different clusterings"):
        mixture_of(sources)
    with pytest.raises(ConfigError, match="has no labels"):
        mixture_of({**sources, "c": {"shards": ramps}})


@pytest.mark.parametrize(
    ("given", "said"),
    [({"shard": "x"}, "no key 'shard'"), ({}, "names no shards"), ({"shards": "x", "weight": 0.0}, "not positive")],
)
def test_a_misspelt_source_is_refused_by_name(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=f"sources.libri.*{said}"):
        Source.of("libri", given)


def test_a_source_that_adds_nothing_is_refused(ramps: Path) -> None:
    with pytest.raises(ConfigError, match="names no dataset"):
        mixture_of({})
    with pytest.raises(DataError, match="no prepared dataset"):
        mixture_of({"a": {"shards": ramps / "nothing"}})
    with pytest.raises(ConfigError, match="min_crop_s"):
        mixture_of({"a": {"shards": ramps}}, min_crop_s=9.0, max_crop_s=10.0)
