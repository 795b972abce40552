"""Every error says what was expected, what arrived and what to do, in at most four lines."""

from __future__ import annotations

import inspect

import pytest

from foveate import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, errors.FoveateError)
]


def example(cls: type[errors.FoveateError]) -> errors.FoveateError:
    if cls is errors.UnknownName:
        return errors.UnknownName("method", "divprun", ["divprune", "tome"])
    if cls is errors.UnsupportedModel:
        return errors.UnsupportedModel("FooForConditionalGeneration", "foo", ["llava", "gemma3"])
    if cls is errors.MissingDependency:
        return errors.MissingDependency("torchvision", "Reading a video", "vision")
    return cls("Expected this; got that.\nDo so.")


@pytest.mark.parametrize("cls", CLASSES)
def test_the_tree_in_the_docstring_names_every_class_and_its_python_base(
    cls: type[errors.FoveateError],
) -> None:
    (line,) = [
        line for line in (errors.__doc__ or "").splitlines() if cls.__name__ in line.split()
    ] or [""]
    if cls is not errors.FoveateError:
        builtin = cls.__mro__[-4] if cls is errors.MissingDependency else cls.__bases__[1]
        assert f"({builtin.__name__})" in line


@pytest.mark.parametrize("cls", CLASSES)
def test_a_message_has_at_most_four_lines_and_arrives_as_written(
    cls: type[errors.FoveateError],
) -> None:
    error = example(cls)
    text = str(error)
    assert text == error.args[0]
    assert 1 <= len(text.splitlines()) <= 4
    assert all(len(line) <= 100 for line in text.splitlines())


def test_no_error_has_the_message_of_no_argument() -> None:
    assert str(errors.FoveateError()) == ""


def test_unknown_name_suggests_the_nearest_and_keeps_the_facts() -> None:
    error = errors.UnknownName("method", "divprun", ["tome", "divprune"])
    assert str(error) == "Unknown method 'divprun'. Did you mean 'divprune'? Known: divprune, tome."
    assert (error.kind, error.name) == ("method", "divprun")
    assert error.possibilities == ["divprune", "tome"]
    assert isinstance(error, KeyError)


def test_unknown_name_far_from_all_suggests_nothing() -> None:
    error = errors.UnknownName("split", "zzz", [])
    assert str(error) == "Unknown split 'zzz'. Known: none."


def test_unknown_name_shows_the_hint_in_place_of_the_list() -> None:
    error = errors.UnknownName("method", "zzz", ["tome"], hint="'foveate list' shows all 1.")
    assert str(error) == "Unknown method 'zzz'. 'foveate list' shows all 1."


def test_unsupported_model_names_what_arrived_and_what_is_supported() -> None:
    error = errors.UnsupportedModel("FooForConditionalGeneration", "foo", ["llava", "gemma3"])
    assert str(error).splitlines() == [
        "No adapter for FooForConditionalGeneration (model_type 'foo').",
        "Supported: gemma3, llava.",
        "Writing one is about 60 lines: docs/adding-a-model.md.",
    ]
    assert (error.model_type, error.supported) == ("foo", ["gemma3", "llava"])


def test_missing_dependency_says_what_to_install() -> None:
    error = errors.MissingDependency("torchvision", "Reading a video", "vision")
    assert str(error).splitlines() == [
        "Reading a video needs the package 'torchvision', which is not installed.",
        "Install it with: pip install 'foveate[vision]'",
    ]
    assert (error.package, error.extra) == ("torchvision", "vision")
    assert isinstance(error, ImportError)
