"""Damaged archives: each loads to exactly what it was, or says what is wrong with it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

import torch

from avalanche_compress import (
    ArchiveError,
    TaskInferenceError,
    TaskNetwork,
    infer,
    load_archive,
    save_archive,
)
from avalanche_compress.codec import CorruptStreamError
from benchmarks.stress.cases import EXACT, OTHER, REFUSED, Case, Target
from benchmarks.stress.examples import EXAMPLES, build_model, inputs, train
from benchmarks.stress.mutations import MUTATIONS, mutate


def examples() -> dict[str, bytes]:
    """Archives of all kinds."""
    return {name: train(name) for name in EXAMPLES}


def digests_of(archives: dict[str, bytes]) -> dict[str, str]:
    """What valid files hold.

    :param archives: by name.
    """
    digests = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name, data in archives.items():
            path = Path(folder) / name
            path.write_bytes(data)
            digests[name] = digest_of(load_archive(path, partial(build_model, name)))
    return digests


def digest_of(network: TaskNetwork) -> str:
    """All that a network holds and computes, as one number.

    :param network: loaded.
    """
    digest = hashlib.sha256(repr((network.classes, network.max_class_label)).encode())
    for name, tensor in network.static_tensors().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    for task in network.tasks:
        kept = [store.committed(task) for store in network.weight_stores]
        kept += network.private.committed(task)
        kept += network.statistics.get(task, {}).values()
        kept.append(network(inputs(), task))
        for tensor in kept:
            digest.update(tensor.detach().numpy().tobytes())
        for store in network.weight_stores:
            digest.update(repr((store.stored_values(task), store.value_bits(task))).encode())
    return digest.hexdigest()


def outcome(case: Case, digests: Mapping[str, str], folder: Path) -> str:
    """Load a damaged archive, compute with it, write it again.

    :param case: it.
    :param digests: what each valid file holds.
    :param folder: for the file.
    """
    path = folder / "archive"
    path.write_bytes(case.data)
    expected = {digests[case.example], digests[case.other]}
    build = partial(build_model, case.example)
    try:
        network = load_archive(path, build)
    except ArchiveError as error:
        return REFUSED if str(path) in str(error) else f"an error that names no file: {error}"
    sound = _is_sound(network)
    with torch.no_grad():
        try:
            for task in Random(case.number).sample(network.tasks, len(network.tasks)):
                network.activate(task)
            digest = digest_of(network)
        except CorruptStreamError as error:
            return f"sound at once, and then: {error}" if sound else REFUSED
        if network.statistics:
            with suppress(TaskInferenceError):
                infer(network, inputs(), "prototype")
        if network.tasks:
            network.materialise(network.tasks[-1], form="auto")(inputs())
    save_archive(network, path)
    if digest_of(load_archive(path, build)) != digest:
        return "written again, it held something else"
    if digest in expected:  # of a splice, the beginning may be empty
        return EXACT
    return OTHER if case.mutation.startswith("sealed") else "silently other weights"


def _is_sound(network: TaskNetwork) -> bool:
    try:
        network.verify()
    except CorruptStreamError:
        return False
    return True


ARCHIVES = Target("archives", MUTATIONS, mutate, examples, digests_of, outcome)
