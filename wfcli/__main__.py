"""Run the command line: as ``wfcli``, and as ``python -m wfcli``. Ctrl-C is heeded before anything takes its time."""

from wfcli.core import interrupts


def main() -> None:
    """Heed signals, then load the command line and run it: the entry point of the console script."""
    interrupts.open_streams()
    interrupts.heed()
    from wfcli.cli import main as run

    run()


if __name__ == "__main__":
    main()
