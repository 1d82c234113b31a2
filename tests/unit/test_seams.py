"""What installed packages add is found by its name, and what is wrong with it is told with the package's own name."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from hil.errors import SeamError
from hil.seams import Seam, UnknownName, members


class Greeter(Protocol):
    """Says something."""

    language: str

    def greet(self, name: str) -> str:
        """A greeting."""


class English:
    """The one that is there."""

    language = "en"

    def greet(self, name: str) -> str:
        return f"Hello {name}"


def greeters() -> Seam[Greeter]:
    return Seam("hil.test-greeters", "greeter", Greeter, {"english": f"{__name__}:English"})


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package: a module's text, and its entry points by name."""

    def made(package: str, text: str, **points: str) -> None:
        (tmp_path / f"{package}.py").write_text(text)
        folder = tmp_path / f"{package}-1.5.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        lines = [f"{name} = {package}:{attribute}" for name, attribute in points.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[hil.test-greeters]", *lines, ""]))
        monkeypatch.delitem(sys.modules, package, raising=False)

    monkeypatch.syspath_prepend(tmp_path)
    return made


GOOD = """
class Polish:
    language = "pl"
    def greet(self, name):
        return "Witaj " + name
shared = Polish()
"""


def test_what_the_bench_has_itself_is_there_without_a_package() -> None:
    """It is loaded from its module when it is asked for."""
    assert greeters().names() == ["english"]
    assert greeters().load("english").greet("you") == "Hello you"


@pytest.mark.parametrize("attribute", ["Polish", "shared"])
def test_a_package_adds_an_object_or_a_class(install: Install, attribute: str) -> None:
    """A class is called without arguments; the same object comes every time."""
    install("polite", GOOD, polish=attribute)
    seam = greeters()
    assert seam.names() == ["english", "polish"]
    assert seam.load("polish").greet("you") == "Witaj you"
    assert seam.load("polish") is seam.load("polish")


def test_nothing_is_imported_before_it_is_asked_for(install: Install) -> None:
    """A package that breaks at import is no trouble to whoever does not use it."""
    install("broken_greeter", "raise OSError('no dictionary')", polish="Polish")
    assert greeters().names() == ["english", "polish"]
    assert greeters().load("english").language == "en"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise OSError('no dictionary')", "cannot be loaded: OSError: no dictionary"),
        ("", "cannot be loaded: AttributeError"),
        ("class Polish:\n    def __init__(self, mood): pass\n", "cannot be loaded: TypeError"),
        ("class Polish:\n    language = 'pl'\n", "is none: it lacks greet"),
        ("Polish = 3", "is none: it lacks language, greet"),
    ],
)
def test_what_is_wrong_names_its_package(install: Install, text: str, said: str) -> None:
    """An error at import, a name that is not there, a class that wants arguments, and something else altogether."""
    install("rude", text, polish="Polish")
    with pytest.raises(SeamError) as caught:
        greeters().load("polish")
    assert str(caught.value).startswith("greeter polish, rude:Polish, of package rude 1.5 ")
    assert said in str(caught.value)


def test_an_unknown_name_is_told_with_those_there_are(install: Install) -> None:
    """And with the way in which another is added."""
    install("polite", GOOD, polish="Polish")
    with pytest.raises(UnknownName) as caught:
        greeters().load("dutch")
    assert str(caught.value) == (
        "'dutch' is not one of english, polish; a package can add a greeter (entry points, group hil.test-greeters)"
    )


def test_a_name_that_two_have_is_refused(install: Install) -> None:
    """Neither the bench's own nor a package's is replaced in silence."""
    install("polite", GOOD, english="Polish")
    with pytest.raises(SeamError, match=r"is there more than once: polite:Polish of package polite 1\.5, .*English"):
        greeters().load("english")


def test_members_are_what_the_protocol_asks_for() -> None:
    """Attributes and methods, those of a base as well, and nothing private."""

    class Louder(Greeter, Protocol):
        def shout(self) -> str: ...

    assert set(members(Louder)) == {"language", "greet", "shout"}
