"""The keys of a test's control plane: a CA, a server certificate for loopback, a signer of service accounts' tokens."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import oid

KEY_USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def write(folder: Path) -> None:
    """Write a CA, a server certificate for loopback, and the key that signs service accounts' tokens, unless there."""
    if (folder / "service-accounts.key").exists():
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(oid.NameOID.COMMON_NAME, name)])
        base = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        return base.not_valid_before(now - day).not_valid_after(now + 365 * day)

    def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
        kind, form = (
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
        )  # kube-apiserver finds no public key in PKCS 8
        return key.private_bytes(kind, form, serialization.NoEncryption())

    ca_key, key, signer = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    ca_name = x509.Name([x509.NameAttribute(oid.NameOID.COMMON_NAME, "test-ca")])
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id)
    usage = dict.fromkeys(KEY_USES, False)
    ca = (
        certificate("test-ca", ca_key, ca_name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage | {"key_cert_sign": True, "crl_sign": True}), critical=True)
        .add_extension(ca_id, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    hosts = [x509.DNSName(name) for name in ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")]
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "10.0.0.1")]
    server = (
        certificate("kube-apiserver", key, ca_name)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage | {"digital_signature": True}), critical=True)
        .add_extension(x509.ExtendedKeyUsage([oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([*hosts, *addresses]), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "server.crt").write_bytes(server.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(pem(key))
    (folder / "service-accounts.key").write_bytes(pem(signer))  # the last one: its presence says that all are there
