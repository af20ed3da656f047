from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ossicle.data.utterance import Utterance
from ossicle.probe.collect import Clip, FeatureSet, collect
from ossicle.probe.features import Featurizer, LogMelFeatures
from ossicle.probe.pooled import Standardisation, fit_ridge
from ossicle.probe.tasks import Splits
from ossicle.probe.utterance_tasks import Language, Speaker, _Data, _fit_and_test, _Vectors


def collected(featurizer: Featurizer, clips: Splits[tuple[Clip, ...]]) -> Splits[FeatureSet]:
    parts = (clips.train, clips.test, clips.dev)
    return Splits(*(found and collect(featurizer, found, keep_frames=False) for found in parts))


def utterances(split: str, *known: tuple[str, str]) -> tuple[Utterance, ...]:
    return tuple(Utterance(f"{split}{i}", split, lang, speaker) for i, (lang, speaker) in enumerate(known))


@pytest.mark.parametrize("task", [Language(), Speaker()])
@pytest.mark.parametrize("dev", [True, False])
def test_utterances_are_told_apart_by_the_layer_that_knows(
    task: Language | Speaker,
    dev: bool,
    splits: Callable[..., Splits[tuple[Clip, ...]]],
    planted: Callable[..., Featurizer],
) -> None:
    clips = splits(48, dev=dev)
    outcomes = list(task.run(collected(planted("planted"), clips), ("0", "1", "2"), (0, 1)))
    named = Splits(
        *(found and tuple(clip.utterance for clip in found) for found in (clips.train, clips.test, clips.dev))
    )
    assert {o.num_train for o in outcomes} == {round(0.9 * len(task.divide(named).train))}
    errors = {layer: np.mean([o.errors_U.mean() for o in outcomes if o.layer == layer]) for layer in ("0", "1", "2")}
    assert errors["1"] < 0.1
    assert min(errors["0"], errors["2"]) > 0.25
    weights = next(o.layer_weights for o in outcomes if o.layer == "weighted")
    assert weights is not None
    assert int(np.argmax(weights)) == 1


def test_languages_that_training_lacks_are_named_and_left_out() -> None:
    train = utterances("train", ("de", "a"), ("fr", "b"), ("de", "a"))
    test = utterances("test", ("de", "c"), ("eo", "d"), ("fr", "e"), ("", "f"))
    division = Language().divide(Splits(train, test))
    assert division.excluded == ("eo",)
    assert division.test.tolist() == [0, 2]
    assert Language().note(Splits(train, test)).chance_error == 0.5
    assert Language().note(Splits(train, test)).selected_on == "leaving one training utterance out"


def test_one_language_is_nothing_to_tell_apart() -> None:
    note = Language().note(Splits(utterances("train", ("de", "a")), utterances("test", ("de", "b"))))
    assert note.chance_error is None
    assert "not run" in note.remarks[-1]


def test_each_test_speakers_utterances_are_halved_whatever_their_order() -> None:
    test = utterances("test", *[("de", f"s{i % 3}") for i in range(12)], ("de", "once"), ("de", ""))
    division = Speaker().divide(Splits(utterances("train", ("de", "x")), test))
    assert division.classes == ("s0", "s1", "s2")
    assert (len(division.train), len(division.test)) == (6, 6)
    assert not set(division.train.tolist()) & set(division.test.tolist())
    turned = Speaker().divide(Splits(utterances("train", ("de", "x")), test[::-1]))
    assert {test[i].id for i in division.train} == {test[::-1][i].id for i in turned.train}


def test_speakers_of_another_split_serve_where_the_test_split_has_too_few_and_it_is_said() -> None:
    few = utterances("test", ("de", "a"), ("de", "b"))
    many = utterances("train", *[("de", f"s{i % 2}") for i in range(8)])
    assert Speaker().divide(Splits(many, few, many)).source == ("dev", None, "dev")
    note = Speaker().note(Splits(many, few))
    assert note.num_classes == 2
    assert "train split" in note.remarks[0]


def test_a_layer_that_is_alike_for_all_utterances_is_not_asked(clip: Callable[..., Clip]) -> None:
    rng = np.random.default_rng(0)
    made = [
        Clip(
            replace(clip(str(i), "test", i % 2).utterance, speaker=f"s{i % 2}"),
            (0.1 * (1 + i % 2) * rng.standard_normal(8_000)).astype(np.float32),
        )
        for i in range(20)
    ]
    sets = collected(LogMelFeatures(), Splits(tuple(made), tuple(made)))
    outcomes = list(Speaker().run(sets, LogMelFeatures().layers, (0,)))
    assert [o.layer for o in outcomes] == ["raw"]
    assert outcomes[0].errors_U.mean() == 0


def test_of_equal_strengths_the_strongest_is_taken_on_scales_of_the_training_vectors() -> None:
    draws = torch.Generator().manual_seed(0)
    train_y, test_y = torch.arange(8) % 2, torch.arange(200) % 2
    train, test = torch.randn(8, 60, generator=draws), 3 * torch.randn(200, 60, generator=draws) + 2
    train[:, 0] += 4 * train_y
    test[:, 0] += 12 * test_y
    vectors = _Vectors(train, train, test)  # every strength tells the training vectors apart
    found = _fit_and_test(vectors, _Data(vectors, (train_y, train_y, test_y), 2), np.arange(8), layer="0", seed=0)
    scaling = Standardisation.fit(train)
    predicted_KU = fit_ridge(scaling.apply(train), train_y, 2).predict(scaling.apply(test))
    wrong_KU = (predicted_KU != test_y).numpy()
    assert (wrong_KU[0] != wrong_KU[-1]).any()
    assert (found.selection_error, found.num_train) == (0, 8)
    assert found.errors_U.astype(bool).tolist() == wrong_KU[-1].tolist()
