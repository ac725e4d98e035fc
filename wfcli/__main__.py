"""Run the command line as ``python -m wfcli``."""

from wfcli.cli import main

if __name__ == "__main__":
    main()
