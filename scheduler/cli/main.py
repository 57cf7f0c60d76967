"""The `anygpu` command, also as `kubectl anygpu`."""

import typer

from scheduler.cli import agent, crds, demo, entry, explain, fit, inventory, place, serve

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
app.command("crds")(crds.command)
app.command("serve")(serve.command)
app.command("agent")(agent.command)
app.command("demo")(demo.command)


def main() -> None:
    """Run the command as `entry.run` does."""
    entry.run(app)
