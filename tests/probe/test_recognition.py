from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ossicle.data.utterance import Utterance
from ossicle.probe.collect import Clip, collect
from ossicle.probe.ctc import CTCTraining
from ossicle.probe.features import Featurizer
from ossicle.probe.recognition import PhoneCTC, PhoneRecurrentCTC
from ossicle.probe.tasks import Splits


def spelled(utterance: Utterance) -> list[str]:
    merged: list[str] = []
    for symbol in utterance.text.split():
        if not merged or merged[-1] != symbol:
            merged.append(symbol)
    return merged


def test_a_sum_of_layers_learns_to_spell_without_times_and_noise_does_not(
    splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    clips = splits(160)
    task = PhoneCTC(spelled, CTCTraining(epochs=20, batch_utterances=4, learning_rate=3e-2), every_layer=True)
    sets = Splits(*(collect(planted("p", 2), x, keep_frames=True) for x in (clips.train, clips.test, clips.dev or ())))
    outcomes = {o.layer: o for o in task.run(sets, ("0", "1"), (0,))}
    rates = {layer: o.errors_U.sum() / o.counts_U.sum() for layer, o in outcomes.items()}
    assert set(rates) == {"0", "1", "weighted"}
    assert rates["weighted"] < 0.7 * rates["0"]
    assert rates["1"] < 0.1
    assert rates["0"] > 0.6
    counts = [len([s for s in spelled(clip.utterance) if s != "_"]) for clip in clips.test]
    assert outcomes["1"].counts_U.tolist() == counts
    assert outcomes["1"].selection_error < 0.1
    weights = outcomes["weighted"].layer_weights
    assert weights is not None
    assert weights[1] > weights[0]


def test_a_recurrent_head_learns_to_spell_the_same_twice_and_noise_does_not(
    splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    clips = splits(160)
    task = PhoneRecurrentCTC(spelled, CTCTraining(epochs=12, batch_utterances=4, learning_rate=1e-2), every_layer=True)
    sets = Splits(*(collect(planted("p", 2), x, keep_frames=True) for x in (clips.train, clips.test, clips.dev or ())))
    outcomes = {o.layer: o for o in task.run(sets, ("0", "1"), (0,))}
    rates = {layer: o.errors_U.sum() / o.counts_U.sum() for layer, o in outcomes.items()}
    assert rates["1"] < 0.1
    assert rates["0"] > 0.6
    again = {o.layer: o for o in task.run(sets, ("0", "1"), (0,))}
    assert all((again[layer].errors_U == outcomes[layer].errors_U).all() for layer in outcomes)


def test_a_single_layer_has_no_sum_and_no_dev_split_leaves_a_tenth_out(
    splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    clips = splits(20, dev=False)
    sets = Splits(*(collect(planted("p", 1, 0), x, keep_frames=True) for x in (clips.train, clips.test)))
    (outcome,) = PhoneCTC(spelled, CTCTraining(epochs=1)).run(sets, ("0",), (0,))
    assert outcome.layer == "0"
    assert outcome.num_train == round(0.9 * 18)


def test_texts_longer_than_their_frames_are_not_trained_on(
    splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    clips = splits(20)
    crowded = replace(clips.train[0].utterance, text="a b " * 50)
    clips = replace(clips, train=(Clip(crowded, clips.train[0].waveform_S), *clips.train[1:]))
    sets = Splits(
        *(collect(planted("p", 1, 0), x, keep_frames=True) for x in (clips.train, clips.test, clips.dev or ()))
    )
    (outcome,) = PhoneCTC(spelled, CTCTraining(epochs=1)).run(sets, ("0",), (0,))
    assert outcome.num_train == round(0.9 * 19)
    assert np.isfinite(outcome.selection_error)


def test_the_note_names_phones_that_training_lacks_and_says_when_there_is_no_text() -> None:
    train, test = Utterance("a", "train", text="a b"), Utterance("b", "test", text="a ʒ")
    task = PhoneCTC(lambda utterance: utterance.text.split())
    assert "ʒ" in task.note(Splits((train,), (test,))).remarks[0]
    bare = PhoneCTC(lambda utterance: utterance.text.split()).note(Splits((Utterance("c", "train"),), (test,)))
    assert bare.chance_error is None
