"""The catalogue of mutants, and the report of a run against one."""

import ast
from pathlib import Path

import pytest
from click.testing import CliRunner

import hil.mutants
from hil.cli.main import main
from hil.evidence.bundle import VerdictRecord
from hil.labs.under_test import provider_under_test
from hil.mutants.catalogue import Layer, Mutant, mutants
from hil.report.mutants import listing, sight, told
from hil.verdict import Verdict
from hil.winsock.requirements import requirements

UNFENCED = Mutant("Unfenced", Layer.PROVIDER, "Lets a send overtake an RDMA read.", ("SEND-14",), "x:Unfenced")


def record(test: str, verdict: str, *rules: str) -> VerdictRecord:
    return VerdictRecord(test, Verdict(verdict), rules)


def test_every_mutant_breaks_requirements_that_exist() -> None:
    """Two mutants break none: no requirement is about a provider's own records, or about a wire."""
    known = mutants()
    assert {name for name, mutant in known.items() if not mutant.breaks} == {"KeepsOperations", "Denies"}
    assert all(name in requirements() for mutant in known.values() for name in mutant.breaks)


@pytest.mark.parametrize(
    ("module", "bases", "layers"),
    [
        ("providers", {"Provider"}, {Layer.PROVIDER}),
        ("sessions", {"Session", "AddressWatch"}, {Layer.SWITCH}),
        ("wires", {"Forwarder"}, {Layer.WIRE}),
    ],
)
def test_the_catalogue_lists_every_class_and_nothing_else(module: str, bases: set[str], layers: set[Layer]) -> None:
    """The catalogue has each class of the mutants' modules that changes a good one, with its docstring's sentence."""
    text = (Path(str(hil.mutants.__file__)).parent / f"{module}.py").read_text()
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    named = {node.name for node in classes}
    wrong = {
        node.name: ast.get_docstring(node)
        for node in classes
        if {base.id for base in node.bases if isinstance(base, ast.Name)} & (bases | named)
    }
    listed = {name: m.sentence for name, m in mutants().items() if m.layer in layers}
    assert {name: m.home for name, m in mutants().items() if m.layer in layers} == {
        name: f"hil.mutants.{module}:{name}" for name in listed
    }
    assert wrong == listed


def test_the_listing_has_every_mutant() -> None:
    """Each mutant has a line: name, layer, sentence, requirements."""
    lines = listing(mutants().values())
    assert len(lines) == len(mutants())
    assert "NoDreq" in lines[0] and lines[0].endswith("provider  Sends no DREQ when it closes a socket. [CLOSE-35]")


def test_a_mutant_is_found_when_a_failed_test_names_each_of_its_requirements() -> None:
    """The report separates failed tests that name the requirement from other failed tests."""
    seen = sight(UNFENCED, [record("a", "fail", "SEND-14"), record("b", "fail", "RDMA-01"), record("c", "pass")])
    assert (seen.found, seen.named, seen.others, seen.count) == (True, ("a",), ("b",), 3)
    assert told(seen)[1:] == ["  found; 3 tests ran", "  failed     a", "  failed too b"]


def test_a_mutant_that_only_other_tests_notice_is_not_found() -> None:
    """A test that fails for another requirement, or that is invalid, does not find it."""
    seen = sight(UNFENCED, [record("a", "pass", "SEND-14"), record("b", "fail", "RDMA-01"), record("c", "invalid")])
    assert not seen.found
    assert "NOT FOUND: no failed test names SEND-14" in told(seen)[1]
    assert seen.invalid == ("c",)


def test_a_mutant_that_cannot_be_loaded_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing ends with 2 and one line; a run with another provider does not need the mutant."""
    info = tmp_path / "bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hil.mutants]\nX = nosuch:x\n[hil.providers]\nmine = hil.provider.provider:Provider\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mutants.cache_clear()
    provider_under_test.cache_clear()
    try:
        done = CliRunner().invoke(main, ["mutants", "--list"])
        assert done.exit_code == 2 and "mutant X, nosuch:x, of package bad 1.0 cannot be loaded" in done.stderr
        assert provider_under_test("mine").factory == "hil.provider.provider:Provider"
    finally:
        mutants.cache_clear()
        provider_under_test.cache_clear()
