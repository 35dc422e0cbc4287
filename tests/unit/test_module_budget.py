"""Modules and functions stay small enough to be read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("orchestrator", "tasks", "beat", "cli", "tests/support")
MODULE_LINES = 400
FUNCTION_LINES = 40

MODULES = sorted(path for source in SOURCES for path in (ROOT / source).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_its_functions_stay_within_the_budget(path: Path) -> None:
    """400 lines a module, 40 lines a function (its docstring not counted), no exceptions."""
    source = path.read_text()
    too_long = [f"{path.name}: {lines} lines" for lines in [len(source.splitlines())] if lines > MODULE_LINES]
    too_long += [
        f"{path.name}:{function.lineno} {function.name}: {lines} lines"
        for function in functions(ast.parse(source))
        if (lines := lines_of(function)) > FUNCTION_LINES
    ]
    assert not too_long


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function, nested ones and methods included."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the length from ``def`` to the last line, without the docstring."""
    assert function.end_lineno is not None
    length = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        length -= docstring.end_lineno - docstring.lineno + 1
    return length


def test_the_budget_sees_a_function_that_is_too_long() -> None:
    """The check counts what it should: a function of 41 lines is over, its docstring is not counted."""
    body = "\n".join(f"    x{n} = {n}" for n in range(FUNCTION_LINES))
    (long,) = functions(ast.parse(f'def f():\n    """Say\n    more."""\n{body}\n'))
    assert lines_of(long) == FUNCTION_LINES + 1
