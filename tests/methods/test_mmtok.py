"""MMTok by hand, with temperatures that turn cosines 0 and 1 into weights 1 and 2."""

from __future__ import annotations

import math

import pytest

from foveate.errors import StageNotAvailable
from foveate.methods.mmtok import MMTok
from tests.methods.given import rows, tokens

TAU = 1 / math.log(2)  # exp(cos / TAU) = 2 ** cos
X = rows([1, 0], [0, 1], [0, 1])
# Picture: row 0 weighs 2 1 1 -> 1/2 1/4 1/4; rows 1 and 2 weigh 1 2 2 -> 1/5 2/5 2/5. Each is
# divided by n = 3 and multiplied by alpha = 1/2:
#   row 0      1/12   1/24   1/24
#   row 1, 2   1/30   1/15   1/15


def mmtok(question: list[float], keep: int, alpha: float = 0.5) -> list[int]:
    given = tokens(X, encoder=X, question=rows(question))
    return MMTok(alpha, TAU, TAU)(given, keep).anchors.tolist()


def test_by_hand() -> None:
    # "right": question 1/2 1/4 1/4. Column sums: 0.5 + 1/12 + 2/30 = 0.65, 0.25 + 1/24 + 2/15.
    assert mmtok([1, 0], 1) == [0]
    # Behind 0 only rows 1 and 2 gain: 1/15 - 1/30 each, the same for 1 and 2: the lower.
    assert mmtok([1, 0], 2) == [0, 1]
    # "up": question 1/5 2/5 2/5. Column 0: 0.2 + 0.15 = 0.35; 1 and 2: 0.4 + 0.175 = 0.575.
    assert mmtok([0, 1], 1) == [1]


def test_the_second_choice_covers_what_the_first_does_not() -> None:
    # After 1, token 2 gains nothing at all; 0 gains 1/12 - 1/24 in row 0.
    assert mmtok([0, 1], 2) == [0, 1]
    # Only the question counts with alpha 0: nothing is gained behind 1, the lowest is taken.
    assert mmtok([0, 1], 2, alpha=0.0) == [0, 1]


def test_everything() -> None:
    assert mmtok([1, 0], 3) == [0, 1, 2]


def test_it_needs_a_question() -> None:
    with pytest.raises(StageNotAvailable, match="question"):
        MMTok()(tokens(X, encoder=X), 1)
