"""Named sessions: idle ones on disk, back when used, and still there after a restart or a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lola_cpp import Model, SessionPool, UsageError


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.default(threads=1)


def ids(pool: SessionPool, name: str, prompt: str = "", count: int = 5) -> list[int]:
    with pool.use(name) as session:
        return [token.id for token in session.generate(prompt, max_tokens=count, stop_at_end=False)]


def test_sessions_beyond_the_budget_go_to_disk_and_continue_as_if_they_had_not(model: Model, tmp_path: Path) -> None:
    alone = {name: model.session() for name in "abcde"}
    pool = SessionPool(model, tmp_path, memory_bytes=2 * model.session_bytes())
    for turn in ("import os\n", "def f(x):\n", "return "):
        for name, session in alone.items():
            wanted = [t.id for t in session.generate(name + turn, max_tokens=5, stop_at_end=False)]
            assert ids(pool, name, name + turn) == wanted
            assert pool.idle_bytes <= 2 * model.session_bytes()
    assert len(list(tmp_path.glob("*.state"))) >= 3
    pool.close()


def test_a_name_finds_its_session_after_a_restart(model: Model, tmp_path: Path) -> None:
    pool = SessionPool(model, tmp_path, memory_bytes=1 << 30)
    ids(pool, "../a/b", "import os\n")
    with pool.use("../a/b") as session:
        wanted = list(session.fork().generate(max_tokens=9))
    pool.close()
    again = SessionPool(model, tmp_path, memory_bytes=0)
    assert "../a/b" in again and "c" not in again
    with again.use("../a/b") as session:
        assert list(session.generate(max_tokens=9)) == wanted
    again.forget("../a/b")
    assert "../a/b" not in again
    again.close()
    assert {path.parent for path in tmp_path.rglob("*")} == {tmp_path}


def test_a_second_owner_of_the_folder_is_refused(model: Model, tmp_path: Path) -> None:
    pool = SessionPool(model, tmp_path, memory_bytes=0)
    code = f"import lola_cpp; lola_cpp.SessionPool(lola_cpp.Model.default(), {str(tmp_path)!r}, memory_bytes=0)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another process has this pool" in other.stderr
    pool.close()


def test_threads_that_want_one_session_take_turns(model: Model, tmp_path: Path) -> None:
    pool = SessionPool(model, tmp_path, memory_bytes=0)

    def append() -> None:
        for _ in range(10):
            with pool.use("one") as session:
                session.append([5, 6, 7])

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pool.use("one") as session:
        assert session.position == 120
    pool.close()


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be killed by a signal")
def test_a_killed_process_loses_nothing_of_a_durable_pool(model: Model, tmp_path: Path) -> None:
    code = f"""
import lola_cpp, os, signal
pool = lola_cpp.SessionPool(lola_cpp.Model.default(threads=1), {str(tmp_path)!r}, memory_bytes=1 << 30, durable=True)
for name in "ab":
    with pool.use(name) as session:
        session.append([5, 6, 7])
(pool.folder / "left.state.1-1.tmp").write_bytes(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code])
    assert killed.returncode == -signal.SIGKILL
    pool = SessionPool(model, tmp_path, memory_bytes=0)
    assert not list(tmp_path.glob("*.tmp"))
    for name in "ab":
        with pool.use(name) as session:
            assert session.position == 3
    pool.close()


def test_a_negative_budget_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="memory_bytes: found -1"):
        SessionPool(model, tmp_path, memory_bytes=-1)
    pool = SessionPool(model, tmp_path, memory_bytes=0, windw_size=3)
    with pytest.raises(TypeError, match="windw_size"), pool.use("a"):
        pass
