from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ossicle.probe.abx import AbxAcross, AbxTask, AbxWithin
from ossicle.probe.collect import Clip
from ossicle.probe.features import Featurizer
from ossicle.probe.report import summarise
from ossicle.probe.tasks import Splits
from ossicle.stage.abx import abx, tokens_of
from tests.probe.test_tasks import collected, named


@pytest.mark.parametrize("task", [AbxWithin(), AbxAcross()])
def test_the_layer_that_knows_the_phones_makes_fewer_errors_and_is_chosen(
    task: AbxTask, splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    clips = splits(60)
    sets = collected(planted("planted"), clips)
    outcomes = list(task.run(sets, ("0", "1", "2"), (5, 6)))
    assert [(o.layer, o.seed) for o in outcomes] == [("0", 5), ("1", 5), ("2", 5)]
    errors = [float(o.errors_U.sum() / o.counts_U.sum()) for o in outcomes]
    assert errors[1] < 0.1
    assert min(errors[0], errors[2]) > 0.35
    assert summarise(task.name, "planted", outcomes).layer == "1"
    note = task.note(named(clips))
    assert (note.chance_error, note.num_classes) == (0.5, 5)


def test_the_error_is_that_of_the_frames_of_the_test_split(
    splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    sets = collected(planted("planted"), splits(60))
    task = AbxWithin()
    (outcome, *_) = task.run(sets, ("0", "1", "2"), (0,))
    counts = np.diff(sets.test.offsets).tolist()
    tokens = tokens_of(sets.test.utterances, counts, sets.test.clock, any_context=False)
    expected = abx(sets.test.frames[0], tokens, task.setting)
    assert outcome.errors_U.mean() == pytest.approx(expected.error)
    assert len(outcome.errors_U) == len(expected.pairs)
    assert sets.dev is not None
    counts = np.diff(sets.dev.offsets).tolist()
    tokens = tokens_of(sets.dev.utterances, counts, sets.dev.clock, any_context=False)
    assert outcome.selection_error == pytest.approx(abx(sets.dev.frames[0], tokens, task.setting).error)
    assert outcome.selection_error != pytest.approx(expected.error)


def test_data_without_phones_or_without_other_speakers_are_left_out(
    splits: Callable[..., Splits[tuple[Clip, ...]]],
) -> None:
    utterances = named(splits(60))
    mute = replace(utterances, test=tuple(replace(u, phones=()) for u in utterances.test))
    one_voice = replace(utterances, test=tuple(replace(u, speaker="s") for u in utterances.test))
    assert AbxWithin().note(mute).chance_error is None
    assert AbxWithin().note(one_voice).chance_error == 0.5
    assert AbxAcross().note(one_voice).chance_error is None
    assert "not run" in AbxAcross().note(one_voice).remarks[0]
