import torch

from ossicle.probe.ctc import BLANK, CTCTraining, collapse, fits, flat_start, phone_errors, train_ctc_head
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
