"""One Weights & Biases run per run of the comparison."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.results import RunKey, RunResult
from benchmarks.streams import Budget

MODES = ("off", "offline", "online")


class Tracker:
    """Logs a run, if asked to.

    :param mode: ``off``, ``offline`` (synchronise later with ``wandb sync``) or ``online``.
    :param folder: wandb puts its files into ``wandb`` in it.
    :param key: which run.
    :param budget: becomes part of the logged configuration.
    """

    def __init__(self, mode: str, folder: Path, key: RunKey, budget: Budget) -> None:
        self.logger: Any | None = None
        self.key = key
        if mode == "off":
            return
        from avalanche_compress import WandBLogger

        self.logger = WandBLogger(
            project_name="avalanche-compress",
            run_name=key.slug,
            save_code=False,
            config={**asdict(key), **asdict(budget)},
            dir=str(folder),
            # wandb's own report would break into the progress display.
            params={"mode": mode, "settings": {"silent": True}},
        )

    def log(self, result: RunResult, archive: Path) -> None:
        """Log the accuracy matrix, the run's numbers and order, and the archive if there is one."""
        if self.logger is None:
            return
        nan = float("nan")
        matrix = [[nan if a is None else a for a in row] for row in result.accuracy_matrix]
        self.logger.log_accuracy_matrix(matrix)
        for name in ("accuracy", "forgetting", "bwt", "stored_bytes", "archive_bytes", "ratio"):
            self.logger.run.summary[name] = getattr(result, name)
        self.logger.run.summary["order"] = result.order
        if archive.is_file():
            self.logger.log_archive(archive, self.key.slug)

    def close(self, failed: bool) -> None:
        """End the run."""
        if self.logger is not None:
            self.logger.finish(1 if failed else 0)
