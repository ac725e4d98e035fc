"""Files of ``torch.save``, by torch's safe unpickler only: nothing in the file is run."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfcli.errors import CheckpointError, unreadable

if TYPE_CHECKING:
    import torch

# The first of these that holds a state dict is looked into: trained weights before their moving average.
WRAPPERS = ("state_dict", "model", "model_state_dict", "ema", "state_dict_ema", "model_ema")

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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "file an issue with PyTorch": our own message says it better
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(start))
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, OSError) as error:
        raise _explain(path, start, error) from error
    state = _unwrap(loaded)
    if not state:
        raise CheckpointError(
            f"{path}: holds no state dict, but {_describe(loaded)}",
            hint="save model.state_dict(), best as safetensors: safetensors.torch.save_file",
        )
    return state


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


def _unwrap(loaded: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of the first mapping that has some, looking through the wrappers."""
    import torch

    if not isinstance(loaded, Mapping):
        return {}
    for wrapper in WRAPPERS:
        if isinstance(loaded.get(wrapper), Mapping) and (state := _unwrap(loaded[wrapper])):
            return state
    return {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor) and isinstance(name, str)}


def _describe(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    names = [str(name) for name in loaded]
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
    return CheckpointError(f"{path}: {what}", hint="fetch or write the file again; it should come from torch.save")
