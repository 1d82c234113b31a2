"""A token of a duplicated socket can be used by one process, once."""

import os
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hil.provider import tokens
from hil.provider.tokens import BadToken


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep all tokens in a folder of this test."""
    folder = tmp_path / "san-provider"
    monkeypatch.setattr(tokens, "FOLDER", folder)
    return folder


def made(pid: int, state: dict[str, Any]) -> int:
    """A token that process ``pid`` can claim."""
    token, file = tokens.reserve()
    with file:
        tokens.fill(file, pid, state)
    return token


def test_a_token_gives_the_state_once() -> None:
    """A second claim of a token raises BadToken, before and after the first one is settled."""
    token = made(os.getpid(), {"family": 2})
    assert 0 < token < 1 << 32
    assert tokens.claim(token) == {"family": 2}
    for settle in (tokens.settle, tokens.put_back, tokens.settle):
        with pytest.raises(BadToken, match="names no duplicated socket"):
            tokens.claim(token)
        settle(token)


def test_a_token_that_was_put_back_is_good_again() -> None:
    """A token that was put back, even twice, can be claimed again."""
    token = made(os.getpid(), {"family": 2})
    tokens.claim(token)
    tokens.put_back(token)
    tokens.put_back(token)
    assert tokens.claim(token) == {"family": 2}


def test_a_reserved_token_cannot_be_claimed(own_folder: Path) -> None:
    """A reserved token cannot be claimed until its file is filled, and an early claim does not use it up."""
    token, file = tokens.reserve()
    with file:
        with pytest.raises(BadToken):
            tokens.claim(token)
        tokens.fill(file, os.getpid(), {"family": 2})
    assert tokens.claim(token) == {"family": 2}


def test_a_process_without_descriptors_does_not_lose_the_token() -> None:
    """A claim that cannot open the file raises OSError, and the token can be claimed afterwards."""
    token = made(os.getpid(), {"family": 2})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            tokens.claim(token)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert tokens.claim(token) == {"family": 2}


def test_another_processs_token_is_refused_and_stays() -> None:
    """A claim of another process's token raises BadToken, and does not use it up."""
    token = made(os.getppid(), {})
    for _ in range(2):
        with pytest.raises(BadToken, match=f"is for process {os.getppid()}"):
            tokens.claim(token)


def test_a_revoked_token_is_gone() -> None:
    """A revoked token, even if revoked twice, cannot be claimed."""
    token = made(os.getpid(), {})
    tokens.revoke(token)
    tokens.revoke(token)
    with pytest.raises(BadToken):
        tokens.claim(token)


@pytest.mark.parametrize("content", ["", "{", "[]", "1", '{"pid": 1}', '{"state": {}}'])
def test_a_damaged_token_is_refused(own_folder: Path, content: str) -> None:
    """A damaged token file raises BadToken."""
    token = made(os.getpid(), {})
    (own_folder / f"{token:08x}").write_text(content)
    with pytest.raises(BadToken):
        tokens.claim(token)


def test_a_folder_that_others_may_write_is_not_trusted(own_folder: Path) -> None:
    """A token folder that other users can write raises BadToken, because its tokens may be forged."""
    token = made(os.getpid(), {})
    own_folder.chmod(0o777)
    for use in (tokens.reserve, lambda: tokens.claim(token)):
        with pytest.raises(BadToken, match="is not a private folder"):
            use()


def test_nothing_is_left_behind_the_last_token(own_folder: Path) -> None:
    """The folder exists as long as it has tokens."""
    taken, revoked = made(os.getpid(), {}), made(os.getpid(), {})
    tokens.claim(taken)
    tokens.settle(taken)
    assert own_folder.exists()
    tokens.revoke(revoked)
    assert not own_folder.exists()
    tokens.claim(made(os.getpid(), {}))


def test_tokens_of_ended_processes_are_forgotten(own_folder: Path) -> None:
    """Only tokens of ended processes are removed, and the folder goes with the last token."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, living = made(ended.pid, {}), made(os.getpid(), {"family": 2})
    unfilled, file = tokens.reserve()
    tokens.forget_orphans()
    assert {path.name for path in own_folder.iterdir()} == {f"{living:08x}", f"{unfilled:08x}"}
    file.close()
    os.utime(own_folder / f"{unfilled:08x}", (0, 0))
    assert tokens.claim(living) == {"family": 2}
    tokens.settle(living)
    tokens.forget_orphans()
    assert not own_folder.exists()
    tokens.forget_orphans()
    with pytest.raises(BadToken):
        tokens.claim(dead)
