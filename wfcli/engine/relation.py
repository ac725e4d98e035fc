"""How the teachers are related: fine-tunes of one base, or nets of their own. Told from their weights alone."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from torch import Tensor

from wfcli.core.architectures import Architecture, head_keys
from wfcli.core.regime import Regime, regime
from wfcli.engine.teachers import Teachers

LOOKED_AT = 8  # tensors that tell a shared base from none


def relate(arch: Architecture, teachers: Teachers, checked: Sequence[Mapping[str, Tensor]]) -> Regime:
    """Find out how the teachers are related from a few tensors, evenly spaced, which is enough; heads do not count."""
    return _relation(teachers, checked, _some(_matrices(arch, teachers)))


def distances(teachers: Teachers, checked: Sequence[Mapping[str, Tensor]]) -> tuple[tuple[float, ...], ...]:
    """Return |w - v| / |mean| of each two teachers over all their matrices, heads too."""
    names = [name for name, shape in teachers.layout.to_timm.values() if len(shape) >= 2]
    return _relation(teachers, checked, names).between


def is_ancestor(
    arch: Architecture,
    teachers: Teachers,
    teacher: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    other: Container[str],
) -> bool:
    """Tell from a few tensors whether a file may be what a teacher was fine-tuned from; `other`: what it lacks."""
    names = [name for name in _matrices(arch, teachers) if teachers.layout.to_file[name][0] not in other]
    found = _relation(teachers, [base, teacher], _some(names))
    return found.shared_base or not any(found.cosines)


def _matrices(arch: Architecture, teachers: Teachers) -> list[str]:
    head = head_keys(arch)
    return [name for name, shape in teachers.layout.to_timm.values() if len(shape) >= 2 and name not in head]


def _some(names: Sequence[str]) -> Sequence[str]:
    return names[:: max(1, -(-len(names) // LOOKED_AT))]


def _relation(teachers: Teachers, checked: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> Regime:
    return regime([teachers.layout.timm_view(teacher) for teacher in checked], names)
