"""Pruning by relevance itself: no method, but what one could do that knew the answer beforehand.

The full model answers first; then the tokens that its answer came from are kept, and it is asked
again (arXiv 2506.01097, section 3.2 and Table 1). It costs more than it saves, so it says only what
there is to win by ranking tokens at the input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from foveate import catalog, relevance
from foveate.compressor import Compressor
from foveate.errors import UnknownName
from foveate.evaluation.data import Dialogue
from foveate.evaluation.settings import Keep, Setting
from foveate.evaluation.told import of_pictures
from foveate.mapping import Mapping
from foveate.relevance import Rule

_ATTACHED = "uniform"  # it is attached as this, and told what to keep


@dataclasses.dataclass(frozen=True)
class RelevanceMap(Setting):
    """The tokens most relevant to the full model's own answer; its fields are those of `Rule`.

    At each turn the answer to that turn's question counts; choosing at the first turn, the answer
    to the first question.
    """

    note: ClassVar[str] = "no method; it keeps what the full model's own answer came from."

    @property
    def reads_prompt(self) -> bool:
        """It does: the answer depends on what is asked."""
        return True

    @property
    def field_names(self) -> list[str]:
        """Those of `Rule`."""
        return [field.name for field in dataclasses.fields(Rule)]

    def rule(self) -> Rule:
        """How relevance is computed.

        Raises:
            UnknownName: no such field, or value of one; or a preset was named.
            InputError: a field of another kind than it is.
        """
        given = dict(self.fields)
        for name in given:
            if name not in self.field_names:
                raise UnknownName(f"field of {self.method}", name, self.field_names)
        if self.preset is not None:
            raise UnknownName("preset", self.preset, ())
        catalog.check_kinds(self.method, Rule, given)
        return Rule(**given)

    def resolved(self) -> tuple[Compressor, Keep | None]:
        """What is attached, and the budget."""
        self.rule()
        return catalog.make(_ATTACHED), self.keep

    @property
    def options(self) -> dict[str, Any]:
        """What `foveate.attach` takes of it."""
        return {"method": _ATTACHED, "keep": self.keep}

    def told(
        self,
        model: Any,
        dialogues: Sequence[Dialogue],
        turn: int,
        inputs: Callable[[], dict[str, Any]],
        max_new_tokens: int,
    ) -> list[list[list[Mapping]]]:
        """What to keep of the pictures of each dialogue; the full model answers for it."""
        keep = self.keep
        assert keep is not None
        given = inputs()
        maps = relevance.explain(model, given, rule=self.rule(), max_new_tokens=max_new_tokens)
        in_order = iter(maps)
        return of_pictures(
            model, given, dialogues, lambda *_: relevance.strongest(next(in_order), keep)
        )
