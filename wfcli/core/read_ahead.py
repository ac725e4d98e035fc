"""The layers of the teachers, in order, for a generator.

For the CPU each is read when it is asked for: memory holds one. For a GPU the next is read into pinned memory, in a
thread, while the one before is copied and computed: reading is what takes the time there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from wfcli.core.plan import LayerSpec
from wfcli.core.tokens import LayerTokens, to_tokens

Asked = TypeVar("Asked")
Got = TypeVar("Got")


def layers_for(
    device: torch.device | None, specs: Sequence[LayerSpec], teachers: Sequence[Mapping[str, Tensor]]
) -> Iterator[LayerTokens]:
    """Yield the layers as float32 on `device`; none is kept here, so let one go before the next is asked for."""
    if device is None or device.type != "cuda":
        for spec in specs:
            yield to_tokens(spec, teachers)
        return
    for tokens in one_ahead(lambda spec: to_tokens(spec, teachers, pinned=True), specs):
        yield tokens.to(device)


def one_ahead(read: Callable[[Asked], Got], asked: Sequence[Asked]) -> Iterator[Got]:
    """Yield what `read` gives of each, in order; one thread reads the next meanwhile. Its errors are raised here."""
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        coming = thread.submit(read, asked[0]) if asked else None
        for following in [*asked[1:], None]:
            if coming is None:
                return
            got = coming.result()
            coming = None if following is None else thread.submit(read, following)
            yield got
            del got
