from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from ossicle.data.utterance import Phone
from ossicle.probe.collect import Clip, FeatureSet, collect
from ossicle.probe.features import Featurizer
from ossicle.probe.linear import HeadTraining
from ossicle.probe.report import Outcome
from ossicle.probe.tasks import FramePhones, Splits, _Frames, _least_error, drawn_utterances, left_out_tenth

TASK = FramePhones(HeadTraining(epochs=6, batch_frames=128))


def collected(featurizer: Featurizer, clips: Splits[tuple[Clip, ...]]) -> Splits[FeatureSet]:
    return Splits(
        *(found and collect(featurizer, found, keep_frames=True) for found in (clips.train, clips.test, clips.dev))
    )


def named(clips: Splits[tuple[Clip, ...]]) -> Splits:
    parts = (clips.train, clips.test, clips.dev)
    return Splits(*(found and tuple(clip.utterance for clip in found) for found in parts))


def error_of(outcomes: Sequence[Outcome], layer: str) -> float:
    chosen = [o for o in outcomes if o.layer == layer]
    return float(np.mean([o.errors_U.sum() / o.counts_U.sum() for o in chosen]))


def test_the_layer_that_knows_is_found_and_the_others_are_at_chance(
    splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    clips = splits()
    outcomes = list(TASK.run(collected(planted("planted"), clips), ("0", "1", "2"), (0, 1)))
    chance = TASK.note(named(clips)).chance_error
    assert [(o.layer, o.seed) for o in outcomes] == [(x, s) for x in ("0", "1", "2", "weighted") for s in (0, 1)]
    assert error_of(outcomes, "1") < 0.02
    assert error_of(outcomes, "weighted") < 0.05
    assert chance is not None
    assert min(error_of(outcomes, "0"), error_of(outcomes, "2")) > chance - 0.08
    weights = next(o.layer_weights for o in outcomes if o.layer == "weighted")
    assert weights is not None
    assert int(np.argmax(weights)) == 1


def test_without_a_dev_split_a_tenth_of_the_training_utterances_is_kept_to_choose_on(
    splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    for dev in (True, False):
        clips = splits(dev=dev)
        sets = collected(planted("noise", informative=None, num_layers=1), clips)
        (outcome,) = TASK.run(sets, ("0",), (0,))
        keep = drawn_utterances(24, 0, "phone")
        if not dev:
            keep &= ~left_out_tenth(sets.train.utterances)
        assert outcome.num_train == 40 * keep.sum()
        assert TASK.note(named(clips)).selected_on.startswith("dev" if dev else "a tenth")


def test_phones_that_training_lacks_are_named_and_not_counted(
    clip: Callable[..., Clip], planted: Callable[..., Featurizer]
) -> None:
    train = tuple(clip(str(i), "train", i % 4) for i in range(12))
    test = tuple(clip(str(i), "test", i % 4, phones=("_", "a", "ʒ")) for i in range(6))
    note = TASK.note(named(Splits(train, test)))
    assert note.excluded == ("ʒ",)
    assert note.num_classes == 5
    (outcome,) = TASK.run(collected(planted("planted", num_layers=1, informative=0), Splits(train, test)), ("0",), (0,))
    known = sum(4 for found in test for phone in found.utterance.phones if phone.symbol != "ʒ")
    assert int(outcome.counts_U.sum()) == known
    spoken = sum(4 for found in test for phone in found.utterance.phones if phone.symbol == "a")
    assert outcome.speech_counts_U is not None
    assert int(outcome.speech_counts_U.sum()) == spoken


def test_speech_without_timed_phones_is_not_asked_for_them(clip: Callable[..., Clip]) -> None:
    bare = tuple(
        Clip(replace(clip(str(i), "train", 0).utterance, phones=()), np.zeros(9, np.float32)) for i in range(3)
    )
    note = TASK.note(named(Splits(bare, bare)))
    assert note.chance_error is None
    assert "no timed phones" in note.remarks[0]


def test_a_seed_draws_nine_tenths_and_a_hash_a_tenth(clip: Callable[..., Clip]) -> None:
    drawn = [drawn_utterances(100, seed, "phone") for seed in (0, 0, 1)]
    assert [int(keep.sum()) for keep in drawn] == [90, 90, 90]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    utterances = [clip(str(i), "train", 0, frames=4).utterance for i in range(40)]
    left = {u.id for u, out in zip(utterances, left_out_tenth(utterances), strict=True) if out}
    again = utterances[::-1]
    assert len(left) == 4
    assert left == {u.id for u, out in zip(again, left_out_tenth(again), strict=True) if out}


def test_chance_is_to_name_what_training_says_most_among_what_can_be_named(clip: Callable[..., Clip]) -> None:
    train = (replace(clip("0", "train", 0).utterance, phones=(Phone(0, 60, "a"), Phone(60, 100, "b"))),)
    said = (Phone(0, 30, "a"), Phone(30, 100, "b"), Phone(100, 900, "x"))
    note = TASK.note(Splits(train, (replace(train[0], phones=said),)))
    assert note.chance_error == pytest.approx(0.7)  # "a" for all: right in 30 of 100; "x" is not counted


class Sayer:
    """A head that says what it was given."""

    def __init__(self, *said: int) -> None:
        self.said = torch.tensor(said)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.said[x[:, 0].long()]


def test_the_first_head_with_the_least_error_on_the_frames_to_choose_on_is_taken() -> None:
    truth = torch.tensor([0, 1, 2, -1, 0])
    rows = torch.tensor([0, 1, 4])
    frames = _Frames(truth, rows, None, truth, rows, truth, rows, None)  # ty: ignore[invalid-argument-type]
    bad, good = Sayer(0, 0, 2, 0, 1), Sayer(0, 1, 0, 0, 0)
    as_good = Sayer(0, 1, 1, 1, 0)
    x = torch.arange(5.0)[:, None]
    head, error = _least_error(iter([bad, good, as_good]), x, frames)  # ty: ignore[invalid-argument-type]
    assert (head, error) == (good, 0)
    head, error = _least_error(iter([bad]), x, frames)  # ty: ignore[invalid-argument-type]
    assert error == pytest.approx(2 / 3)


def test_what_is_left_out_to_choose_on_has_no_part_in_the_head(
    splits: Callable[..., Splits[tuple[Clip, ...]]], planted: Callable[..., Featurizer]
) -> None:
    sets = collected(planted("p", informative=0, num_layers=1), splits(dev=False))
    task = FramePhones(HeadTraining(epochs=0))  # the discriminant alone: nothing is chosen
    (plain,) = task.run(sets, ("0",), (0,))
    left_out_P = torch.from_numpy(left_out_tenth(sets.train.utterances)[sets.train.owners])
    sets.train.frames[:, left_out_P] *= -1_000
    (other,) = task.run(sets, ("0",), (0,))
    assert other.errors_U.tolist() == plain.errors_U.tolist()
    assert other.selection_error > plain.selection_error
