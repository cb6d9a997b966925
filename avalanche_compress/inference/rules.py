"""All rules by name."""

from __future__ import annotations

from avalanche_compress.errors import TaskInferenceError, nearest
from avalanche_compress.inference.energy import EnergyRule
from avalanche_compress.inference.entropy import EntropyRule
from avalanche_compress.inference.gaussian import GaussianRule
from avalanche_compress.inference.prototype import PrototypeRule
from avalanche_compress.inference.ridge import RidgeRule
from avalanche_compress.inference.rule import Rule
from avalanche_compress.inference.triangular import TriangularRule

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (EntropyRule, EnergyRule, PrototypeRule, GaussianRule, TriangularRule, RidgeRule)
}
BATCH = "_batch"
DEFAULT = "triangular@first"
"""The choice of held-out data on the streams of RESULTS.md."""


def rule_of(name: str) -> Rule:
    """A rule with its default options.

    :param name: one of :data:`RULES`.
    :raises TaskInferenceError: if there is none of that name.

    >>> rule_of("triangular").name
    'triangular'
    """
    if name not in RULES:
        known = [*RULES, *(rule + BATCH for rule in RULES)]
        raise TaskInferenceError(
            f"there is no rule {name!r} to infer tasks by{nearest(name, known)}: give one of "
            f"{', '.join(known)}, or one with the layer to read features of, 'triangular@first'."
        )
    return RULES[name]()
