"""The errors that stoker raises, written for the person who can fix them.

Every message has three parts: what was wrong, where (file, key, value, URL), and what to do.
Command-line programs print it as one line and exit with status 2 (see ``stoker.command``).
"""

__all__ = [
    "ClusterError",
    "DatasetError",
    "ModelError",
    "RecipeError",
    "RunError",
    "StokerError",
    "StorageError",
    "StorageTimeout",
]


class StokerError(Exception):
    """Base class of all errors that stoker raises on purpose; its text is one line for people."""


class RecipeError(StokerError):
    """A recipe cannot be read or is invalid."""


class StorageError(StokerError):
    """A location in storage cannot be reached, read or written. ``url`` names it."""

    def __init__(self, message: str, *, url: str = "") -> None:
        super().__init__(message)
        self.url = url

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_storage_error, (type(self), str(self), self.url), self.__dict__


def _rebuild_storage_error(kind: type[StorageError], message: str, url: str) -> StorageError:
    return kind(message, url=url)


class StorageTimeout(StorageError):
    """A location gave no valid response in time. Another machine may reach it."""


class DatasetError(StokerError):
    """A data set is missing, damaged or of a newer format, or cannot be prepared."""


class RunError(StokerError):
    """A training run cannot start, resume or finish."""


class ModelError(StokerError):
    """A model version, alias or architecture is unknown, damaged or does not pass a check."""


class ClusterError(StokerError):
    """The store, the Ray cluster or the endpoint on this machine cannot be started or reached."""
