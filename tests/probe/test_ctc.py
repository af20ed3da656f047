import math

import pytest
import torch

from ossicle.probe.ctc import (
    BLANK,
    CTCTraining,
    collapse,
    fits,
    flat_start,
    late,
    phone_errors,
    rise_and_fall,
    train_ctc_head,
)
from ossicle.probe.linear import Whitening


def test_a_path_collapses_to_its_string() -> None:
    assert collapse([BLANK, 1, 1, BLANK, 1, 2, 2, BLANK, BLANK, 3]) == [1, 1, 2, 3]
    assert collapse([]) == []
    assert collapse([BLANK, BLANK]) == []


def test_a_string_fits_where_repeats_find_room_for_their_blanks() -> None:
    assert fits([1, 2, 3], 3)
    assert not fits([1, 1, 3], 3)
    assert fits([1, 1, 3], 4)
    assert not fits([], 10)


def test_a_ctc_head_learns_untimed_classes_of_frames() -> None:
    rng = torch.Generator().manual_seed(0)
    means = 4 * torch.randn(5, 12, generator=rng)
    frames, labels = [], []
    for _ in range(60):
        label = (torch.randperm(4, generator=rng) + 1)[:3].tolist()
        path = [cls for cls in label for _ in range(4)]
        frames.append((means[path] + 0.5 * torch.randn(12, 12, generator=rng))[None])
        labels.append(label)
    packed = torch.cat(frames, dim=1)[0]
    whitening = Whitening.fit(packed, torch.zeros(len(packed), dtype=torch.int64), 1, 1e-2)
    training = CTCTraining(epochs=60, batch_utterances=4)
    *_, head = train_ctc_head(frames[:48], labels[:48], 5, whitening=whitening, training=training, seed=0)
    found = [head.decode(x) for x in frames[48:]]
    errors, counts = phone_errors([list(map(str, x)) for x in labels[48:]], [list(map(str, x)) for x in found])
    assert errors.sum() / counts.sum() < 0.05


def test_phone_errors_count_edits_of_each_utterance() -> None:
    references = [["a", "b", "c"], ["tʃ", "a"], ["x"]]
    hypotheses = [["a", "x", "c", "d"], [], ["x"]]
    errors, counts = phone_errors(references, hypotheses)
    assert errors.tolist() == [2, 2, 0]
    assert counts.tolist() == [3, 2, 1]


def test_a_flat_start_beats_chance_before_any_update() -> None:
    rng = torch.Generator().manual_seed(1)
    means = 4 * torch.randn(5, 12, generator=rng)
    labels = [(torch.randperm(4, generator=rng) + 1)[:3].tolist() for _ in range(40)]
    # true spans of 3, 4 and 5 frames, where a flat start takes 4 each
    paths = [[cls for cls, n in zip(label, (3, 4, 5), strict=True) for _ in range(n)] for label in labels]
    frames = [(means[path] + torch.randn(12, 12, generator=rng))[None] for path in paths]
    packed = torch.cat(frames, dim=1)[0]
    whitening = Whitening.fit(packed, torch.zeros(len(packed), dtype=torch.int64), 1, 1e-2)
    weight, bias = flat_start(frames, labels, 5, whitening)
    found = (whitening.apply(packed) @ weight + bias)[:, 1:].argmax(-1) + 1
    assert float((found == torch.tensor(paths).flatten()).float().mean()) > 0.9


def test_the_rate_rises_over_a_tenth_and_falls_to_nothing_and_the_layers_wait_for_a_third() -> None:
    rate, mixing = rise_and_fall(20), late(9)
    assert [rate(step) for step in (0, 1, 2, 11, 20)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])
    assert [mixing(step) for step in range(10)] == pytest.approx([0, 0, 0, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])
    assert all(math.isfinite(few(step)) for few in (rise_and_fall(1), late(1)) for step in (0, 1))


def test_utterances_come_in_an_order_of_their_own_in_each_epoch_and_seed() -> None:
    rng = torch.Generator().manual_seed(0)
    frames = [torch.randn(1, 6, 3, generator=rng) for _ in range(6)]
    labels = [[1, 2]] * 6
    packed = torch.cat(frames, dim=1)[0]
    whitening = Whitening.fit(packed, torch.zeros(len(packed), dtype=torch.int64), 1, 1e-2)
    training = CTCTraining(epochs=2, batch_utterances=1)

    def head(seed: int) -> torch.Tensor:
        *_, last = train_ctc_head(frames, labels, 3, whitening=whitening, training=training, seed=seed)
        return last.weight_DV

    assert torch.equal(head(0), head(0))
    assert not torch.equal(head(0), head(1))
