"""The exceptions a user of molkv can cause.

    MolkvError
    ├── ConfigError       a model configuration is incomplete or contradicts itself
    ├── CheckpointError   a trained checkpoint is missing, unsafe, or does not fit its configuration
    ├── BundleError       a bundle is incomplete, damaged, or not a bundle
    ├── OutputError       something cannot be written where it was asked for
    ├── ProviderError     an execution provider is not there or cannot run the graph
    ├── RequestError      a prompt or an option is outside what the model or the command can do
    └── MissingExtraError a command needs packages that are not installed

Every message is one line that names the file, the field, what was found, what was expected and what to do about it.
The command line prints that line and exits with status 1; anything else that is raised is a bug of ours.
"""

from __future__ import annotations


class MolkvError(Exception):
    """Base of all errors that a user can cause."""

    def __init__(self, message: str) -> None:
        # Names and values in it come from files, and could hold line breaks or what steers a terminal.
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class ConfigError(MolkvError, ValueError):
    """A model configuration is incomplete or contradicts itself."""


class CheckpointError(MolkvError):
    """A trained checkpoint is missing, unsafe, or does not fit its configuration."""


class BundleError(MolkvError):
    """A bundle is incomplete, damaged, or not a bundle."""


class OutputError(MolkvError):
    """Something cannot be written where it was asked for."""


class ProviderError(MolkvError):
    """An execution provider is not there or cannot run the graph."""


class RequestError(MolkvError):
    """A prompt or an option is outside what the model or the command can do."""


class MissingExtraError(MolkvError):
    """A command needs packages that are not installed."""


def one_line(error: Exception) -> str:
    """Return the message of a library's error in one line, cut short if it is long."""
    return " ".join(str(error).split())[:300]
