"""What can go wrong, in words for the person who can mend it.

Every message has three parts: what was wrong, where (file, key, value, URL), and what to do.
Command-line programs print it as one line and exit with status 2 (see ``stoker.command``).
"""

__all__ = ["ClusterError", "DatasetError", "ModelError", "RecipeError", "RunError", "StokerError", "StorageError"]


class StokerError(Exception):
    """Base of all errors that stoker raises on purpose; its text is one line for a person."""


class RecipeError(StokerError):
    """A recipe cannot be read, or asks for something impossible."""


class StorageError(StokerError):
    """A place cannot be reached, read or written. ``url`` names it."""

    def __init__(self, message: str, *, url: str = "") -> None:
        super().__init__(message)
        self.url = url

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_storage_error, (type(self), str(self), self.url)


def _rebuild_storage_error(kind: type[StorageError], message: str, url: str) -> StorageError:
    return kind(message, url=url)


class DatasetError(StokerError):
    """A data set is missing, damaged, of a newer format, or cannot be prepared."""


class RunError(StokerError):
    """A training run cannot start, continue or finish."""


class ModelError(StokerError):
    """A model version, alias or architecture is missing or does not hold what it promises."""


class ClusterError(StokerError):
    """The store, the Ray cluster or the endpoint on this machine cannot be started or reached."""
