"""What became of a trial, as a cell of a page whose reasons are numbered below its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    :param word: such as yes, works or refused.
    :param reason: what a user should know.
    """

    word: str
    reason: str = ""

    def said(self, reasons: list[str]) -> str:
        """The word, with the number of its reason if there is one.

        :param reasons: of the page so far, to which a new one is added.

        >>> known = ["it has no head"]
        >>> Outcome("refused", "it is frozen").said(known), Outcome("yes").said(known), known
        ('refused (2)', 'yes', ['it has no head', 'it is frozen'])
        """
        if not self.reason:
            return self.word
        if self.reason not in reasons:
            reasons.append(self.reason)
        return f"{self.word} ({reasons.index(self.reason) + 1})"


def numbered(reasons: Sequence[str]) -> list[str]:
    """A line for each reason.

    :param reasons: in their order.
    """
    return [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
