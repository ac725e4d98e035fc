"""Shell completion: the names that fit, without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from wfcli.cli import main
try:
    main()
finally:
    print("torch" in sys.modules, "timm" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("wfcli fu", ["fuse"]),
        ("wfcli fuse --arch vgg19", ["vgg19", "vgg19_bn"]),
        ("wfcli fuse --method task", ["task-arithmetic"]),
        ("wfcli fuse --method au", ["auto"]),
        ("wfcli fuse --generator pretrained:univ", ["pretrained:universal"]),
        ("wfcli fuse --arch nothing", []),
    ],
)
def test_names_are_completed_without_torch(line: str, found: list[str]) -> None:
    number = str(len(line.split()) - 1)
    where = {**os.environ, "COMP_WORDS": line, "COMP_CWORD": number, "_WFCLI_COMPLETE": "complete_bash"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, env=where)
    assert done.stdout.split() == found
    assert done.stderr.split() == ["False", "False"]
