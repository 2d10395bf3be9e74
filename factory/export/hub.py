"""Folders to the Hub, when a user asks for it: a data set or a policy, private unless said otherwise.

Everything that can be refused is refused before a byte is sent: no token, a name that is none, a repository that is
public when it should not be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from factory.faults import EndpointError, FactoryError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["dataset", "model"]


def check(repo: str, kind: Kind, *, private: bool = True) -> None:
    """May `push` go on? FactoryError: the name, or a public repository; EndpointError: no token, or no way there."""
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise FactoryError(f"{repo!r} is no name of a repository: {error}", todo="write it as owner/name") from error
    if "/" not in repo:
        raise FactoryError(f"{repo!r} does not name its owner", todo="write it as owner/name")
    api = _api()
    with _mapped(repo):
        try:
            held = api.repo_info(repo, repo_type=kind)
        except RepositoryNotFoundError:
            return
    if private and not held.private:
        raise FactoryError(
            f"the repository {repo} is public, so that all of it would be seen by everybody",
            where=_address(repo, kind), todo="add --public if that is wanted, or name another repository",
        )  # fmt: skip


def push(folder: Path, repo: str, kind: Kind, *, private: bool = True) -> str:
    """Put a folder into a repository, which is made if need be; its address. Errors as of `check`."""
    check(repo, kind, private=private)
    api = _api()
    with _mapped(repo):
        api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, repo_type=kind, folder_path=folder, commit_message="Export of preference-factory"
        )
    return _address(repo, kind)


def _api() -> HfApi:
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise EndpointError(
            "the Hub's client is set to stay offline", where="HF_HUB_OFFLINE", todo="unset it to push to the Hub"
        )
    token = get_token()
    if not token:
        raise EndpointError(
            "there is no token for the Hub",
            where="HF_TOKEN",
            todo="set HF_TOKEN to one that may write, or `hf auth login`",
        )  # fmt: skip
    return HfApi(token=token, endpoint=_endpoint())


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _address(repo: str, kind: Kind) -> str:
    return f"{_endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repo}"


@contextmanager
def _mapped(repo: str) -> Iterator[None]:
    """The client's errors as faults of ours."""
    from huggingface_hub.errors import HfHubHTTPError

    # the base of the client's own errors is the transport's, of whichever HTTP library the client uses
    transport: Any = HfHubHTTPError.__bases__
    try:
        yield
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        todo = "check that the token may write there" if status in (401, 403) else "try again later"
        raise EndpointError(f"the Hub refused: {_said(error)}", where=repo, todo=todo) from error
    except (OSError, *transport) as error:
        raise EndpointError(
            f"the Hub cannot be reached: {error}", where=_endpoint(), todo="check the network"
        ) from error


def _said(error: Exception) -> str:
    """The first lines of what it says."""
    return " ".join(str(error).split())[:300]
