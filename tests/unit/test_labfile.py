"""Lab files are typed; every mistake is reported at once, with its place."""

from pathlib import Path

import pytest

from hil.errors import LabFileError
from hil.nodes.labfile import LabFile, read_lab_file

LABS = sorted((Path(__file__).parents[2] / "lab").glob("*.toml"))


@pytest.mark.parametrize("path", LABS, ids=lambda p: p.name)
def test_every_example_is_good(path: Path) -> None:
    """The lab files we ship can be read."""
    assert read_lab_file(path).lab.kind == "soft-pair"


def test_an_empty_file_is_the_default_lab(tmp_path: Path) -> None:
    """Every key has a default."""
    (tmp_path / "lab.toml").write_text("")
    assert read_lab_file(tmp_path / "lab.toml") == LabFile()


def test_all_mistakes_are_reported_at_once_each_with_its_place(tmp_path: Path) -> None:
    """Wrong types, unknown keys, unknown choices, numbers out of range: one message names them all."""
    path = tmp_path / "lab.toml"
    path.write_text('[lab]\nname=3\nfoo=1\n[guest]\nsuite="sid"\nmemory_mib=12\n[link]\nmtu=true\n[zzz]\n')
    with pytest.raises(LabFileError) as caught:
        read_lab_file(path)
    lines = str(caught.value).splitlines()
    assert lines == [
        f"{path}: [lab.name] 3 is not a string",
        f"{path}: [lab] unknown foo; known are name, kind",
        f"{path}: [guest.suite] 'sid' is not one of trixie, bookworm",
        f"{path}: [guest.memory_mib] 12 is out of range: 384 to 16384",
        f"{path}: [link.mtu] True is not an integer",
        f"{path}: [top level] unknown zzz; known are lab, guest, link",
    ]


@pytest.mark.parametrize("data", [b"[", b"\xff\xfe", b"lab = 3", b"[lab]\nname = [", b"[[lab]]", b"a=" + b"[" * 100000])
def test_foreign_bytes_are_a_lab_file_error(tmp_path: Path, data: bytes) -> None:
    """Whatever the file holds, the answer is a LabFileError that names the file."""
    (tmp_path / "lab.toml").write_bytes(data)
    with pytest.raises(LabFileError, match=r"lab\.toml"):
        read_lab_file(tmp_path / "lab.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that is not there is said to be so."""
    with pytest.raises(LabFileError, match="No such file"):
        read_lab_file(tmp_path / "none.toml")
