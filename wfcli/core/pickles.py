"""Files of ``torch.save``, by torch's safe unpickler only: nothing in the file is run."""

from __future__ import annotations

import mmap
import pickletools
import re
import reprlib
import warnings
import zipfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfcli.core.pickle_scan import scan_pickle
from wfcli.errors import CheckpointError, WfError, unreadable

if TYPE_CHECKING:
    import torch

# The first of these that holds a state dict is looked into: trained weights before their moving average.
WRAPPERS = ("state_dict", "model", "model_state_dict", "ema", "state_dict_ema", "model_ema")

LEGACY_PICKLES = 5  # in a row: magic number, protocol, machine, the object, the keys of its storages
DEEPEST = 4  # of wrappers within wrappers
SHARED, SLACK = 8, 1 << 24

_AGAIN = "fetch or write the file again; it should come from torch.save"
_RESAVE = (
    "in a place where you trust it, load it with torch.load(path, weights_only=False) and save its state dict with "
    "safetensors.torch.save_file"
)


def load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Load the state dict of a .pt, .pth or .bin file; tensors of today's zip format are mapped, not yet read.

    Entries beside the tensors (epoch, optimizer) are left out; a wrapper such as ``state_dict`` is seen through.

    Raises:
        CheckpointError: the file is damaged, wants to run code, or holds no state dict.
    """
    import torch

    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise unreadable(path, error) from error
    _check_before_loading(path, start)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "file an issue with PyTorch": our own message says it better
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(start))
        state = _unwrap(loaded)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler has none of its own for a damaged file: whatever comes of one
        raise _explain(path, start, error) from error
    if not state:
        raise CheckpointError(
            f"{path}: holds no state dict, but {_describe(loaded)}",
            hint="save model.state_dict(), best as safetensors: safetensors.torch.save_file",
        )
    _check_claims(path, state)
    return state


def _check_before_loading(path: Path, start: bytes) -> None:
    """Look at the archive and at the operations of the pickles: nothing is loaded that would not end, or not fit."""
    try:
        if _is_zip(start):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise _explain(path, start, RuntimeError("TorchScript"))
                _check_archive(path, archive)
                # torch finds its record whatever its case: what is scanned has to be what is loaded.
                pickles = [one for one in archive.infolist() if one.filename.lower().endswith("data.pkl")]
                if len(pickles) != 1 or not pickles[0].filename.endswith("data.pkl"):
                    named = ", ".join(one.filename for one in pickles[:3]) or "none"
                    raise CheckpointError(f"{path}: expected one data.pkl in the archive, got {named}", hint=_AGAIN)
                scan_pickle(archive.read(pickles[0]))
        elif start:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                end = 0
                for _ in range(LEGACY_PICKLES):
                    end = scan_pickle(data, end)
    except ValueError as error:
        raise CheckpointError(f"{path}: a pickle that is not loaded: {error}", hint=_RESAVE) from error
    except WfError:
        raise
    except Exception as error:  # zipfile's own errors are of many kinds
        raise _explain(path, start, error) from error


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """torch.save compresses nothing: what is larger than it is in the file is a bomb, or would be read as numbers."""
    records = archive.infolist()
    packed = [r.filename for r in records if r.compress_type != zipfile.ZIP_STORED or r.compress_size != r.file_size]
    total, size = sum(record.file_size for record in records), path.stat().st_size
    if packed:
        raise CheckpointError(f"{path}: {packed[0]}: compressed, which torch.save never does", hint=_RESAVE)
    if total > size:
        raise CheckpointError(f"{path}: claims {total:,} bytes of records, it has {size:,}", hint=_AGAIN)


def _check_claims(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Tensors may share their numbers, or repeat them (`expand`); a file of a few bytes may not claim gigabytes so."""
    odd = next((name for name, tensor in state.items() if any(side < 0 for side in tensor.shape)), None)
    if odd is not None:
        raise CheckpointError(f"{path}: {odd}: got shape {list(state[odd].shape)}, expected sizes", hint=_RESAVE)
    claimed, size = sum(t.numel() * t.element_size() for t in state.values()), path.stat().st_size
    if claimed > SHARED * size + SLACK:
        raise CheckpointError(f"{path}: claims {claimed:,} bytes of tensors, it has {size:,}", hint=_RESAVE)


