"""What the user types for a dataset -> a `Table`: parquet folders, image folders, datasets of the Hub.

Local files are streamed: nothing is copied into a cache, unless their images do not fit memory. Then `datasets` writes
the table once more into the cache of Hugging Face (HF_DATASETS_CACHE), where single rows can be read.
"""

from __future__ import annotations

import glob
import re
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from wfcli.core.bounded import parse_json
from wfcli.core.columns import MOST_CLASSES
from wfcli.core.paths import is_there, local_path
from wfcli.core.tables import Table, quiet
from wfcli.errors import DataError

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w.-]+)?")
SPELLINGS = (
    "digits, a folder of parquet files or of images, or a dataset of the Hub as hf:owner/name[@revision][:config]"
)


def open_table(source: str, labelled: bool = True) -> Table:
    """Open a dataset by what the user typed: a folder, ``hf:owner/name[@revision][:config]`` or ``owner/name``.

    Where no labels are needed, a folder may hold parquet files of any names, or images: they are its training split.

    Raises:
        DataError: there is no such dataset, or nothing in it that can be read.
    """
    if source.startswith("hf:"):
        if not HUB_ID.fullmatch(source[3:]):
            raise DataError(f"data {source}: not a name on the Hub", hint=f"use {SPELLINGS}")
        return _open_hub(source[3:], spelled_out=True)
    path = local_path(source, DataError)
    if path.is_dir():
        return _open_folder(path, labelled)
    # Where the parent folder is there, it is a path with a typing error, and is not looked for on the Hub.
    if HUB_ID.fullmatch(source) and not path.exists() and not path.parent.exists() and not source.startswith("."):
        return _open_hub(source, spelled_out=False)
    what = "is a file, expected a folder" if path.is_file() else "no such folder"
    raise DataError(f"data {source}: {what}", hint=f"use {SPELLINGS}")


def same_dataset(one: str, other: str) -> bool:
    """Tell whether two things a user types are one dataset, whatever their spelling."""
    paths = [local_path(text, DataError) for text in (one, other)]
    if all(map(is_there, paths)):
        return paths[0].samefile(paths[1])
    return one.removeprefix("hf:") == other.removeprefix("hf:")


def _open_folder(path: Path, labelled: bool) -> Table:
    parquet = sorted(path.rglob("*.parquet"))
    if parquet:
        return _open_parquet(path, parquet, labelled)
    folders = {SPLIT_NAMES[f.name.lower()]: f for f in sorted(path.iterdir()) if f.name.lower() in SPLIT_NAMES}
    if not labelled and (_holds_images(path.iterdir()) or (not folders and _holds_images(path.rglob("*")))):
        return _local_table(
            "imagefolder", path, {"train": [_everything_in(path)]}, drop_labels=True, drop_metadata=True
        )
    if not folders:
        raise DataError(
            f"data {path}: neither parquet files nor the folders of an image dataset",
            hint="expected train-*.parquet and test-*.parquet, or train/CLASS/IMAGE and test/CLASS/IMAGE",
        )
    return _open_images(path, folders, drop_labels=False)


def _open_images(path: Path, folders: dict[str, Path], drop_labels: bool) -> Table:
    # Metadata files beside the images are left alone: they could name any file of this machine.
    everything = {split: [_everything_in(folder)] for split, folder in folders.items()}
    return _local_table("imagefolder", path, everything, drop_labels=drop_labels, drop_metadata=True)


def _holds_images(files: Iterable[Path]) -> bool:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    return any(file.suffix.lower() in ImageFolder.EXTENSIONS for file in files)


def _everything_in(folder: Path) -> str:
    return f"{glob.escape(str(folder))}/**"


