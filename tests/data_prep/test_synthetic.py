import pickle
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_prep.espeak import say
from data_prep.synthetic import _VARIANTS, LANGUAGES, SyntheticCorpus, SyntheticSource, clause_split, read_parts
from ossicle.core.errors import ConfigError
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.data.prepare import verify


@pytest.fixture(scope="module")
def hour() -> list[SyntheticSource]:
    return list(SyntheticCorpus().sources())


def by_split(sources: list[SyntheticSource]) -> dict[str, list[SyntheticSource]]:
    splits: defaultdict[str, list[SyntheticSource]] = defaultdict(list)
    for source in sources:
        splits[source.split].append(source)
    return splits


def test_an_hour_has_many_voices_and_languages(hour: list[SyntheticSource]) -> None:
    assert len({source.speaker for source in hour}) == 32
    assert {source.language for source in hour} == set(LANGUAGES)
    assert len(LANGUAGES) >= 5


def test_sources_are_the_same_each_time_and_others_for_another_seed(hour: list[SyntheticSource]) -> None:
    assert list(SyntheticCorpus().sources()) == hour
    assert not {s.text for s in SyntheticCorpus(seed=1).sources()} >= {s.text for s in hour}
    assert SyntheticCorpus(seed=1).voices() != SyntheticCorpus().voices()


def test_voices_of_dev_and_test_are_in_no_other_split(hour: list[SyntheticSource]) -> None:
    for field in ("speaker", "variant"):
        used = {split: {getattr(s, field) for s in sources} for split, sources in by_split(hour).items()}
        assert not used["train"] & (used["dev"] | used["test"])
        assert not used["dev"] & used["test"]
        assert len(used["test"]) == len(used["dev"]) == 4


def test_no_sentence_comes_twice_and_no_clause_is_in_two_splits(hour: list[SyntheticSource]) -> None:
    assert len({source.text for source in hour}) == len(hour)
    objects = {language: read_parts(language)["object"] for language in LANGUAGES}
    clauses: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for source in hour:
        if source.language == "de":
            continue  # the opening turns the order of words around
        parts = read_parts(source.language)
        for thing in objects[source.language]:
            before, found, after = source.text.lower().partition(f" {thing.lower()} ")
            if found:
                subject = next((s for s in parts["subject"] if s.lower() in before), "")
                verb = next((v for v in parts["verb"] if v.lower() in before), "")
                place = next((p for p in parts["place"] if after.startswith(p.lower())), "")
                clauses[source.split].add((source.language, subject, verb, thing, place))
    assert len(clauses["test"]) > 40
    assert not clauses["train"] & (clauses["test"] | clauses["dev"])
    assert not clauses["dev"] & clauses["test"]


def test_clauses_fall_to_splits_by_their_words_alone() -> None:
    share = Counter(clause_split(f"clause {number}") for number in range(6000))
    assert share["train"] == pytest.approx(4000, rel=0.05)
    assert share["dev"] == pytest.approx(1000, rel=0.1)


def test_every_voice_speaks_several_languages(hour: list[SyntheticSource]) -> None:
    spoken: defaultdict[str, set[str]] = defaultdict(set)
    for source in hour:
        spoken[source.speaker].add(source.language)
    assert min(len(languages) for languages in spoken.values()) >= 5


def test_each_test_voice_has_enough_utterances_to_be_told_apart(hour: list[SyntheticSource]) -> None:
    counts = Counter(source.speaker for source in hour if source.split == "test")
    assert min(counts.values()) >= 20


def test_voices_differ_in_timbre_pitch_and_rate() -> None:
    voices = [voice for split in SyntheticCorpus().voices().values() for voice in split]
    assert len({voice.variant for voice in voices}) == len({voice.speaker for voice in voices}) == 32
    assert len({voice.pitch for voice in voices}) == len({voice.rate for voice in voices}) == 32
    timbres = {say("A quick brown fox sees me.", f"en-us+{variant}").pcm_S.tobytes() for variant in _VARIANTS}
    assert len(timbres) == len(_VARIANTS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_of_every_language_are_whole(language: str) -> None:
    parts = read_parts(language)
    assert set(parts) == {"time", "subject", "verb", "object", "place", "joiner"}
    for phrases in parts.values():
        assert len(set(phrases)) == len(phrases)
        assert all(phrase and phrase == phrase.strip() for phrase in phrases)
    assert len(parts["subject"]) * len(parts["verb"]) * len(parts["object"]) * len(parts["place"]) > 100_000


def test_a_loaded_utterance_has_its_phones_to_the_sample(synthetic_dataset: Path) -> None:
    index = DatasetIndex.load(synthetic_dataset, "train")
    for row in range(index.num_utterances):
        utterance, samples = index.read_meta(row), int(index.rows[row]["samples"])
        bounds = [(phone.start, phone.end) for phone in utterance.phones]
        assert bounds[0][0] == 0
        assert bounds[-1][1] == samples
        assert all(left[1] == right[0] for left, right in pairwise(bounds))


def test_pauses_are_quieter_than_speech_after_resampling(synthetic_dataset: Path) -> None:
    index = DatasetIndex.load(synthetic_dataset, "test")
    quiet, loud = [], []
    for row in range(index.num_utterances):
        wave = decode(index.read_audio(row))
        for phone in index.read_meta(row).phones:
            (quiet if phone.symbol == "_" else loud).append(np.abs(wave[phone.start : phone.end]).mean())
    assert np.mean(loud) > 20 * np.mean(quiet)


def test_lengths_and_hours_are_about_what_was_planned(synthetic_dataset: Path) -> None:
    splits = [DatasetIndex.load(synthetic_dataset, split) for split in ("train", "dev", "test")]
    lengths_s = np.concatenate([index.rows["samples"] for index in splits]) / 16_000
    assert lengths_s.sum() == pytest.approx(180, rel=0.2)
    assert lengths_s.min() > 1.5
    assert lengths_s.max() < 15
    assert verify(synthetic_dataset) == len(lengths_s)


def test_a_corpus_pickles_and_says_the_same_there() -> None:
    corpus = SyntheticCorpus(hours=0.01, num_voices=6)
    there = pickle.loads(pickle.dumps(corpus))  # noqa: S301  made in this line
    source = next(corpus.sources())
    here, other = corpus.load(source), there.load(next(there.sources()))
    assert here.utterance == other.utterance
    np.testing.assert_array_equal(here.pcm_S, other.pcm_S)


def test_arguments_out_of_range_are_refused_with_the_range() -> None:
    with pytest.raises(ConfigError, match=r"languages=\['xx'\]"):
        SyntheticCorpus(languages=("xx",))
    with pytest.raises(ConfigError, match="num_voices=3"):
        SyntheticCorpus(num_voices=3)
    with pytest.raises(ConfigError, match="hours=0"):
        SyntheticCorpus(hours=0)
