"""A W&B logger whose rows outlive its process.

wandb streams rows every fifteen seconds, and writes an offline file block by block, so a process
that is killed takes its last rows with it (wandb 0.31). Here each row is written to a file of its
own first. Who goes on with the run logs again what W&B does not have, and leaves out what the
training does a second time, which gives the same numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_compress import WandBLogger


class RepeatingLogger(WandBLogger):
    """Log a run that may be killed and gone on with.

    Offline, where nothing can be looked up, the folders of earlier processes go, as all of their
    rows are in the new one.

    :param rows: the file of the rows, gone on with if it is there.
    :param kwargs: as for ``WandBLogger``; ``dir`` and ``params["id"]`` are needed.
    """

    def __init__(self, *, rows: Path, dir: Path, params: Mapping[str, Any], **kwargs: Any) -> None:
        self._file = rows
        self._kept: dict[int, dict[str, Any]] = {}
        self._least_step = 0
        if params["mode"] == "offline":
            for earlier in dir.glob(f"wandb/offline-run-*-{params['id']}"):
                shutil.rmtree(earlier)
        super().__init__(dir=str(dir), params=dict(params), **kwargs)

    def repeat(self, finished: int) -> None:
        """Log what earlier processes have logged and W&B does not have.

        :param finished: how many tasks the training need not do again.
        """
        arrived, self._first_step = self._first_step, 0
        step = finished
        for line in self._lines():
            if "defined" in line:
                super()._define(*line["defined"])
                continue
            row = line["row"]
            self._kept.setdefault(line["step"], {}).update(row)
            if line["step"] >= arrived:
                super()._send(row, line["step"])
            if "accuracy/mean" in row and row["task"] < finished:
                step = line["step"]
        self.exp_count = finished
        self.step = max(self.step, step)
        self._least_step = max([arrived, *self._kept])

    def _send(self, row: dict[str, Any], step: int) -> None:
        if all(isinstance(value, (int, float, str)) for value in row.values()):
            kept = self._kept.setdefault(step, {})
            if row.keys() <= kept.keys():
                return
            kept.update(row)
            self._write({"step": step, "row": row})
        super()._send(row, max(step, self._least_step))

    def _define(self, name: str, axis: str | None, summarised: Sequence[str]) -> None:
        known = self._defined
        super()._define(name, axis, summarised)
        if self._defined != known:
            self._write({"defined": [name, axis, list(summarised)]})

    def _write(self, entry: dict[str, Any]) -> None:
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _lines(self) -> Iterator[Any]:
        if not self._file.exists():
            return
        for line in self._file.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # not the half of one that was being written
                yield json.loads(line)
