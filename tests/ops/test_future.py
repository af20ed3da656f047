import pytest
import torch

from ossicle.ops.future import foreseen_scores, other_frames


def test_other_frames_are_never_a_frames_own_and_all_others_alike() -> None:
    draws = torch.Generator().manual_seed(0)
    found_BTN = other_frames(50, 6, num=200, generator=draws)
    own_T1 = torch.arange(6)[:, None]
    assert (found_BTN != own_T1).all()
    for frame in range(6):
        counts = torch.bincount(found_BTN[:, frame].flatten(), minlength=6)
        assert counts[frame] == 0
        others = counts[counts > 0].double()
        assert len(others) == 5
        # 10,000 draws of probability 1/5: four standard deviations are 160
        assert (others - 2000).abs().max() < 160


def test_those_of_all_rows_are_never_a_frames_own_and_all_others_alike() -> None:
    draws = torch.Generator().manual_seed(0)
    found_BTN = other_frames(2, 3, num=10_000, generator=draws, across_rows=True)
    for row in range(2):
        for frame in range(3):
            counts = torch.bincount(found_BTN[row, frame], minlength=6)
            assert counts[3 * row + frame] == 0
            others = counts[counts > 0].double()
            assert len(others) == 5
            assert (others - 2000).abs().max() < 160


def test_a_row_of_one_frame_has_no_other() -> None:
    with pytest.raises(ValueError, match="leave no other"):
        other_frames(2, 1, num=3, generator=torch.Generator())


@pytest.mark.parametrize("across", [False, True])
def test_scores_equal_a_loop_over_rows_contexts_steps_and_negatives(across: bool) -> None:
    torch.manual_seed(0)
    predicted, features = torch.randn(2, 7, 3, 4), torch.randn(2, 7, 4)
    negatives = other_frames(2, 7, num=5, generator=torch.Generator().manual_seed(1), across_rows=across)
    right, wrong = foreseen_scores(predicted, features, negatives, across_rows=across)
    assert [r.shape[1] for r in right] == [6, 5, 4]
    for step in (1, 2, 3):
        for row in range(2):
            for t in range(7 - step):
                prediction = predicted[row, t, step - 1]
                torch.testing.assert_close(right[step - 1][row, t], prediction @ features[row, t + step])
                for n in range(5):
                    place = int(negatives[row, t + step, n])
                    other = features[place // 7, place % 7] if across else features[row, place]
                    torch.testing.assert_close(wrong[step - 1][row, t, n], prediction @ other)


def test_steps_beyond_the_row_are_left_out() -> None:
    negatives = other_frames(1, 3, num=2, generator=torch.Generator())
    right, _ = foreseen_scores(torch.randn(1, 3, 12, 4), torch.randn(1, 3, 4), negatives)
    assert [r.shape[1] for r in right] == [2, 1]
