"""wfcli: fuse trained networks of one architecture into a single student with a weight generator.

The command line is thin; the verbs are plain functions on frozen dataclasses (``wfcli.engine``), the mathematics is in
``wfcli.core``. Nothing is imported here, so ``import wfcli`` and ``wfcli --help`` stay fast.
"""

__version__ = "0.1.0"
