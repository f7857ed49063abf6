"""The settings of the store and the cluster on this machine: the schema of ``cluster/local.yaml``."""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stoker.bundled import bundled_file
from stoker.errors import ClusterError

__all__ = ["PreferredPorts", "Settings"]

_FILE = Path("cluster/local.yaml")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PreferredPorts(_Strict):
    """The ports that people type. 0 means any free one; ``STOKER_PORT_<NAME>`` in the environment takes precedence."""

    s3: int = Field(8333, ge=0, le=65535, description="the object store's S3 API")
    gcs: int = Field(6379, ge=0, le=65535, description="the head of the Ray cluster, for ray.init")
    dashboard: int = Field(8265, ge=0, le=65535, description="Ray's dashboard and its job API")
    serve: int = Field(8000, ge=0, le=65535, description="the HTTP endpoint of Ray Serve")


class Settings(_Strict):
    """Settings of the embedded store and cluster; the defaults are those of the quickstart."""

    cpus: int | None = Field(None, ge=1, description="CPUs that Ray may give away; null: this machine's, at least 4")
    object_store_memory_mb: int = Field(256, ge=80, description="Ray's shared memory for objects, MB")
    bucket: str = Field("stoker", min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]+$")
    volume_size_mb: int = Field(512, ge=32, le=30_000, description="size of one of the store's volumes, MB")
    volumes: int = Field(100, ge=8, description="how many volumes the store may create; each bucket takes several")
    ports: PreferredPorts = PreferredPorts.model_validate({})
    environment: dict[str, str] = Field(default_factory=dict, description="variables for Ray and all its workers")

    @property
    def ray_cpus(self) -> int:
        """The CPUs that Ray schedules on: as set, else this machine's, but never fewer than a small run needs."""
        return self.cpus or max(4, os.cpu_count() or 1)

    @classmethod
    def read(cls, path: Path | None = None) -> Settings:
        """The settings in ``path`` (default: ``cluster/local.yaml`` of the current folder, else the package's).

        Raises:
            ClusterError: the file cannot be read, is not valid YAML, or has an unknown key or a value of a wrong type.
        """
        if path is None:
            path = _FILE if _FILE.exists() else bundled_file("cluster/local.yaml")
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ClusterError(f"cannot read the settings {path} ({error.strerror}); check the path") from None
        except UnicodeDecodeError:
            raise ClusterError(f"cannot read the settings {path} (not UTF-8); save the file as UTF-8") from None
        except yaml.YAMLError as error:
            raise ClusterError(f"{path} is not valid YAML ({' '.join(str(error).split())}); fix or delete it") from None
        try:
            return cls.model_validate({} if found is None else found)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "the file"
            known = ", ".join(cls.model_fields)
            raise ClusterError(f"{path}: {key}: {first['msg']}; known keys are {known}") from None
