"""Write pretrained/index.json anew, from the folders beside it and the committed results in examples/results/.

The scripts that ship a generator write its entry themselves.
"""

from __future__ import annotations

import ship_specialised
import ship_universal

from wfcli.core.pretrained import Pretrained, write_entry


def entries() -> list[Pretrained]:
    """Return the entries of all generators that are shipped."""
    return [ship_universal.entry(), *(ship_specialised.entry(place) for place in ship_specialised.NAMES)]


def main() -> None:
    """Write the index."""
    for entry in entries():
        write_entry(entry, entry.path.parent)
        print(f"{entry.name}: {len(entry.results)} results, {', '.join(entry.sha256)}")


if __name__ == "__main__":
    main()
