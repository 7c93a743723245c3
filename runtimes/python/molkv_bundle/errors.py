"""Exceptions for errors that a user can cause.

    MolkvError
    ├── ConfigError       a model configuration is incomplete or contradicts itself
    ├── CheckpointError   a trained checkpoint is missing, unsafe, or does not fit its configuration
    ├── BundleError       a folder is not a bundle, or the bundle is incomplete or damaged
    ├── OutputError       an output file or folder cannot be written
    ├── ProviderError     an execution provider is not available or cannot run the graph
    ├── RequestError      the model or the command does not support a prompt or an option
    │   ├── ArgumentError the value of an argument is impossible
    │   ├── NotEnoughMemoryError   a request needs more RAM than there is
    │   └── SessionError  a saved session is damaged, or belongs to another bundle or graph
    └── MissingExtraError a command needs packages that are not installed

Every message is one line. It names the file, the field, the found value, the expected value and the remedy. The command
line prints this line. It exits with status 2 after an ArgumentError for an option, and with status 1 after every other
MolkvError. An exception of another class is a bug in this project.
"""

from __future__ import annotations


class MolkvError(Exception):
    """The base class of all errors that a user can cause."""

    def __init__(self, message: str) -> None:
        # The message may quote names and values from files. These may contain line breaks or terminal escape sequences.
        super().__init__(printable(message))


class ConfigError(MolkvError, ValueError):
    """A model configuration is incomplete or contradicts itself."""


class CheckpointError(MolkvError):
    """A trained checkpoint is missing, unsafe, or does not fit its configuration."""


class BundleError(MolkvError):
    """A folder is not a bundle, or the bundle is incomplete or damaged."""


class OutputError(MolkvError):
    """An output file or folder cannot be written."""


class ProviderError(MolkvError):
    """An execution provider is not available or cannot run the graph."""


class RequestError(MolkvError):
    """The model or the command does not support a prompt or an option."""


class ArgumentError(RequestError):
    """An argument of a function has an impossible value.

    Args:
        argument: Name of the argument.
        found: The value, as text.
        expected: The possible values, in words.
    """

    def __init__(self, argument: str, found: object, expected: str) -> None:
        super().__init__(f"{argument}: found {found}, expected {expected}")
        self.argument, self.found, self.expected = argument, printable(str(found)), printable(expected)

    def __reduce__(self) -> tuple[type[ArgumentError], tuple[str, str, str], dict[str, object]]:
        return type(self), (self.argument, self.found, self.expected), self.__dict__  # __dict__ holds the notes


class NotEnoughMemoryError(RequestError):
    """A request needs more RAM than there is."""


class SessionError(RequestError):
    """A saved session is damaged, or belongs to another bundle, another graph or another KV dtype."""


class MissingExtraError(MolkvError):
    """A command needs packages that are not installed."""


def printable(text: str) -> str:
    """Return a text as one line: line breaks and other characters that do not print become escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: Exception) -> str:
    """Return the message of a library's error as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