def file_offsets(path: Path, state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Tell where in the file the mapped tensors lie, in bytes; those that are not plainly there are left out.

    With that a tensor can be read like one of a safetensors file and the mapping dropped, whose pages would count as
    resident, and whose reader is killed (SIGBUS) where somebody makes the file shorter. Linux tells which addresses
    belong to which file; elsewhere the result is empty.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            orders = [archive.read(name) for name in archive.namelist() if name.endswith("/byteorder")]
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, zipfile.BadZipFile):
        return {}
    if any(order != b"little" for order in orders):
        return {}  # torch swapped the bytes as it loaded them
    mappings = []
    for line in lines:  # start-end permissions offset device inode path
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path.resolve()) and int(fields[2], 16) == 0:
            start, end = (int(address, 16) for address in fields[0].split("-"))
            mappings.append(range(start, end))
    return {
        name: tensor.data_ptr() - mapping.start
        for name, tensor in state.items()
        for mapping in mappings
        if tensor.data_ptr() in mapping and not (tensor.is_conj() or tensor.is_neg())
    }


def _is_zip(start: bytes) -> bool:
    return start[:4] == b"PK\x03\x04"


def _is_pickle(path: Path) -> bool:
    """Tell whether a file starts with a whole pickle, by reading its operations: nothing is run."""
    try:
        with path.open("rb") as file:
            return any(operation.name == "STOP" for operation, _, _ in pickletools.genops(file))
    except Exception:  # whatever a file that is none makes of the parser
        return False


def _unwrap(loaded: Any, depth: int = DEEPEST) -> dict[str, torch.Tensor]:
    """Return the tensors of the first dict that has some, looking through the wrappers.

    By the methods of the classes: a pickle may give its objects attributes of their names.
    """
    import torch

    if not isinstance(loaded, dict):
        return {}
    for wrapper in WRAPPERS if depth else ():
        if state := _unwrap(dict.get(loaded, wrapper), depth - 1):
            return state
    return {
        name: torch.Tensor.detach(value)
        for name, value in dict.items(loaded)
        if isinstance(value, torch.Tensor) and isinstance(name, str)
    }


def _describe(loaded: Any) -> str:
    if not isinstance(loaded, dict):
        return f"a {type(loaded).__name__}"
    names = [name if isinstance(name, str) else reprlib.repr(name) for name in islice(dict.keys(loaded), 9)]
    return "a dict with " + (", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing in it")


def _explain(path: Path, start: bytes, error: Exception) -> CheckpointError:
    """Say it in our words. Torch's own advise weights_only=False first, which runs whatever the file wants."""
    text = str(error)
    if "TorchScript" in text:
        return CheckpointError(
            f"{path}: a TorchScript archive, which is code: not loaded",
            hint="in a place where you trust it: safetensors.torch.save_file(torch.jit.load(path).state_dict(), ...)",
        )
    # "... unsupported GLOBAL posix.system whose module is blocked", "Unsupported global: GLOBAL some.Class was not ..."
    if wanted := re.search(r"GLOBAL ([\w.]+)", text):
        return CheckpointError(f"{path}: a pickle that wants to run code ({wanted[1]}): not loaded", hint=_RESAVE)
    if "Unsupported operand" in text and _is_pickle(path):
        return CheckpointError(f"{path}: a plain pickle, which may run code: not loaded", hint=_RESAVE)
    what = "truncated or damaged" if _is_zip(start) else "empty" if not start else "truncated, or not of torch.save"
    return CheckpointError(f"{path}: {what}", hint=_AGAIN)
