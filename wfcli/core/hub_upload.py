"""Files of this machine -> one commit of a repository on the Hub. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wfcli.core.hub import bars_for_people
from wfcli.core.hub_names import reason, status_of
from wfcli.errors import OutputError, WfError

CARD = "README.md"
PUBLIC = "https://huggingface.co"


@dataclass(frozen=True)
class Destination:
    """Where files go, and how."""

    repo: str
    branch: str | None = None  # None: the main one
    private: bool = False  # a repository that is not there yet is made so
    create_pr: bool = False  # propose the commit, as a pull request


@dataclass(frozen=True)
class Sent:
    """Where the files are now."""

    url: str  # of the repository, or of the pull request
    commit: str
    left: tuple[str, ...] = ()  # checkpoints that were there before, and are still


def upload(to: Destination, files: Mapping[str, Path | bytes], message: str) -> Sent:
    """Send files, by their names in the repository, as one commit; a repository that is not there is made.

    Raises:
        OutputError: nobody is logged in, or may not write there; or the Hub does not take the files.
    """
    import huggingface_hub
    from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if get_token() is None:
        raise _not_logged_in(to)
    api = HfApi(library_name="wfcli")
    with _explained(to), bars_for_people():
        # Before a repository is made for it. Older clients ask huggingface.co, whatever the endpoint: a private
        # mirror's cards are none of its business, and the commit has them checked again.
        if api.endpoint == PUBLIC or hasattr(huggingface_hub, "get_cached_repo_tree"):
            ModelCard(_text(files[CARD])).validate()
        try:
            info = api.model_info(to.repo)
            public, before = not info.private, [file.rfilename for file in info.siblings or ()]
        except RepositoryNotFoundError:
            if to.create_pr:
                raise
            public, before = False, []
        if public and to.private:
            raise OutputError(
                f"--private: {to.repo} is there, and everybody can read it",
                hint="make it private on its settings page first, or leave out --private",
            )
        page = f"{api.endpoint}/{to.repo}"
        if not to.create_pr:
            page = str(api.create_repo(to.repo, private=to.private or None, exist_ok=True))
        if to.branch is not None and not to.create_pr:
            api.create_branch(to.repo, branch=to.branch, exist_ok=True)
        # A path goes as a text: bytes would be held in memory.
        operations = [
            CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
            for name, content in files.items()
        ]
        done = api.create_commit(
            to.repo, operations, commit_message=message, revision=to.branch, create_pr=to.create_pr
        )
    left = [name for name in before if name.endswith(".safetensors") and name not in files]
    return Sent(done.pr_url or page, done.oid, tuple(left) if to.branch is None else ())


def _text(content: Path | bytes) -> str:
    return (content.read_bytes() if isinstance(content, Path) else content).decode("utf-8")


def _not_logged_in(to: Destination) -> OutputError:
    return OutputError(
        f"hf:{to.repo}: nobody is logged in to the Hub, or the token is no longer good",
        hint="log in with a token that may write: hf auth login; or set HF_TOKEN",
    )


@contextmanager
def _explained(to: Destination) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line and a hint."""
    try:
        yield
    except WfError:
        raise
    except Exception as error:  # whatever the client of the day raises for network, disk and permissions
        raise _explain(to, error) from error


def _explain(to: Destination, error: Exception) -> OutputError:
    from huggingface_hub import errors

    where = f"hf:{to.repo}: "
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error  # of a thread that uploads
    if isinstance(error, errors.OfflineModeIsEnabled):
        return OutputError(
            f"{where}a push needs the Hub", hint="leave out --offline and the variable HF_HUB_OFFLINE, or try --dry-run"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return OutputError(f"{where}there is no branch {to.branch or 'main'}", hint="name one of its branches")
    status = status_of(error)
    if isinstance(error, errors.RepositoryNotFoundError) and not (status == 401 and not to.create_pr):
        return OutputError(
            f"{where}no such repository, or it is private", hint="--create-pr proposes changes to one that is there"
        )
    if status == 401:
        return _not_logged_in(to)
    if status == 403:
        return OutputError(
            f"{where}{_user()} may not write there",
            hint="push to a repository of your own, log in with a token that may write (hf auth login), "
            "or propose it: --create-pr",
        )
    if isinstance(error, ValueError) and "metadata" in str(error):
        told = " ".join(str(error).split())
        return OutputError(f"{where}the Hub refuses the card: {told}", hint="check --license and the card: --dry-run")
    return OutputError(f"{where}the Hub did not take the files ({reason(cause)})", hint="run the same command again")


def _user() -> str:
    """Say whose token it is, where the Hub says so."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().whoami()["name"])
    except Exception:  # it is asked for a message about another error
        return "this token"
