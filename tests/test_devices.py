"""Which device, and whether bfloat16 is worth it there, with the PyTorch of today and with older ones."""

from __future__ import annotations

import pytest
import torch

from wfcli.core.devices import has_fast_bfloat16

CPU = torch.device("cpu")
NEWER = "get_capabilities"
OLDER = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx"])
def test_a_processor_with_bfloat16_products(monkeypatch: pytest.MonkeyPatch, feature: str) -> None:
    monkeypatch.setattr(torch.cpu, NEWER, lambda: {feature: True}, raising=False)
    assert has_fast_bfloat16(CPU)
    monkeypatch.setattr(torch.cpu, NEWER, lambda: {"avx512_f": True, feature: False}, raising=False)
    assert not has_fast_bfloat16(CPU)


@pytest.mark.parametrize("there", [(), OLDER[:1], OLDER])
def test_a_pytorch_without_capabilities(monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...]) -> None:
    for name in (NEWER, *OLDER):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    for name in there:
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    assert has_fast_bfloat16(CPU) == bool(there)
