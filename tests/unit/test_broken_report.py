"""What is said of providers that are broken on purpose."""

from typing import Any

from hil.report.mutants import BrokenProvider, broken_providers, sight, told
from hil.winsock.requirements import requirements

UNFENCED = BrokenProvider("Unfenced", "Lets a send overtake an RDMA read: breaks SEND-14.", ("SEND-14",))


def record(test: str, verdict: str, *rules: str) -> dict[str, Any]:
    return {"test": test, "verdict": verdict, "requirements": list(rules), "links": []}


def test_every_broken_provider_names_requirements_that_exist() -> None:
    """Each docstring names what it breaks, but for the one that breaks no rule of the contract."""
    known = broken_providers()
    assert {name for name, provider in known.items() if not provider.breaks} == {"KeepsOperations"}
    assert all(rule in requirements() for provider in known.values() for rule in provider.breaks)


def test_a_broken_provider_is_found_when_a_failed_test_names_each_of_its_rules() -> None:
    """Failed tests that name the rule are told apart from those that do not."""
    seen = sight(UNFENCED, [record("a", "fail", "SEND-14"), record("b", "fail", "RDMA-01"), record("c", "pass")])
    assert (seen.found, seen.named, seen.others, seen.count) == (True, ("a",), ("b",), 3)
    assert told(seen)[1:] == ["  found; 3 tests ran", "  failed     a", "  failed too b"]


def test_a_broken_provider_that_only_other_tests_notice_is_not_found() -> None:
    """A test that fails and names another rule, or that could not judge, is no sight of it."""
    seen = sight(UNFENCED, [record("a", "pass", "SEND-14"), record("b", "fail", "RDMA-01"), record("c", "invalid")])
    assert not seen.found
    assert "NOT FOUND: no failed test names SEND-14" in told(seen)[1]
    assert seen.invalid == ("c",)
