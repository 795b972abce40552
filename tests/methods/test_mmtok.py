"""MMTok by hand, with temperatures that turn cosines 0 and 1 into weights 1 and 2."""

from __future__ import annotations

import math

import pytest
import torch

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


# Two words, right and up, weigh 1/2 1/4 1/4 and 1/5 2/5 2/5, each halved: 0.35 for token 0, 0.325
# for 1 and 2. The picture's columns are 0.9 and 1.05, divided by 3: 0.05 alpha in favour of 1.
BOTH = rows([1, 0], [0, 1])


def test_question_and_picture_weigh_as_much_as_alpha_says() -> None:
    given = tokens(X, encoder=X, question=BOTH)
    assert MMTok(0.4, TAU, TAU)(given, 1).anchors.tolist() == [0]  # 0.025 beats 0.020
    assert MMTok(0.6, TAU, TAU)(given, 1).anchors.tolist() == [1]  # 0.030 beats 0.025


def test_each_side_has_its_own_temperature() -> None:
    # Half the temperature turns cosine 1 into weight 4: the picture's rows are 2/3 1/6 1/6 and
    # 1/9 4/9 4/9, its columns 8/9 and 19/18, 1/6 apart: 0.48 / 18 = 0.0267 in favour of 1. On
    # the question's side it would be 7/18 to 11/36, 0.083 in favour of 0.
    given = tokens(X, encoder=X, question=BOTH)
    assert MMTok(0.48, TAU, TAU)(given, 1).anchors.tolist() == [0]  # 0.025 beats 0.024
    assert MMTok(0.48, TAU, TAU / 2)(given, 1).anchors.tolist() == [1]  # 0.0267 beats 0.025


def test_words_look_at_projected_tokens_and_patches_at_the_encoder() -> None:
    # "up" is worth 1/5 2/5 2/5 on X. In the encoder 0 and 2 are equal, so each of them covers
    # 2/5 + 2/5 + 1/4 and 1 only 1/4 + 1/4 + 2/5 (the row of 1 is 1/4 1/2 1/4): 1.05 and 0.9.
    encoder = rows([1, 0], [0, 1], [1, 0])
    given = tokens(X, encoder=encoder, question=rows([0, 1]))
    # 0.2 + 1.05/6, 0.4 + 0.9/6, 0.4 + 1.05/6.
    assert MMTok(0.5, TAU, TAU)(given, 1).anchors.tolist() == [2]


def test_what_was_covered_first_stays_covered() -> None:
    # Words x x x y y z; tokens x y x z. Rows: x 2 1 2 1 -> 1/3 1/6 1/3 1/6, y 1/5 2/5 1/5 1/5,
    # z 1/5 1/5 1/5 2/5. Columns: 1.6, 1.5, 1.6, 1.3: 0 is first. Then 1 gains 2 * 1/5, 3 gains
    # 1/5 and 2 nothing: 1. Behind both 3 still gains 1/5 and 2, x again, still nothing; beside 1
    # alone it would gain 3 * 1/6.
    x, y, z = torch.eye(3)
    e = torch.stack([x, y, x, z])
    given = tokens(e, encoder=e, question=torch.stack([x, x, x, y, y, z]))
    assert MMTok(0.0, TAU, TAU)(given, 3).anchors.tolist() == [0, 1, 3]


def test_everything() -> None:
    assert mmtok([1, 0], 3) == [0, 1, 2]


def test_it_needs_a_question() -> None:
    with pytest.raises(StageNotAvailable, match="question"):
        MMTok()(tokens(X, encoder=X), 1)
