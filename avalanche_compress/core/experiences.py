"""What an experience says of its task, in any of Avalanche's kinds of benchmark."""

from __future__ import annotations

from typing import Any

from avalanche_compress.errors import TaskLabelError


def classes_in(experience: Any) -> list[int]:
    """The class numbers of an experience of any of Avalanche's benchmarks, ascending.

    :param experience: old style (a list of classes), new style (a set), or without a timeline (then
        its targets are counted).
    """
    if hasattr(experience, "classes_in_this_experience"):
        found = experience.classes_in_this_experience
    else:
        found = set(experience.dataset.targets)
    return sorted(int(c) for c in found)


def width_of_stream(experience: Any) -> int | None:
    """The highest class number of an experience's stream and one.

    :param experience: of any of Avalanche's benchmarks.
    :return: None if that is not known without reading samples.
    """
    seen = getattr(experience, "classes_seen_so_far", None)
    to_come = getattr(experience, "future_classes", None)
    if seen is not None and to_come is not None:
        return max((int(number) for number in {*seen, *to_come}), default=-1) + 1
    others = getattr(getattr(experience, "origin_stream", None), "exps", None)
    if not isinstance(others, list):  # of a lazy one, the others may not be there yet
        return None
    return max((number for other in others for number in classes_in(other)), default=-1) + 1


def task_labels_of(experience: Any) -> list[int] | None:
    """The task labels of an experience: its own or, where Avalanche drops them, its samples'.

    :param experience: of any of Avalanche's benchmarks; one that was split for validation has lost
        its own.
    :return: each once, ascending; None if there are none.
    """
    labels = getattr(experience, "task_labels", None)
    if labels is None:
        dataset = getattr(experience, "dataset", None)
        labels = getattr(getattr(dataset, "targets_task_labels", None), "uniques", None)
    return None if labels is None else sorted({int(label) for label in labels})


def single_task_label(experience: Any) -> int:
    """The one task label of an experience.

    :param experience: of any of Avalanche's benchmarks.
    :raises TaskLabelError: if it has no label, or several.
    """
    labels = task_labels_of(experience)
    if labels is None:
        raise TaskLabelError(
            "the experience has no task labels, and every task needs one for a sub-network of "
            "its own: build the stream with return_task_id=True, or with with_task_labels(); for a "
            "stream that has none at test either, give the strategy "
            "task_inference='triangular@first'."
        )
    if len(labels) != 1:
        raise TaskLabelError(
            f"the experience has the task labels {labels} and one was expected: give each task "
            "an experience of its own."
        )
    return labels[0]


def position_in_stream(experience: Any) -> int:
    """The number of an experience in its stream, which is its task where labels say nothing.

    :param experience: of any of Avalanche's benchmarks.
    """
    return int(experience.current_experience)
