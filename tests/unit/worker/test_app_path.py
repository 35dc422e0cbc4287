"""Where a runner finds the worker's app."""

from types import ModuleType

import pytest

from orchestrator.worker.launch import find_app_path


class App:
    """Any app; its main is the name that its author gave it."""

    def __init__(self, main: str) -> None:
        self.main = main


def module(name: str, **attributes: object) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(attributes)
    return made


def test_the_module_that_the_app_is_named_after_goes_first() -> None:
    app = App("shop")
    modules = {"a": module("a", imported=app), "shop.celery": module("shop.celery", app=app), "shop": module("shop")}
    assert find_app_path(app, modules) == "shop.celery:app"


def test_where_celery_itself_keeps_the_default_app_is_not_where_it_is_made() -> None:
    app = App("anything")
    modules = {"celery._state": module("celery._state", default_app=app), "mine": module("mine", application=app)}
    assert find_app_path(app, modules) == "mine:application"


def test_an_app_that_no_module_holds_cannot_be_imported_by_a_runner() -> None:
    app = App("lost")
    with pytest.raises(LookupError, match="not an attribute"):
        find_app_path(app, {"celery._state": module("celery._state", default_app=app), "mine": module("mine")})
