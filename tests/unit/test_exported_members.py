"""The public surface: each listed name exists, is typed and documented, and there are no others."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = ("hil", "hil.testing")


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_there_once(name: str) -> None:
    """The list has no name twice, and each name can be imported."""
    module = importlib.import_module(name)
    assert sorted(set(module.__all__)) == dir(module) and len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None


@pytest.mark.parametrize("name", MODULES)
def test_type_checkers_see_the_same_names(name: str) -> None:
    """Names that are loaded on first use are imported for type checkers, each from its own module."""
    module = importlib.import_module(name)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in ast.walk(guarded)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == module._HOME_OF
    assert set(module.__all__) - {"__version__"} == set(seen)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_class_and_function_has_a_docstring(name: str) -> None:
    """The docstring is its own, not inherited."""
    module = importlib.import_module(name)
    public = {n: getattr(module, n) for n in module.__all__}
    silent = [n for n, made in public.items() if callable(made) and not vars(made).get("__doc__", made.__doc__)]
    assert not silent


@pytest.mark.parametrize("name", MODULES)
def test_a_name_that_is_not_public_is_refused(name: str) -> None:
    """It raises AttributeError, as in every module."""
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        importlib.import_module(name).nothing  # noqa: B018


def test_importing_the_package_loads_nothing_else() -> None:
    """A node lacks the bench's libraries, and a project that does not use the bench must not load them."""
    program = (
        "import sys, hil, hil.testing, hil.testing.plugin; print([m for m in sys.modules if m.startswith('hil.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert loaded == {"hil.testing", "hil.testing.plugin", "hil.testing.options"}
