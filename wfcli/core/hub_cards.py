"""Model cards: text with the metadata that the Hub reads, by huggingface_hub's own writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wfcli.errors import WfError

TASK = "image-classification"


@dataclass(frozen=True)
class Measured:
    """What a model reached on one split of a dataset."""

    dataset: str  # owner/name on the Hub, or what else it is called
    split: str
    metrics: tuple[tuple[str, str, float], ...]  # type, name, value


def write_card(metadata: Mapping[str, Any], text: str, name: str = "", measured: Measured | None = None) -> str:
    """Write a card: metadata (entries that are None or empty are left out), then the text.

    `name` is that of the model in its results, `measured` those results.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = None
    if measured is not None:
        results = [
            EvalResult(
                task_type=TASK,
                dataset_type=measured.dataset,
                dataset_name=measured.dataset,
                dataset_split=measured.split,
                metric_type=kind,
                metric_name=title,
                metric_value=value,
            )
            for kind, title, value in measured.metrics
        ]
    given = {key: value for key, value in metadata.items() if value}
    data = ModelCardData(eval_results=results, model_name=name if results else None, **given)
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def complete_card(card: str, metadata: Mapping[str, Any], file: str) -> str:
    """Add metadata to a card where it has none; tags are added to those it has, its text stays as it is.

    Raises:
        WfError: its metadata cannot be read, or it says another license.
    """
    from huggingface_hub import ModelCard

    if not card.startswith("---"):
        return write_card(metadata, card)
    try:
        found = ModelCard(card)
    except Exception as error:  # of the YAML library or of the client
        told = " ".join(str(error).split())
        raise WfError(f"{file}: its metadata cannot be read: {told}", hint="mend the YAML at its top") from error
    had: dict[str, Any] = found.data.to_dict()  # type: ignore[no-untyped-call]
    licenses = had.get("license"), metadata.get("license")
    if all(licenses) and licenses[0] != licenses[1]:
        raise WfError(f"{file}: says license {licenses[0]}, --license {licenses[1]}", hint="leave out --license")
    added = {key: value for key, value in metadata.items() if value and not had.get(key)}
    tags = _joined(had.get("tags"), metadata.get("tags"))
    if not added and tags == had.get("tags"):
        return card
    for key, value in {**added, "tags": tags}.items():
        setattr(found.data, key, value)
    return str(found)


def _joined(had: Sequence[str] | None, wanted: Sequence[str] | None) -> list[str]:
    return list(dict.fromkeys([*(had or ()), *(wanted or ())]))
