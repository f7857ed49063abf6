"""Model versions and aliases in object storage: versions are immutable, checksummed and published atomically."""

from stoker.registry.card import ModelCard, Preprocessing, StoredFile
from stoker.registry.parents import with_source
from stoker.registry.publishing import publish_run
from stoker.registry.registry import ModelVersion, Registry

__all__ = ["ModelCard", "ModelVersion", "Preprocessing", "Registry", "StoredFile", "publish_run", "with_source"]
