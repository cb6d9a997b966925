"""Avalanche's plugins and metrics that cannot work with sub-networks that are frozen, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from avalanche.evaluation.metrics.mac import MACPluginMetric
from avalanche.training.plugins import (
    AGEMPlugin,
    BiCPlugin,
    CoPEPlugin,
    CurrentDataFeCAMUpdate,
    CurrentDataNCMUpdate,
    CWRStarPlugin,
    EWCPlugin,
    FeatureDistillationPlugin,
    FeCAMOracle,
    FromScratchTrainingPlugin,
    GDumbPlugin,
    GEMPlugin,
    GenerativeReplayPlugin,
    GSS_greedyPlugin,
    LFLPlugin,
    LwFPlugin,
    MASPlugin,
    MemoryFeCAMUpdate,
    MemoryNCMUpdate,
    MIRPlugin,
    NCMOracle,
    RARPlugin,
    ReplayPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)

from avalanche_compress.errors import TaskInferenceError, UnsupportedPluginError

LEAVE_OUT = "leave it out (no finished task is forgotten anyway)"

REFUSED: dict[tuple[type, ...], str] = {
    (EWCPlugin, MASPlugin, RWalkPlugin, SynapticIntelligencePlugin): (
        "holds parameters near their values of earlier tasks, but those are frozen elsewhere and "
        f"all parameters are the open task's own, which it would only hinder: {LEAVE_OUT}"
    ),
    (FeatureDistillationPlugin, LFLPlugin, LwFPlugin): (
        "distils what earlier tasks compute, which does not change and has no gradient: "
        f"{LEAVE_OUT}"
    ),
    (AGEMPlugin, GEMPlugin, GSS_greedyPlugin): (
        "compares gradients with those of earlier tasks' losses, and frozen weights have none: "
        f"{LEAVE_OUT}"
    ),
    (MIRPlugin, RARPlugin): (
        "looks for samples of earlier tasks that training harms, and it harms none: "
        f"{LEAVE_OUT}, or take ReplayPlugin"
    ),
    (GenerativeReplayPlugin,): (
        "labels what it generates with the task in training, which would learn samples of earlier "
        f"tasks: {LEAVE_OUT}"
    ),
    (CWRStarPlugin, FromScratchTrainingPlugin, GDumbPlugin): (
        "overwrites the model's parameters when an experience begins or ends, but the strategy "
        "says what a task starts from and keeps: leave it out"
    ),
    (
        BiCPlugin,
        CoPEPlugin,
        CurrentDataFeCAMUpdate,
        CurrentDataNCMUpdate,
        FeCAMOracle,
        MemoryFeCAMUpdate,
        MemoryNCMUpdate,
        NCMOracle,
    ): (
        "classifies all tasks by one set of features, and each task has features and a head of its "
        "own: leave it out, and give task_inference= where test samples have no task labels"
    ),
    (MACPluginMetric,): (
        "runs the network without a task, which counts the layers once for each finished one: take "
        "avalanche.evaluation.metrics.MAC on network.materialise(task)"
    ),
}
"""Why not, by class; each completes a sentence that begins with the plugin's name."""


def check_plugins(plugins: Iterable[Any], inferring: bool) -> None:
    """Refuse what would fail later, or do nothing or harm without a word.

    :param plugins: the user's plugins, criterion and metrics.
    :param inferring: whether training takes all samples of an experience for one task's.
    :raises UnsupportedPluginError: if one cannot work with frozen sub-networks.
    :raises TaskInferenceError: if one replays samples, whose tasks nobody would know.
    """
    for plugin in plugins:
        for classes, reason in REFUSED.items():
            if isinstance(plugin, classes):
                raise UnsupportedPluginError(f"{type(plugin).__name__} {reason}.")
        if inferring and isinstance(plugin, ReplayPlugin):
            raise TaskInferenceError(
                f"{type(plugin).__name__} replays samples of earlier tasks, and with "
                "task_inference= all samples in training count as those of the task in training, "
                "which would learn them: leave it out (no finished task is forgotten anyway), or "
                "give a stream with task labels without task_inference=."
            )
