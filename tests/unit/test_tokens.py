"""A token of a duplicated socket is for one process, once."""

import os
from pathlib import Path

import pytest

from hil.provider import tokens
from hil.provider.tokens import BadToken


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_a_token_gives_the_state_once() -> None:
    """The second claim finds nothing."""
    token = tokens.make(os.getpid(), {"family": 2})
    assert 0 < token < 1 << 32
    assert tokens.claim(token) == {"family": 2}
    with pytest.raises(BadToken, match="names no duplicated socket"):
        tokens.claim(token)


def test_another_processs_token_is_refused_and_stays() -> None:
    """Who presents it wrongly does not use it up."""
    token = tokens.make(os.getppid(), {})
    for _ in range(2):
        with pytest.raises(BadToken, match=f"is for process {os.getppid()}"):
            tokens.claim(token)


def test_a_revoked_token_is_gone() -> None:
    """Also when revoked twice."""
    token = tokens.make(os.getpid(), {})
    tokens.revoke(token)
    tokens.revoke(token)
    with pytest.raises(BadToken):
        tokens.claim(token)


@pytest.mark.parametrize("content", ["", "{", "[]", "1", '{"pid": 1}', '{"state": {}}'])
def test_a_damaged_token_is_refused(content: str) -> None:
    """A file that is no token raises nothing but BadToken."""
    token = tokens.make(os.getpid(), {})
    (tokens.folder() / f"{token:08x}").write_text(content)
    with pytest.raises(BadToken):
        tokens.claim(token)


def test_a_folder_that_others_may_write_is_not_trusted(own_folder: Path) -> None:
    """Somebody else could have put tokens there."""
    (own_folder / f"san-provider-{os.geteuid()}").mkdir(mode=0o777)
    (own_folder / f"san-provider-{os.geteuid()}").chmod(0o777)
    with pytest.raises(BadToken, match="is not a private folder"):
        tokens.make(os.getpid(), {})
