"""One Weights & Biases run per run of the comparison, one group per grid.

A run has an id that follows from what it is, so whoever goes on with it goes on with its W&B run.
Online, W&B continues the run where it stands; offline, the new folder has all rows of the earlier
one and takes its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from avalanche.evaluation.metric_results import MetricValue
from PIL import Image

from avalanche_compress import AccuracySeries
from benchmarks.runs.accuracies import Row, forgetting, mean_so_far
from benchmarks.runs.results import PAGES, RunKey, RunResult, write_text

TAGS = ("strategy", "stream", "scenario", "inference")
"""Of the configuration, what runs are filtered by."""


class Tracker:
    """Logs a run, if asked to.

    :param mode: ``off``, ``offline`` (synchronise later with ``wandb sync``) or ``online``.
    :param folder: wandb puts its files into ``wandb`` in it.
    :param slug: the run's.
    :param recipe: fingerprint of what its numbers come from.
    :param group: of the grid.
    :param config: the logged configuration.
    :param rows: the file that keeps what is logged, until the run has finished.
    :param host_names: whether Avalanche's names of single experiences are logged, too.
    """

    def __init__(
        self,
        mode: str,
        folder: Path,
        slug: str,
        recipe: str,
        group: str,
        config: Mapping[str, Any],
        rows: Path,
        host_names: bool = False,
    ) -> None:
        self.logger: Any | None = None
        self._series = AccuracySeries()
        self.slug = slug
        self._page = folder / PAGES / f"{slug}.txt"
        if mode == "off":
            return
        from benchmarks.runs.repeating_logger import RepeatingLogger

        self.logger = RepeatingLogger(
            rows=rows,
            project_name="avalanche-compress",
            run_name=slug,
            save_code=False,
            config=dict(config),
            dir=folder,
            host_names=host_names,
            params={
                "mode": mode,
                "id": id_of(slug, recipe),
                "resume": "allow",
                "group": group,
                "job_type": "comparison",
                "tags": [str(config[name]) for name in TAGS if config.get(name)],
                # wandb's own report would break into the progress display.
                "settings": {"silent": True},
            },
        )

    def goes_on(self, finished: int) -> None:
        """Log again what earlier processes have logged and W&B does not have.

        :param finished: how many tasks they have trained.
        """
        if self.logger is not None:
            self.logger.repeat(finished)

    def measured(self, matrix: Sequence[Row]) -> None:
        """Log the accuracies after the newest task as points of series over the tasks.

        :param matrix: a row for each task so far, see :class:`~benchmarks.runs.results.RunResult`.
        """
        task = len(matrix) - 1
        seen = [row[: task + 1] for row in matrix]
        mean = mean_so_far(seen[-1])
        if self.logger is None or mean is None:
            return
        values = {f"accuracy/task_{place:02d}": a for place, a in enumerate(seen[-1])}
        values["accuracy/mean"] = mean
        if None not in seen[-1]:
            values["forgetting/mean"] = forgetting(seen)
        self.logger.step += 1  # a row of its own, also where the networks have no logger
        self.logger.log_metrics(
            [
                MetricValue(self._series, name, value, task)
                for name, value in values.items()
                if value is not None
            ]
        )

    def log(self, result: RunResult, archive: Path, pictures: Sequence[Path]) -> None:
        """Log what a finished run has: its numbers, its pictures and the archive if there is one.

        :param result: the run.
        :param archive: the compressed file, which need not exist.
        :param pictures: files named ``<what it shows>-<slug>.png``.
        """
        if self.logger is None:
            return
        nan = float("nan")
        matrix = [[nan if a is None else a for a in row] for row in result.accuracy_matrix]
        self.logger.log_accuracy_matrix(matrix)
        for name in ("accuracy", "forgetting", "bwt", "stored_bytes", "archive_bytes", "ratio"):
            self.logger.run.summary[name] = getattr(result, name)
        for path in pictures:
            with Image.open(path) as picture:
                shown = path.name[: -len(f"-{self.slug}.png")]
                self.logger.log_single_metric(f"pictures/{shown}", picture, self.logger.step)
        if self.logger.run.url:  # there is none offline
            write_text(self._page, self.logger.run.url)
        if archive.is_file():
            aliases = [f"recipe-{result.recipe}", *(["quick"] if result.quick else [])]
            self.logger.log_archive(archive, self.slug, aliases)

    def close(self, failed: bool) -> None:
        """End the run."""
        if self.logger is not None:
            self.logger.finish(1 if failed else 0)


def id_of(slug: str, recipe: str) -> str:
    """The id of a W&B run, the same whenever the run is started again.

    :param slug: the run's.
    :param recipe: fingerprint of what its numbers come from.

    >>> id_of("split_digits-wsn-seed0", "0123456789ab")
    '3cbaf2bc780433e1'
    """
    return hashlib.sha256(f"{slug} {recipe}".encode()).hexdigest()[:16]


def group_of(runs: Iterable[tuple[RunKey, str]]) -> str:
    """A name for the runs of a grid, the same for more seeds and more orders of it.

    :param runs: which ones, with the fingerprints of their recipes.

    >>> group_of([(RunKey("wsn", "split_digits", seed), "0123456789ab") for seed in range(3)])
    'split_digits-17b6f7a1'
    """
    kinds = {(replace(key, seed=0, order_index=0), recipe) for key, recipe in runs}
    streams = "+".join(sorted({key.stream for key, _ in kinds}))
    ids = sorted(id_of(key.slug, recipe) for key, recipe in kinds)
    return f"{streams[:100]}-{hashlib.sha256(' '.join(ids).encode()).hexdigest()[:8]}"
