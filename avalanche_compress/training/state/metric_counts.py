"""What an evaluator's metrics have counted so far, without the metrics themselves."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from avalanche.evaluation import PluginMetric
from torch import Tensor

from avalanche_compress.errors import TrainingStateError
from avalanche_compress.training.state.tree import is_plain

_METRICS = ("avalanche.evaluation.", "avalanche_compress.metrics.")
_RESULTS = ("last_metric_results", "all_metric_results")


def evaluator_counts(evaluator: Any) -> dict[str, Any]:
    """The results that an evaluator has gathered, and the counts in its metrics.

    Numbers and tensors only: pictures and whatever else a metric holds are left out.

    :param evaluator: an ``EvaluationPlugin``.
    :return: a tree.
    """
    results = {
        name: {
            key: value for key, value in getattr(evaluator, name).items() if is_plain({key: value})
        }
        for name in _RESULTS
    }
    return {**results, "metrics": [_counts(metric, set()) for metric in evaluator.metrics]}


def restore_evaluator(evaluator: Any, counts: dict[str, Any]) -> None:
    """Let an evaluator go on counting.

    :param evaluator: with the same metrics.
    :param counts: of :func:`evaluator_counts`.
    """
    for name in _RESULTS:
        counted = getattr(evaluator, name)
        counted.clear()
        counted.update(counts[name])
    for metric, state in zip(evaluator.metrics, counts["metrics"]):
        _restored(metric, state)


def check_counts(evaluator: Any, counts: dict[str, Any]) -> None:
    """Refuse counts that the metrics cannot go on with.

    :param evaluator: with the metrics.
    :param counts: out of a file.
    :raises TrainingStateError: naming the metric.
    """
    if not isinstance(counts, dict) or counts.keys() != {*_RESULTS, "metrics"}:
        raise TrainingStateError("it has no counts of the metrics.")
    last, series = (counts[name] for name in _RESULTS)
    if not all(isinstance(name, str) for name in (*last, *series)) or not all(
        len(steps) == len(values) and isinstance(steps, list) and isinstance(values, list)
        for steps, values in series.values()
    ):
        raise TrainingStateError("its results are no results of metrics.")
    metrics = counts["metrics"]
    if not isinstance(metrics, list) or len(metrics) != len(evaluator.metrics):
        raise TrainingStateError("it has the counts of other metrics.")
    for metric, saved in zip(evaluator.metrics, metrics):
        if not _is_like(metric, saved):
            raise TrainingStateError(f"its counts of {type(metric).__name__} are of another kind.")


def _is_like(value: Any, counts: Any) -> bool:
    """Whether a metric, or a part of one, can go on with counts.

    :param value: the part.
    :param counts: of :func:`_counts`, out of a file.
    """
    if counts is None:
        return True
    (kind, content), ours = counts, _counts(value, set())
    if ours is None or (isinstance(value, dict) and kind == "plain"):
        return _is_well_formed(counts) and (ours is None or isinstance(content, dict))
    if isinstance(value, dict):
        return kind == "dict" and all(_is_like_entry(value, *entry) for entry in content.items())
    if kind != ours[0]:
        return False
    if kind == "plain":
        return _is_same_kind(value, content)
    if kind == "sequence":
        return len(value) == len(content) and all(map(_is_like, value, content))
    return content.keys() <= vars(value).keys() and all(
        _is_like(getattr(value, name), part) for name, part in content.items()
    )


def _is_like_entry(entries: dict[Any, Any], key: Any, counts: Any) -> bool:
    if key in entries:
        return _is_like(entries[key], counts)
    make = entries.default_factory if isinstance(entries, defaultdict) else None
    return _is_well_formed(counts) if make is None else _is_like(make(), counts)


def _is_well_formed(counts: Any) -> bool:
    kind, content = counts
    if kind == "sequence":
        return isinstance(content, list) and all(
            part is None or _is_well_formed(part) for part in content
        )
    if kind in ("dict", "metric"):
        return isinstance(content, dict) and all(map(_is_well_formed, content.values()))
    return bool(kind == "plain")


def _is_same_kind(ours: Any, theirs: Any) -> bool:
    """Whether a plain value may stand for another; a number may be a tensor of no dimensions."""
    if ours is None:
        return True
    if isinstance(ours, (bool, str)):
        return type(ours) is type(theirs)
    if isinstance(ours, (int, float, Tensor)):
        number = isinstance(theirs, (int, float)) and not isinstance(theirs, bool)
        return number or isinstance(theirs, Tensor)
    return isinstance(theirs, (list, tuple) if isinstance(ours, (list, tuple)) else type(ours))


def _counts(value: Any, seen: set[int]) -> Any:
    """A value as a tree ``(kind, content)``; None for what is left out.

    :param seen: ids of the metrics on the way, each of which is taken once.
    """
    if is_plain(value):
        return "plain", value
    if isinstance(value, dict):
        entries = {key: _counts(entry, seen) for key, entry in value.items() if is_plain({key: 0})}
        return "dict", {key: entry for key, entry in entries.items() if entry is not None}
    if isinstance(value, (list, tuple)):
        return "sequence", [_counts(entry, seen) for entry in value]
    if not _is_metric(value) or id(value) in seen:
        return None
    seen.add(id(value))
    attributes = {
        name: _counts(entry, seen) for name, entry in getattr(value, "__dict__", {}).items()
    }
    return "metric", {name: entry for name, entry in attributes.items() if entry is not None}


def _restored(value: Any, state: Any) -> Any:
    """The value with its counts as in the tree, in place where it is a metric or dictionary."""
    if state is None:
        return value
    kind, content = state
    if kind == "plain":
        if isinstance(value, dict):  # which may be one that makes its missing entries
            value.clear()
            value.update(content)
            return value
        return content
    if kind == "dict" and isinstance(value, dict):
        for key in [key for key in value if key not in content and is_plain({key: 0})]:
            del value[key]
        for key, entry in content.items():
            if key in value or isinstance(value, defaultdict):
                value[key] = _restored(value[key], entry)
    elif kind == "sequence" and isinstance(value, (list, tuple)) and len(value) == len(content):
        return type(value)([_restored(entry, part) for entry, part in zip(value, content)])
    elif kind == "metric" and _is_metric(value):
        for name, entry in content.items():
            setattr(value, name, _restored(getattr(value, name, None), entry))
    return value  # what a metric has made only in training is its own to make again


def _is_metric(value: Any) -> bool:
    return isinstance(value, PluginMetric) or type(value).__module__.startswith(_METRICS)
