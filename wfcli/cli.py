"""The command line: its commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import wfcli
from wfcli import commands, terminal
from wfcli.core import interrupts
from wfcli.errors import WfError, out_of_memory, out_of_space

INTERRUPTED = {
    "compare": "the same command with --resume goes on from the last draw",
    "finetune": "the same command with --resume goes on from the last saved step",
    "train-generator": "the same command with --resume goes on from the last saved step",
    "train-teachers": "the same command goes on: the teachers that are done are kept",
}


class Commands(TyperGroup):
    """All commands; their errors end here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except WfError as error:
            terminal.print_error(error)
            raise typer.Exit(1) from None
        except (RuntimeError, MemoryError, OSError) as error:
            told = out_of_space(error) if isinstance(error, OSError) else out_of_memory(error)
            if told is None:
                raise
            terminal.print_error(told)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as error:
            code, said, _ = interrupts.words(error)
            terminal.print_interrupted(said, INTERRUPTED.get(ctx.invoked_subcommand))
            raise typer.Exit(code) from None
        except Exception as error:  # the parser's own; where it comes from depends on the version of typer
            if getattr(error, "option_name", None) != "--offline":
                raise
            place = f"--offline: write it before the command: wfcli --offline {ctx.invoked_subcommand} ..."
            raise typer.BadParameter(place, ctx) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line, to the end of this process."""
    interrupts.heed(next((INTERRUPTED[word] for word in sys.argv[1:] if word in INTERRUPTED), None))
    # MKL's products then have the same last bits on any number of threads; it is asked before torch is loaded.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    try:
        app(prog_name="wfcli")
    except (WfError, OSError) as error:  # of --help and --version, which are no commands
        told = out_of_space(error) if isinstance(error, OSError) else error
        if told is None:
            raise
        terminal.print_error(told)
        sys.exit(1)
    except KeyboardInterrupt as error:
        code, said, hint = interrupts.words(error)
        terminal.print_interrupted(said, hint)
        sys.exit(code)
    finally:
        interrupts.ignore()
        terminal.flush()


def _go_offline(wanted: bool) -> None:
    """Keep the Hub's client, which reads the variable when it is imported, to its cache."""
    if wanted:
        os.environ["HF_HUB_OFFLINE"] = "1"


def _print_version(wanted: bool) -> None:
    if wanted:
        terminal.write(f"wfcli {wfcli.__version__}")
        raise typer.Exit


@app.callback(epilog="Each command has an example: wfcli fuse --help")
def _wfcli(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline", callback=_go_offline, is_eager=True, help="Take what is from the Hub from its cache alone."
        ),
    ] = False,
) -> None:
    """Fuse trained networks of one architecture into a single student, in one pass of a weight generator."""


app.command("fuse")(commands.fuse)
app.command("eval")(commands.evaluate)
# What is too many is refused by the command itself, which knows why.
app.command("compare")(commands.compare)
app.command("finetune", context_settings={"allow_extra_args": True})(commands.finetune)
app.command("train-generator")(commands.train_generator)
app.command("train-teachers")(commands.train_teachers)
app.command("inspect")(commands.inspect_checkpoints)
app.command("push")(commands.push)
app.command("pull")(commands.pull)
app.command("methods")(commands.list_methods)
app.command("list")(commands.list_known)
