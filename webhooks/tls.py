"""The webhook's certificate: the admin's own, or a CA and a serving certificate made at the first start."""

import datetime
import ipaddress
import os
import ssl
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scheduler import errors

CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"
VALID_DAYS = 365
CLOCK_SKEW = datetime.timedelta(hours=1)


def ensure(directory: Path, names: Iterable[str]) -> None:
    """Put a CA certificate, a serving certificate for the names and its key into the folder, unless they are there.

    The CA's key is thrown away: nothing else can ever be signed by it. Raises InvalidInput if the folder holds only
    some of the files or cannot be written.
    """
    files = [directory / name for name in (CERTIFICATE, KEY)]
    there = [path for path in files if path.exists()]
    if len(there) == len(files):
        return
    interrupted = _new(directory / CERTIFICATE).exists()
    if there and not interrupted:
        raise errors.InvalidInput(
            f"{directory}: holds {there[0].name} but not both {CERTIFICATE} and {KEY}; add or remove"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        made = {directory / name: content for name, content in _make(list(names)).items()}
        # Written beside and renamed, the certificate last: a kill midway leaves no half file, and the certificate's
        # new file says that the folder is not complete yet.
        for path, content in made.items():
            _new(path).touch(mode=0o600)
            _new(path).write_bytes(content)
        for path in made:
            _new(path).replace(path)
    except OSError as error:
        raise errors.InvalidInput(f"{directory}: cannot hold the webhook's certificate: {error}") from error


def _new(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def authority(directory: Path) -> bytes:
    """The PEM that the apiserver must trust: the CA's, or the certificate itself where no CA lies beside it."""
    path = directory / AUTHORITY
    return (path if path.exists() else directory / CERTIFICATE).read_bytes()


def context(directory: Path) -> ssl.SSLContext:
    """The server's TLS context; raises InvalidInput for files that are no certificate and key."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        made.load_cert_chain(directory / CERTIFICATE, directory / KEY)
    except (OSError, ssl.SSLError) as error:
        raise errors.InvalidInput(f"{directory}: no certificate and key: {error}") from error
    return made


def _make(names: list[str]) -> dict[str, bytes]:
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anygpu webhook CA")])
    until = now + datetime.timedelta(days=VALID_DAYS)
    identity = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificate_sign=True), critical=True)
        .add_extension(identity, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    serving = (
        _builder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]), ca_name, key.public_key(), now, until
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(_usage(certificate_sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identity), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    # In the order they are written.
    return {AUTHORITY: ca.public_bytes(pem), KEY: private, CERTIFICATE: serving.public_bytes(pem)}


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    until: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(int.from_bytes(os.urandom(16)) >> 1)
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
    )


def _usage(*, certificate_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificate_sign,
        crl_sign=certificate_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
