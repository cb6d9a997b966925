"""The arithmetic of an accuracy matrix, against matrices made by hand."""

import pytest

from benchmarks.runs.accuracies import (
    accuracy_row,
    backward_transfer,
    final_accuracy,
    forgetting,
)

MATRIX = [
    [0.9, None, None],
    [0.95, 0.8, None],
    [0.7, 0.85, 0.6],
]


def test_metrics_of_a_matrix_made_by_hand():
    assert final_accuracy(MATRIX) == pytest.approx((0.7 + 0.85 + 0.6) / 3)
    # Task 1 was at best .95 before the end, task 2 at best .8.
    assert forgetting(MATRIX) == pytest.approx(((0.95 - 0.7) + (0.8 - 0.85)) / 2)
    assert backward_transfer(MATRIX) == pytest.approx(((0.7 - 0.9) + (0.85 - 0.8)) / 2)


def test_forgetting_and_transfer_are_zero_for_a_single_task():
    assert forgetting([[0.9]]) == 0.0
    assert backward_transfer([[0.9]]) == 0.0


def test_forgetting_and_transfer_are_undefined_when_only_the_end_was_measured():
    joint = [[None, None], [0.9, 0.8]]
    assert final_accuracy(joint) == pytest.approx(0.85)
    assert forgetting(joint) is None
    assert backward_transfer(joint) is None


def test_a_missing_final_accuracy_is_an_error():
    with pytest.raises(ValueError, match="last row"):
        final_accuracy([[0.9, None]])


def test_only_per_experience_test_accuracies_enter_a_row():
    metrics = {
        "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000": 0.5,
        "Top1_Acc_Exp/eval_phase/test_stream/Task012/Exp002": 0.25,
        "Top1_Acc_Exp/eval_phase/train_stream/Task001/Exp001": 0.75,
        "Top1_Acc_Stream/eval_phase/test_stream/Task002": 0.375,
    }
    assert accuracy_row(metrics, 3) == [0.5, None, 0.25]
