"""The `anygpu` command, also as `kubectl anygpu`."""

import io
import os
import sys
import traceback

import typer

from scheduler import errors
from scheduler.cli import agent, demo, explain, fit, inventory, place, serve

app = typer.Typer(
    name="anygpu",
    help="Ask for a GPU by what the model needs: an NVIDIA or AMD GPU, the image that runs on it, and why.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("place")(place.command)
app.command("explain")(explain.command)
app.command("fit")(fit.command)
app.command("nodes")(inventory.nodes)
app.command("skus")(inventory.skus)
app.command("serve")(serve.command)
app.command("agent")(agent.command)
app.command("demo")(demo.command)


def main() -> None:
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
