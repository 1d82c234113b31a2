"""Kernels for User-Mode Linux: which source is taken, by what key it is kept, and what is told when it cannot be."""

from pathlib import Path

import pytest

from hil.cache import seal
from hil.errors import KernelError
from hil.labs.soft import umlkernel
from hil.labs.soft.umlkernel import Kernel, NoSuchSource, is_tree, kernel_for, key_of

NEWEST, OTHER = "trixie-backports/linux-source-7.2", "trixie-backports/linux-source"


def tree(folder: Path) -> Path:
    """Something that looks like a kernel tree."""
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
    """The sources that a build was begun for; none can be had but ``OTHER``."""
    begun: list[str] = []

    def build(source: str, folder: Path) -> Kernel:
        begun.append(source)
        if source != OTHER:
            raise NoSuchSource(f"there is no {source}")
        return Kernel(folder / "linux", folder / "keep-open.so", folder / "modules.cpio", "7.3.0", source)

    monkeypatch.setattr(umlkernel, "_built", build)
    return begun


def test_a_source_is_a_package_of_a_suite_or_a_tree() -> None:
    """SUITE/PACKAGE as Debian names its kernel sources; everything else is a path."""
    assert not any(map(is_tree, (NEWEST, OTHER, "bookworm/linux-source-6.1")))
    assert all(map(is_tree, ("/src/linux", "./linux", "../linux-source-7.2", "trixie/linux-image-amd64")))


def test_a_cached_kernel_is_taken_before_one_is_built(tmp_path: Path, builds: list[str]) -> None:
    """Also when it is the second choice: nothing is fetched as long as one of the sources was built."""
    folder = kept(tmp_path, OTHER)
    found = kernel_for((NEWEST, OTHER), tmp_path)
    assert (found.program, found.release, found.source, builds) == (folder / "linux", "7.2.0", OTHER, [])


def test_the_next_source_is_tried_when_a_suite_has_no_such_package(
    tmp_path: Path, builds: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said which one is missing; the last one's absence is an error."""
    assert kernel_for((NEWEST, OTHER), tmp_path).source == OTHER
    assert builds == [NEWEST, OTHER]
    assert f"there is no {NEWEST}; trying the next source" in capsys.readouterr().err
    with pytest.raises(KernelError, match="there is no"):
        kernel_for((NEWEST,), tmp_path)


def test_a_damaged_kernel_is_built_again(tmp_path: Path, builds: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A byte that changed is noticed before the kernel runs, and said."""
    (kept(tmp_path, OTHER) / "linux").write_bytes(b"LINUX")
    assert kernel_for((OTHER,), tmp_path).release == "7.3.0"
    assert builds == [OTHER] and "is damaged (linux has the wrong content)" in capsys.readouterr().err


def test_a_tree_that_changed_has_another_key(tmp_path: Path) -> None:
    """So its kernel is built again; one that only has another commit's history is the same."""
    source = str(tree(tmp_path / "linux"))
    before = key_of(source)
    (tmp_path / "linux" / ".git").mkdir()
    (tmp_path / "linux" / ".git" / "HEAD").write_text("ref")
    assert key_of(source) == before
    (tmp_path / "linux" / "arch" / "um" / "Makefile").write_text("# another\n")
    assert key_of(source) != before


def test_what_is_no_tree_is_told(tmp_path: Path) -> None:
    """The message names what is missing in it."""
    with pytest.raises(KernelError, match="no kernel tree with User-Mode Linux: it has no arch/um/Makefile"):
        key_of(str(tmp_path))


def test_a_path_that_kbuild_refuses_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    """A blank or a colon in the cache's path: the message names the setting."""
    with pytest.raises(KernelError, match="a blank or a colon is in the path; name another in HIL_CACHE"):
        kernel_for((NEWEST,), tmp_path / "my cache")


def test_a_path_without_a_tree_gives_way_to_the_next_source(tmp_path: Path, builds: list[str]) -> None:
    """As a package does that no suite has."""
    assert kernel_for((str(tmp_path / "none"), OTHER), tmp_path).source == OTHER
    assert builds[-1] == OTHER


def test_missing_tools_are_told_by_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is fetched, with the command that installs them."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="apt-get install gcc make flex bison bc dpkg xz-utils"):
        kernel_for((NEWEST,), tmp_path)
