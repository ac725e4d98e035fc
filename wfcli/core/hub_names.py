"""``hf:owner/name[@revision][:file]``, taken apart; and what huggingface_hub raises, as one line and a hint."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wfcli.errors import SourceError

SPELLING = "hf:owner/name[@revision][:file]"
# What a repository's weights are called, in the order in which they are looked for.
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

_SPELLED = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:@]+))?(:(?P<file>[^:]+))?")


@dataclass(frozen=True)
class HubName:
    """The parts of an ``hf:`` source."""

    text: str
    repo: str
    revision: str | None
    file: str | None

    @property
    def is_pattern(self) -> bool:
        """Whether the file stands for several, as in a glob."""
        return self.file is not None and any(letter in self.file for letter in "*?[")

    def at(self, commit: str) -> str:
        """Spell the same at one commit."""
        return f"hf:{self.repo}@{commit}" + (f":{self.file}" if self.file else "")


def parse_hub_name(text: str) -> HubName:
    """Take ``hf:owner/name[@revision][:file]`` apart.

    Raises:
        SourceError: it is spelled otherwise, or the file leads out of the repository.
    """
    found = _SPELLED.fullmatch(text)
    if found is None:
        raise SourceError(
            f"{text}: not a name on the Hub", hint=f"write {SPELLING}, for example hf:timm/resnet50.a1_in1k"
        )
    file = found["file"]
    if file is not None and (file.startswith("/") or ".." in file.split("/")):
        raise SourceError(f"{text}: {file} leads out of the repository", hint="name a file of the repository")
    return HubName(text, found["repo"], found["revision"], file)


def explain(name: HubName, file: str | None, error: Exception) -> SourceError:
    """Turn what huggingface_hub raises into one line and a hint. The order matters: the classes are nested."""
    from huggingface_hub import errors

    where = f"{name.text}: "
    at = f" at revision {name.revision}" if name.revision else ""
    if isinstance(error, errors.GatedRepoError):
        return SourceError(
            f"{where}{name.repo} is gated, and you have no access",
            hint=f"accept its terms on the page of {name.repo}, then log in: hf auth login",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return SourceError(
            f"{where}no repository {name.repo} on the Hub, or it is private",
            hint="check the spelling; for a private one log in first: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceError(
            f"{where}{name.repo} has no revision {name.revision}", hint="name a branch, a tag or a whole commit id"
        )
    if (overloaded := _overloaded(where, f"{file or 'the files'}{at}", error)) is not None:
        return overloaded
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled | ConnectionError):
        return SourceError(
            f"{where}the Hub cannot be reached, and the cache does not hold {file or 'the files'}{at}",
            hint="check the connection, --offline and the variables HF_HUB_OFFLINE and HF_ENDPOINT, "
            "or give a local file",
        )
    if isinstance(error, errors.EntryNotFoundError):
        wanted = f"no file {file}" if name.file else "none of " + ", ".join(WEIGHT_FILES)
        return SourceError(f"{where}{wanted} in {name.repo}{at}", hint=f"name the file: {SPELLING}")
    status = status_of(error)
    if status in (401, 403):
        return SourceError(f"{where}the Hub refuses access (HTTP {status})", hint="log in again: hf auth login")
    if isinstance(error, errors.HFValidationError):
        return SourceError(f"{where}not a name on the Hub", hint=f"write {SPELLING}")
    return SourceError(
        f"{where}the Hub did not deliver {file or 'the files'} ({reason(error)})",
        hint="try again, or give a local file",
    )


def _overloaded(where: str, wanted: str, error: BaseException) -> SourceError | None:
    """Say that the Hub answers, but not now, as the error or what it came of tells; None where it is about another.

    After its own retries the client says that it found no connection, whatever the Hub has answered.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen and status_of(cause) is None:
        seen.append(cause)
        cause = cause.__context__ if cause.__cause__ is None else cause.__cause__
    status = None if cause is None else status_of(cause)
    if status == 429:
        return SourceError(
            f"{where}HTTP 429, too many requests: it did not deliver {wanted}",
            hint="try again later, or log in, which allows more of them: hf auth login, or the variable HF_TOKEN",
        )
    if status is not None and status >= 500:
        return SourceError(
            f"{where}HTTP {status}, the Hub has trouble: it did not deliver {wanted}", hint="try again later"
        )
    return None


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of the client is about."""
    return getattr(getattr(error, "response", None), "status_code", None)


def reason(error: Exception) -> str:
    """Say in a few words what the client ran into."""
    status = status_of(error)
    return f"HTTP {status}" if status else f"{type(error).__name__}: {error}".splitlines()[0]
