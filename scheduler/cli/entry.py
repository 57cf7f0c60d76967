"""Where `anygpu` begins: an agent, which runs on every node, comes without what the other commands import."""

import io
import os
import sys
import traceback

import typer

from scheduler import errors


def main() -> None:
    """Run the command of the command line."""
    if sys.argv[1:2] == ["agent"]:
        from scheduler.cli import agent

        return run(agent.app)
    from scheduler.cli import main as every

    return run(every.app)


def run(app: typer.Typer) -> None:
    """Run the command; every refusal is one line on stderr and an exit status, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character gets its code
    try:
        app()
    except errors.AnygpuError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - the last resort
        if os.environ.get("ANYGPU_DEBUG"):
            traceback.print_exc()
        sys.stderr.write(f"error: {type(error).__name__}: {error} (a defect of anygpu; ANYGPU_DEBUG=1 shows more)\n")
        sys.exit(2)
