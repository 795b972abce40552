"""Methods by name: what is listed exists, what does not is suggested, a clash is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import foveate
from foveate import catalog
from foveate.compressor import Compressor, Stage
from foveate.errors import FoveateError, InputError, UnknownName

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Pretends that other packages are installed which offer these methods."""

    def pretend(**points: str) -> None:
        entries = [EntryPoint(name, value, catalog.GROUP) for name, value in points.items()]
        monkeypatch.setattr(catalog, "entry_points", lambda group: entries)
        catalog.table.cache_clear()

    yield pretend
    monkeypatch.undo()
    catalog.table.cache_clear()


@pytest.mark.parametrize("name", catalog.BUILT_IN)
def test_every_name_leads_to_a_method(name: str) -> None:
    cls = catalog.method_class(name)
    assert issubclass(cls, Compressor)
    assert dataclasses.is_dataclass(cls)
    assert isinstance(cls.stage, Stage)
    assert catalog.name_of(cls) == name
    assert catalog.name_of(catalog.make(name)) == name


def test_the_table_and_the_names_are_sorted() -> None:
    assert list(catalog.BUILT_IN) == sorted(catalog.BUILT_IN)
    assert catalog.names() == sorted(catalog.names())


def test_an_unknown_method_is_suggested() -> None:
    with pytest.raises(UnknownName) as caught:
        catalog.method_class("divprun")
    count = len(catalog.table())
    assert str(caught.value) == (
        f"Unknown method 'divprun'. Did you mean 'divprune'? 'foveate list' shows all {count}."
    )
    assert caught.value.possibilities == catalog.names()


def test_an_unknown_field_is_suggested(install: Install) -> None:
    install(first="tests.test_compressor:First")
    with pytest.raises(UnknownName, match=r"Unknown field of first 'layr'. Did you mean 'layer'\?"):
        catalog.make("first", layr=3)


@pytest.mark.parametrize(
    ("name", "field", "value", "says"),
    [
        ("cover", "merge", "False", "true or false"),
        ("cover", "merge", 1, "true or false"),
        ("fastv", "layer", 2.0, "a whole number"),
        ("fastv", "layer", True, "a whole number"),
        ("seek", "focus", float("nan"), "a number"),
        ("mmtok", "alpha", "much", "a number"),
        ("relevance", "scaling", 3, "a word"),
        ("visionzip/fastv", "fastv.layer", "two", "a whole number"),
    ],
)
def test_a_field_of_another_kind_is_refused(name: str, field: str, value: Any, says: str) -> None:
    with pytest.raises(
        InputError, match=rf"{field.rpartition('.')[2]} of \w+ is {says}( or null)?; got"
    ):
        catalog.make(name, **{field: value})


def test_a_method_from_another_package_is_found(install: Install) -> None:
    install(first="tests.test_compressor:First")
    assert "first" in catalog.names()
    method = catalog.make("first", layer=7)
    assert method.layers == (7,)
    assert catalog.name_of(method) == "first"


@pytest.mark.parametrize("name", ["visionzip", "tome"])
def test_a_name_that_is_taken_is_an_error(install: Install, name: str) -> None:
    install(**{name: "other.package:Other"})
    with pytest.raises(FoveateError) as caught:
        catalog.table()
    assert str(caught.value).splitlines() == [
        f"Two packages offer a method named {name!r}: {catalog.BUILT_IN[name]} and "
        "other.package:Other.",
        "Uninstall one of them, or ask its author to rename it.",
    ]


def test_the_same_entry_twice_is_no_clash(install: Install) -> None:
    install(tome=catalog.BUILT_IN["tome"])
    assert catalog.names() == sorted(catalog.BUILT_IN)


def test_a_method_that_is_not_catalogued_goes_by_its_class_name() -> None:
    class Mine(Compressor):
        stage = Stage.INPUT

    assert catalog.name_of(Mine) == "Mine"


def test_a_folder_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    foveate.save(catalog.make("random", seed=1), tmp_path)
    assert catalog.make(str(tmp_path)) == catalog.make("random", seed=1)
    assert catalog.make(str(tmp_path)) is catalog.make(str(tmp_path))
    foveate.save(catalog.make("random", seed=2), tmp_path)
    assert catalog.make(str(tmp_path)) == catalog.make("random", seed=2)
