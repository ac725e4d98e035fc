"""The class names that timm's config.json beside weights on the Hub gives, for files that do not name theirs."""

from __future__ import annotations

from wfcli.core.checkpoint import Checkpoint
from wfcli.core.hub import HubFile, fetch_beside
from wfcli.core.hub_names import parse_hub_name
from wfcli.core.sources import Source
from wfcli.engine.provenance import class_names


def take_labels(source: Source, checkpoint: Checkpoint, num_classes: int) -> None:
    """Let a checkpoint of the Hub know the classes of its head from the config.json at its commit, where that tells.

    What wfcli has written into the file comes first; then nothing is fetched.

    Raises:
        SourceError: the Hub does not answer as it should.
    """
    if source.revision is None or not source.text.startswith("hf:") or class_names(checkpoint) is not None:
        return
    from wfcli.core.timm_config import CONFIG, label_names_in

    snapshot = next(folder for folder in source.path.parents if folder.name == source.revision)
    weights = HubFile(source.path, source.revision, source.path.relative_to(snapshot).as_posix())
    config = fetch_beside(parse_hub_name(source.text), weights, CONFIG)
    if config is not None:
        checkpoint.labels = label_names_in(config.path, num_classes)
