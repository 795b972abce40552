"""What the Trainer sees: a module whose parameters are the compressor's, around a frozen model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveate.adapters import adapter_for
from foveate.attach import Encoded, Item, Run, attach
from foveate.errors import SavedFileError
from foveate.learned import LearnedCompressor
from foveate.training.batches import Lessons
from foveate.training.losses import Weights, collapse, entropy, prediction

# (lessons, logits at their places, pictures with their P) -> values by name, (b,) each; "loss" is
# what is minimised. One value a dialogue, so that a mean over processes is the mean over dialogues.
Objective = Callable[[Lessons, Tensor, Sequence[Item]], dict[str, Tensor]]


def eq10(weights: Weights) -> Objective:
    """Eq. 10 of MetaCompress: L_pred + alpha_entropy L_entropy + alpha_collapse L_collapse.

    Of each dialogue: the mean divergence over its answers' tokens, and the means over its pictures
    of the two regularisers. (The paper does not say how tokens and dialogues are averaged.)
    """

    def objective(lessons: Lessons, logits: Tensor, items: Sequence[Item]) -> dict[str, Tensor]:
        assert lessons.full is not None
        found = {"prediction": mean_by_row(prediction(lessons.full, logits), lessons)}
        matrices: list[list[Tensor]] = [[] for _ in range(len(lessons))]
        for item in items:
            matrices[item.row].append(item.answers[-1].to_matrix(torch.float32))
        none = logits.new_zeros((), dtype=torch.float32)
        for name, part in (("entropy", entropy), ("collapse", collapse)):
            values = [[part(matrix) for matrix in row] for row in matrices]
            means = [torch.stack(row).mean() if row else none for row in values]
            found[name] = torch.stack(means).to(found["prediction"])
        found["loss"] = (
            found["prediction"]
            + weights.entropy * found["entropy"]
            + weights.collapse * found["collapse"]
        )
        return found

    return objective


def mean_by_row(values: Float[Tensor, " t"], lessons: Lessons) -> Float[Tensor, " b"]:
    """Means over each dialogue's places."""
    sums = values.new_zeros(len(lessons)).index_add(0, lessons.rows, values)
    return sums / torch.bincount(lessons.rows, minlength=len(lessons))


class Student(nn.Module):
    """A learned compressor on a frozen model.

    Its only parameters, and so all that DDP synchronises and a checkpoint holds, are the
    compressor's. Every forward pass happens inside `attached`.

    Args:
        method: with its parameters.
        model: the vision-language model; not a submodule.
        objective: what is minimised.
        options: further ones of `foveate.attach`, like `positions` and `processor`.

    Raises:
        SavedFileError: the method has no parameters.
    """

    def __init__(
        self, method: LearnedCompressor, model: nn.Module, objective: Objective, **options: Any
    ) -> None:
        super().__init__()
        if method.net is None:
            raise SavedFileError(
                f"{type(method).__name__} has no parameters to train.\n"
                "Start from .initialised(model), or from what foveate.load gives."
            )
        self.net = method.net
        # In a tuple, where nn.Module does not look for submodules.
        self._outside = (method, model)
        self.objective, self.options = objective, options
        self._encoded: Encoded | None = None
        self._run: Run | None = None

    @property
    def method(self) -> LearnedCompressor:
        """The compressor."""
        return self._outside[0]

    @property
    def model(self) -> nn.Module:
        """The frozen model."""
        return self._outside[1]

    @contextlib.contextmanager
    def attached(self, lessons: Lessons, keep: int | float) -> Iterator[None]:
        """The compressor on the model for these dialogues, until their backward pass is over."""
        self._encoded = lessons.encoded(self.model)
        try:
            with attach(
                self.model, self.method, keep=keep, encoded=self._encoded, **self.options
            ) as self._run:
                yield
        finally:
            self._encoded = self._run = None

    def forward(self, lessons: Lessons) -> dict[str, Tensor]:
        """Values of the objective by name, (b,) each."""
        assert self._run is not None, "a forward pass happens inside attached()"
        logits = lessons.answer_logits(self.model, self._encoded)
        return self.objective(lessons, logits, self._run.items)


@contextlib.contextmanager
def frozen(model: Any, *, checkpointing: bool = False) -> Iterator[None]:
    """The model in evaluation mode, without gradients for its parameters; as it was afterwards.

    Args:
        model: the vision-language model.
        checkpointing: whether the backward pass computes the decoder layers' insides again.
    """
    was = model.training
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    if checkpointing:
        # Its name depends on the release of transformers.
        on = getattr(model, "activation_checkpointing_enable", None)
        (on or model.gradient_checkpointing_enable)({"use_reentrant": False})
        language = adapter_for(model).language
        # The flags alone: what is inside the layers, dropout among it, stays in evaluation mode.
        for module in (language, *language.modules()):
            if getattr(module, "gradient_checkpointing", False):
                module.training = True
    try:
        yield
    finally:
        if checkpointing:
            off = getattr(model, "activation_checkpointing_disable", None)
            (off or model.gradient_checkpointing_disable)()
        model.train(was)
        for parameter, grad in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(grad)
