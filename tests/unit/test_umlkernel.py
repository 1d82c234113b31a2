"""Kernels for User-Mode Linux: the choice of the source, the key in the cache, and the error messages."""

from pathlib import Path

import pytest

from hil.cache import seal
from hil.errors import KernelError
from hil.labs.soft import umlkernel
from hil.labs.soft.umlkernel import Kernel, NoSuchSource, is_tree, kernel_for, key_of

NEWEST, OTHER = "trixie-backports/linux-source-7.2", "trixie-backports/linux-source"


def tree(folder: Path) -> Path:
    """A folder that looks like a kernel tree."""
    (folder / "arch" / "um").mkdir(parents=True)
    (folder / "arch" / "um" / "Makefile").write_text("# um\n")
    return folder


def kept(cache: Path, source: str) -> Path:
    """A kernel of ``source`` in the cache, as a build leaves it."""
    made = cache / "made"
    made.mkdir(parents=True)
    for name in ("linux", "keep-open.so", "modules.cpio"):
        (made / name).write_bytes(name.encode())
    folder = cache / "kernels" / key_of(source)
    folder.parent.mkdir(exist_ok=True)
    seal(made, folder, {"release": "7.2.0", "source": source})
    return folder


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources for which a build was begun. Only ``OTHER`` is available."""
    begun: list[str] = []

    def build(source: str, folder: Path) -> Kernel:
        begun.append(source)
        if source != OTHER:
            raise NoSuchSource(f"there is no {source}")
        return Kernel(folder / "linux", folder / "keep-open.so", folder / "modules.cpio", "7.3.0", source)

    monkeypatch.setattr(umlkernel, "_built", build)
    return begun


def test_a_source_is_a_package_of_a_suite_or_a_tree() -> None:
    """SUITE/PACKAGE has the form of Debian's kernel sources. Any other text is a path."""
    assert not any(map(is_tree, (NEWEST, OTHER, "bookworm/linux-source-6.1")))
    assert all(map(is_tree, ("/src/linux", "./linux", "../linux-source-7.2", "trixie/linux-image-amd64")))


def test_a_cached_kernel_is_taken_before_one_is_built(tmp_path: Path, builds: list[str]) -> None:
    """Even the second choice is taken from the cache. If one source is cached, no package is fetched."""
    folder = kept(tmp_path, OTHER)
    found = kernel_for((NEWEST, OTHER), tmp_path)
    assert (found.program, found.release, found.source, builds) == (folder / "linux", "7.2.0", OTHER, [])


def test_the_next_source_is_tried_when_a_suite_has_no_such_package(
    tmp_path: Path, builds: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The missing package is named. If the last source is missing, it is an error."""
    assert kernel_for((NEWEST, OTHER), tmp_path).source == OTHER
    assert builds == [NEWEST, OTHER]
    assert f"there is no {NEWEST}; trying the next source" in capsys.readouterr().err
    with pytest.raises(KernelError, match="there is no"):
        kernel_for((NEWEST,), tmp_path)


def test_a_damaged_kernel_is_built_again(tmp_path: Path, builds: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A changed byte is noticed and reported before the kernel runs."""
    (kept(tmp_path, OTHER) / "linux").write_bytes(b"LINUX")
    assert kernel_for((OTHER,), tmp_path).release == "7.3.0"
    assert builds == [OTHER] and "is damaged (linux has the wrong content)" in capsys.readouterr().err


def test_a_tree_that_changed_has_another_key(tmp_path: Path) -> None:
    """So its kernel is built again. A tree that differs only in .git has the same key."""
    source = str(tree(tmp_path / "linux"))
    before = key_of(source)
    (tmp_path / "linux" / ".git").mkdir()
    (tmp_path / "linux" / ".git" / "HEAD").write_text("ref")
    assert key_of(source) == before
    (tmp_path / "linux" / "arch" / "um" / "Makefile").write_text("# another\n")
    assert key_of(source) != before


def test_a_folder_that_is_no_kernel_tree_is_refused(tmp_path: Path) -> None:
    """The message names the missing file."""
    with pytest.raises(KernelError, match="no kernel tree with User-Mode Linux: it has no arch/um/Makefile"):
        key_of(str(tmp_path))


def test_a_path_that_kbuild_refuses_is_reported_before_a_fetch(tmp_path: Path) -> None:
    """The message about a blank or a colon in the cache's path names the setting."""
    with pytest.raises(KernelError, match="a blank or a colon is in the path; name another in HIL_CACHE"):
        kernel_for((NEWEST,), tmp_path / "my cache")


def test_the_next_source_is_tried_when_a_path_has_no_tree(tmp_path: Path, builds: list[str]) -> None:
    """It is treated like a package that no suite has."""
    assert kernel_for((str(tmp_path / "none"), OTHER), tmp_path).source == OTHER
    assert builds[-1] == OTHER


def test_missing_tools_are_reported_by_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes before a fetch, and has the command that installs them."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="apt-get install gcc make flex bison bc dpkg xz-utils"):
        kernel_for((NEWEST,), tmp_path)
