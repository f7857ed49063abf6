"""Secrets by which SeaweedFS's own servers know each other, so that only the S3 API is left for clients.

SeaweedFS is four servers: S3 asks the filer where an object is, and reads and writes it on the volume server, which
the master appointed. Without secrets each of them obeys whoever reaches its port: any user of the machine could replace
weights and their checksums alike. Therefore

- the volume server's HTTP asks for a token, for reads and for writes (``jwt.signing``);
- every gRPC port asks for a client certificate (``grpc``), and there is one only;
- the HTTP of master and filer is off (``-disableHttp``): the master's gives tokens to whoever asks.

No data depend on these secrets, so each start makes new ones: a copied or damaged file is of no use afterwards.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets

from stoker.embedded.state import StateFolder

__all__ = ["FOLDER", "new_certificate", "write_secrets"]

FOLDER = "store-secrets"
"""below the state folder"""
_SERVERS = ("master", "volume", "filer", "s3", "client")
_TOKENS = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
_TOKEN_S = 3600
"""for which a token is valid: SeaweedFS's 10 s are few on a busy machine, and tokens do not leave its servers"""
_VALID = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC)
"""of the certificate, whatever the machine's clock says"""


def write_secrets(folder: StateFolder) -> list[str]:
    """Write new secrets, for their owner only, and return the arguments of ``weed`` that make it use them.

    The paths in ``security.toml`` are relative to the state folder, in which ``weed`` has to be started: weed takes a
    certificate that it does not find for none, and asks for none.

    Raises:
        OSError: a file cannot be written.
    """
    place = folder.path / FOLDER
    place.mkdir(exist_ok=True, mode=0o700)
    certificate, key = new_certificate()
    folder.write_private(place / "grpc.crt", certificate)
    folder.write_private(place / "grpc.key", key)
    folder.write_private(place / "security.toml", _configuration())
    return [f"-config_dir={place}"]


def _configuration() -> str:
    sections = {name: {"key": secrets.token_urlsafe(32), "expires_after_seconds": _TOKEN_S} for name in _TOKENS}
    certificate, key = f"{FOLDER}/grpc.crt", f"{FOLDER}/grpc.key"
    sections |= {"access": {"ui": False}, "filer.expose_directory_metadata": {"enabled": False}}
    sections |= {"grpc": {"ca": certificate}}  # it is its own authority: no other one can be made
    sections |= {f"grpc.{server}": {"cert": certificate, "key": key} for server in _SERVERS}
    lines = []
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | int) else f'"{value}"'


def new_certificate() -> tuple[str, str]:
    """A certificate that is signed by its own key, and the key, both as PEM."""
    # Here, as only a start of the store needs it.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stoker embedded store")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), *_VALID)
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))])
    certificate = builder.add_extension(loopback, critical=False).sign(key, hashes.SHA256())
    return (
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )
