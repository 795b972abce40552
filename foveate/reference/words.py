"""The words of the reference world: attributes, regions, numerals, and the whole vocabulary."""

from __future__ import annotations

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (244, 140, 20),
    "yellow": (240, 222, 50),
    "green": (40, 160, 60),
    "cyan": (50, 205, 215),
    "blue": (45, 75, 215),
    "purple": (130, 45, 170),
    "pink": (248, 150, 195),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
PATTERNS = ("plain", "striped", "dotted")
TONES = ("light", "dark")
# Rows from the top, columns from the left; one word each, so that every place is one token.
REGIONS = (
    ("northwest", "north", "northeast"),
    ("west", "centre", "east"),
    ("southwest", "south", "southeast"),
)
REGION_WORDS = tuple(word for row in REGIONS for word in row)
NUMERALS = ("zero", "one", "two", "three", "four")
DIGITS = tuple("0123456789")
# Twelve letters that stay apart at the size of one patch.
LETTERS = tuple("acehklmrstxz")
EXTREMES = ("leftmost", "rightmost", "topmost", "bottommost")
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}

PAD, BOS, EOS, UNK, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
USER, ASSISTANT = "user:", "assistant:"
SPECIAL = (PAD, BOS, EOS, UNK, IMAGE)
_PLAIN = (
    "what which where how many is are there the a on in of or and than thing things plate sign "
    "number letter colour shape size pattern shown left right above below larger "
    "describe list from top yes no ? . ,"
).split()
# Which way something goes in a clip, and in which third of it something happens.
MOVES = ("left", "right", "up", "down", "nowhere")
TIMES = ("start", "middle", "end")
VIDEO = "<video>"
# Words that came later stand behind all others: ids are part of every trained model.
_LATER = (
    VIDEO,
    *"that moves move does did go came first before appear leave when".split(),
    *MOVES,
    *TIMES,
)


def vocabulary(clips: bool = True) -> dict[str, int]:
    """Word -> id; special tokens first. Plurals stand beside their shapes ("star", "stars").

    Args:
        clips: with the words about clips. The model `reference` knows none of them; ids are the
            same with and without.
    """
    words = [*SPECIAL, USER, ASSISTANT, *_PLAIN, *COLOURS, *SIZES, *PATTERNS, *TONES]
    for shape in SHAPES:
        words += [shape, plural(shape)]
    words += [*REGION_WORDS, *NUMERALS, *DIGITS, *LETTERS, *EXTREMES, *(_LATER if clips else ())]
    return {word: index for index, word in enumerate(dict.fromkeys(words))}


def plural(shape: str) -> str:
    """The plural of a shape word ("cross" -> "crosses")."""
    return shape + ("es" if shape.endswith("s") else "s")