def _open_parquet(path: Path, files: list[Path], labelled: bool) -> Table:
    folders = sorted({str(f.parent.relative_to(path)) for f in files})
    if len(folders) > 1:
        raise DataError(f"data {path}: parquet files in several folders: {', '.join(folders)}", hint="name one of them")
    by_split: dict[str, list[str]] = {}
    for file in files:
        split = SPLIT_NAMES.get(re.split(r"[-.]", file.name)[0].lower())
        if split is not None:  # others ("unsupervised-...") are left alone
            by_split.setdefault(split, []).append(str(file))
    if not by_split and not labelled:
        by_split = {"train": [str(file) for file in files]}
    if not by_split:
        raise DataError(
            f"data {path}: no parquet file is named after a split: {', '.join(f.name for f in files[:5])}",
            hint="expected names like train-00000-of-00001.parquet, test-*, validation-*",
        )
    for split, named in by_split.items():
        _check_description(Path(named[0]), f"data {path}: {split}")
    return replace(_local_table("parquet", path, by_split), own_files=False)


def _check_description(file: Path, where: str) -> None:
    """Look at what a parquet file says of its columns, before `datasets` does as it says.

    Raises:
        DataError: so many classes that their names alone would fill the memory, or a file of names.
    """
    from pyarrow import parquet

    with quiet(where.removeprefix("data ")):
        told = (parquet.read_schema(file).metadata or {}).get(b"huggingface", b"null")
        waiting: list[Any] = [parse_json(told)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            count = value.get("num_classes", 0)
            if "names_file" in value or not isinstance(count, int) or count > MOST_CLASSES:
                raise DataError(
                    f"{where}: {file.name}: describes classes by a file, or more than {MOST_CLASSES:,} of them",
                    hint="give the classes by their names, or as plain numbers",
                )
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _local_table(kind: str, path: Path, files: dict[str, list[str]], **options: Any) -> Table:
    # Not datasets.load_dataset: that reports every call to the Hub, and waits for it where there is no network.
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
    from datasets.packaged_modules.parquet.parquet import Parquet

    builder_class = {"parquet": Parquet, "imagefolder": ImageFolder}[kind]

    def open_split(split: str, columns: list[str], stream: bool) -> Any:
        if not stream:
            builder = builder_class(data_files=files, **options)
            builder.download_and_prepare()
            return builder.as_dataset(split=split).select_columns(columns)
        reading = {"columns": columns} if kind == "parquet" and columns else {}
        with tempfile.TemporaryDirectory() as cache:  # only lock files go there
            builder = builder_class(cache_dir=cache, data_files=files, **options, **reading)
            rows = builder.as_streaming_dataset(split=split)
        return rows.select_columns(columns) if columns else rows

    with quiet(str(path)):
        features = open_split(next(iter(files)), [], True).features
    return Table(str(path), tuple(files), features, open_split)


@lru_cache(maxsize=4)
def _open_hub(text: str, spelled_out: bool) -> Table:
    import datasets

    name, _, config = text.partition(":")
    repo, _, revision = name.partition("@")
    _look_up(text, repo, revision or None, spelled_out)
    with quiet(f"hf:{text}"):
        found = datasets.load_dataset(repo, config or None, revision=revision or None)
    splits = {SPLIT_NAMES[split]: split for split in found if split in SPLIT_NAMES}
    if not splits:
        raise DataError(f"data hf:{text}: no split is called train, validation or test; it has {', '.join(found)}")
    features = found[next(iter(splits.values()))].features

    def open_split(split: str, columns: list[str], stream: bool) -> Any:
        return found[splits[split]].select_columns(columns)  # on disk, in the Hugging Face cache: both ways of reading

    return Table(f"hf:{text}", tuple(splits), features, open_split)


def _look_up(text: str, repo: str, revision: str | None, spelled_out: bool) -> None:
    """Ask the Hub whether it has the dataset: its answer is clearer and quicker than that of `load_dataset`.

    A Hub out of reach is no error if the user has written ``hf:``: the dataset may be in the cache.
    """
    from huggingface_hub import HfApi, errors

    also = "" if spelled_out else "no such folder, and "
    try:
        HfApi().dataset_info(repo, revision=revision, timeout=10)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        hint = f"use {SPELLINGS}; for a private one log in first: hf auth login"
        raise DataError(f"data {text}: {also}no dataset {repo}{at} on the Hub", hint=hint) from error
    except Exception as error:  # whatever the client of the day raises when there is no network
        if not spelled_out:
            raise DataError(f"data {text}: {also}the Hub cannot be reached", hint=f"use {SPELLINGS}") from error
