"""Upload a folder to a repository on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from molkv_bundle import MANIFEST, MissingExtraError, OutputError, hub_repository, one_line, remote_errors


def prepare_repository(url: str, *, private: bool) -> None:
    """Create the repository and the branch of a URL if there are none.

    Raises:
        OutputError: The Hub does not answer, or refuses.
        MissingExtraError: The package for the Hub is not installed.
    """
    repo, branch = hub_repository(url, OutputError)
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as missing:
        raise MissingExtraError(
            f"{url}: the package {missing.name} is not installed; install it with: pip install 'molkv-export[hub]'"
        ) from missing
    with _errors(url):
        HfApi().create_repo(repo, private=private or None, exist_ok=True)
        if branch is not None:
            HfApi().create_branch(repo, branch=branch, exist_ok=True)


def upload_to_hub(
    folder: Path, url: str, *, new: Sequence[str], removed: Sequence[str], drops_manifest: bool, shows_progress: bool
) -> str:
    """Upload files of a folder in one or more commits. The last commit adds the manifest.

    The Hub keeps the content that an interrupted upload has sent, and this is not sent again.

    Args:
        folder: The folder. Its files may be links.
        url: The repository.
        new: The files to upload.
        removed: Files that only the bundle there has, to remove together with its manifest.
        drops_manifest: Remove the manifest that is there first, so that nobody takes old and new files for a bundle.
        shows_progress: Whether the library may show progress bars.

    Returns:
        The URL of the repository with its last commit.

    Raises:
        OutputError: The Hub does not answer, or refuses a file.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    repo, branch = hub_repository(url, OutputError)
    files = [escape(name) for name in new if name != MANIFEST]
    # Only the manifest there names the other files, so a later push could not find them.
    dropped = [escape(name) for name in (MANIFEST, *removed)] if drops_manifest else None
    added = [CommitOperationAdd(path_in_repo=MANIFEST, path_or_fileobj=folder / MANIFEST)] if MANIFEST in new else []
    commit = ""
    with _errors(url), _progress_bars(shows_progress):
        if files or drops_manifest:
            commit = (
                HfApi()
                .upload_folder(
                    repo_id=repo,
                    folder_path=folder,
                    revision=branch,
                    allow_patterns=files,
                    delete_patterns=dropped,
                    commit_message="Upload the files of a bundle",
                )
                .oid
            )
        if added:
            commit = HfApi().create_commit(repo, added, revision=branch, commit_message="Upload a bundle").oid
    return f"hf://{repo}@{commit}"


@contextmanager
def _errors(url: str) -> Iterator[None]:
    from huggingface_hub.errors import HFValidationError

    try:
        with remote_errors(url, OutputError):
            yield
    except HFValidationError as cause:
        raise OutputError(f"{url}: is not the URL of a repository ({one_line(cause)})") from cause
    except (RuntimeError, ValueError) as cause:  # of an upload; the error of the server is its cause
        parts = [one_line(each) for each in (cause, cause.__cause__) if isinstance(each, Exception)]
        raise OutputError(f"{url}: cannot be uploaded ({': '.join(parts)})") from cause


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
