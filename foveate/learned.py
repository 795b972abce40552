"""What a learned compressor is: a method whose parameters belong to one model.

Its fields are its configuration, as with every method; its weights are an `nn.Module` beside them.
By name alone (`foveate.attach(model, "metacompress", keep=64)`) it finds the weights that are
shipped for that model; others come from `foveate.load(folder_or_hub_id)` or from training.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from foveate import catalog
from foveate.compressor import Compressor
from foveate.errors import SavedFileError
from foveate.fingerprint import of_weights

SHIPPED = Path(__file__).parent / "weights"


@dataclasses.dataclass(frozen=True)
class LearnedCompressor(Compressor):
    """Base of every method with parameters.

    Attributes:
        net: the parameters; None until they are loaded, found or initialised.
        trained_on: fingerprint of the model that they were trained on; None: of no particular
            one, so that any model of the right width takes them.
    """

    net: nn.Module | None = dataclasses.field(
        default=None, kw_only=True, compare=False, repr=False, metadata={"setting": False}
    )
    trained_on: str | None = dataclasses.field(
        default=None, kw_only=True, compare=False, repr=False, metadata={"setting": False}
    )
    trainable: ClassVar[bool] = True

    @abc.abstractmethod
    def build(self, width: int) -> nn.Module:
        """Fresh parameters, drawn from torch's default generator.

        Args:
            width: of the language model's tokens.
        """

    def drawn(self, width: int, seed: int = 0) -> LearnedCompressor:
        """The untrained method for tokens of `width`; the caller's random state is left alone."""
        # On the host, whatever the default device is: the same numbers, one generator to restore.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            net = self.build(width)
        return dataclasses.replace(self, net=net, trained_on=None)

    def initialised(self, model: nn.Module, seed: int = 0) -> LearnedCompressor:
        """The untrained method for a model.

        Args:
            model: the vision-language model.
            seed: of the parameters.
        """
        config: Any = model.config
        return self.drawn(config.get_text_config().hidden_size, seed)

    def fitted(self, model: nn.Module) -> LearnedCompressor:
        """The method with weights for this model: its own, or those that are shipped.

        Raises:
            SavedFileError: it was trained for another model, there are no weights at all, or those
                that are shipped have other settings than were asked for.
        """
        if self.net is not None and self.trained_on is None:
            return self
        here = of_weights(model)
        name = catalog.name_of(self)
        if self.net is None:
            from foveate.saving import load

            found = SHIPPED / name / here
            if not found.is_dir():
                raise SavedFileError(
                    f"{name} has to be trained, and no weights for this model are shipped.\n"
                    f"Train it (foveate train {name} --model ... --data ...), or give what\n"
                    "foveate.load(folder or Hub id) returns."
                )
            shipped = load(found)
            assert isinstance(shipped, type(self))
            if self not in (type(self)(), shipped):  # a bare name takes what there is
                raise SavedFileError(
                    f"The weights of {name} that are shipped for this model have other settings.\n"
                    f"Asked for: {self}.\nShipped: {shipped}.\n"
                    "Take the name alone, or train one with these settings."
                )
            return shipped
        if self.trained_on != here:
            raise SavedFileError(
                f"This {name} was trained for another model: weights {self.trained_on}, here "
                f"{here}.\nAttach it to that model, or train one for this: foveate train {name}."
            )
        return self

    def save_pretrained(self, path: str | Path, *, model: nn.Module) -> Path:
        """`foveate.save` by the name that transformers' users know."""
        return importlib.import_module("foveate.saving").save(self, path, model=model)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> LearnedCompressor:
        """`foveate.load` by the name that transformers' users know, for this method alone.

        Args:
            path: a folder or Hub id.
            options: `model`, `revision` and `token`, as `foveate.load` takes them.

        Raises:
            SavedFileError: another method was saved there, or what `foveate.load` raises it for.
        """
        found = importlib.import_module("foveate.saving").load(path, **options)
        if not isinstance(found, cls):
            raise SavedFileError(
                f"{path} holds a {type(found).__name__}, not a {cls.__name__}.\n"
                "foveate.load reads any method."
            )
        return found

    def module(self, device: torch.device) -> nn.Module:
        """The parameters on a device.

        Raises:
            SavedFileError: there are none.
        """
        if self.net is None:
            raise SavedFileError(
                f"{type(self).__name__} has no weights.\n"
                "Attach it to a model that they are shipped for, load or train them, or start\n"
                "from .initialised(model)."
            )
        return self.net.to(device)
