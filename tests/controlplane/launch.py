"""Starts a process in a group of its own that a killed test cannot orphan, or that is meant to stay.

This file runs itself between fork and exec (``python launch.py … -- COMMAND``) since ``preexec_fn`` is not safe in a
program with threads: it ties the process to its parent and writes the pid file, both before the command can do harm.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1


def command(argv: Sequence[str], *, tether: bool, pid_file: Path | None = None) -> list[str]:
    """Return the argv that runs ``argv``; with ``tether`` it is killed when the thread that starts it ends (Linux)."""
    parent = str(os.getpid()) if tether and sys.platform == "linux" else "0"
    return [sys.executable, "-I", "-S", __file__, parent, str(pid_file or ""), *argv]


def start(
    argv: Sequence[str], log: Path, *, tether: bool, pid_file: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Return the started process, the leader of its own session, with its output appended to ``log``."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command(argv, tether=tether, pid_file=pid_file),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=None if env is None else dict(env),
        )


def birth(pid: int) -> str | None:
    """Return what tells this process from a later one with the same pid, or None if it is gone or a zombie."""
    if sys.platform == "linux":
        try:
            # The command's name stands in parentheses and may itself hold spaces and parentheses.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # A killed process is a zombie first by its leader: while threads are left, it still holds its port.
        return None if fields[0] == "Z" and int(fields[17]) <= 1 else fields[19]
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = shown.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def running(pid_file: Path) -> int | None:
    """Return the pid in the file if that very process still runs; a stale file, or a pid used anew, gives None."""
    try:
        pid, _, born = pid_file.read_text().strip().partition(" ")
    except FileNotFoundError:
        return None
    return int(pid) if pid.isdigit() and born and birth(int(pid)) == born else None


def kill_group(pid: int) -> None:
    """Kill the process and all of its group at once: what they hold is thrown away with their folder."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS answers "not permitted" for a group of zombies
        return


def main(parent: str, pid_file: str, *argv: str) -> None:
    """Tie this process to its parent, write its pid file, and become the command."""
    if parent != "0":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # the parent died before the line above took hold
            sys.exit(1)
    if pid_file:
        half = Path(f"{pid_file}.{os.getpid()}")
        half.write_text(f"{os.getpid()} {birth(os.getpid())}\n")
        half.replace(pid_file)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(*sys.argv[1:])
