"""The provider under test: found by its name, its code packed for the nodes, its settings read."""

import io
import sys
import zipfile
from pathlib import Path

import pytest

from hil.errors import SetupError
from hil.labs.under_test import OWN, provider_under_test, setting

METADATA = "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n"


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a provider, which cannot be imported here."""
    package = tmp_path / "theirs"
    (package / "deep").mkdir(parents=True)
    for name in ("__init__.py", "deep/__init__.py"):
        (package / name).write_text("")
    (package / "deep" / "san.py").write_text("import a_library_that_only_nodes_have\nclass Mine: pass\n")
    (package / "notes.txt").write_text("not code")
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text("[hil.providers]\nmine = theirs.deep.san:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    provider_under_test.cache_clear()
    yield package
    provider_under_test.cache_clear()
    sys.modules.pop("theirs", None)


@pytest.mark.parametrize("name", ["theirs.deep.san:Mine", "mine"])
def test_a_provider_of_another_package_is_packed_as_its_python_files(theirs: Path, name: str) -> None:
    """It is found by its place or its installed name, and not imported on the controller."""
    found = provider_under_test(name)
    assert (str(found), found.factory) == (name, "theirs.deep.san:Mine")
    names = zipfile.ZipFile(io.BytesIO(found.code)).namelist()
    assert sorted(names) == ["theirs/__init__.py", "theirs/deep/__init__.py", "theirs/deep/san.py"]
    assert "theirs.deep" not in sys.modules


def test_the_bench_s_own_providers_need_no_archive() -> None:
    """The default and the mutants are part of the node-side code."""
    assert (provider_under_test("").factory, provider_under_test("").code) == (OWN, b"")
    assert provider_under_test("LeakMr").factory == "hil.mutants.providers:LeakMr"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Nothing", "there is no provider Nothing: write PACKAGE.MODULE:FACTORY"),
        ("Denies", "there is no provider Denies"),
        ("no_such_package.san:Mine", "there is no module no_such_package.san in this environment"),
        ("theirs.other:Mine", "the package theirs has no Python module theirs.other"),
        ("theirs.deep.san:Mine; import os", "there is no provider theirs.deep.san:Mine; import os"),
    ],
)
def test_an_unknown_provider_is_refused(theirs: Path, name: str, reason: str) -> None:
    """The error comes before any node is made, and has advice."""
    with pytest.raises(SetupError) as refused:
        provider_under_test(name)
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cache=false", ("cache", False)),
        ("max_clients=3", ("max_clients", 3)),
        ("connect_timeout_s=1.5", ("connect_timeout_s", 1.5)),
        ("name=plain text", ("name", "plain text")),
        ("list=[1]", ("list", "[1]")),
        ("empty=", ("empty", "")),
    ],
)
def test_a_setting_is_a_number_a_truth_or_a_text(text: str, found: tuple[str, object]) -> None:
    """Values have TOML's form."""
    assert setting(text) == found


@pytest.mark.parametrize("text", ["cache", "=1", "a b=1"])
def test_a_setting_without_a_name_is_refused(text: str) -> None:
    """The error has the required form."""
    with pytest.raises(SetupError, match="write NAME=VALUE"):
        setting(text)
