"""Certificates of engines and gateways: made once for a server, by an authority whose key is forgotten at once, or read
from files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.config import ConfigError
from gateway.engines.tls import client_context
from scheduler.protocol import ENGINE_NAME, GATEWAY_NAME, Credentials

AUTHORITY_NAME = "headrace-authority"
SLACK = timedelta(days=1)  # between the clocks of machines
VALID_FOR = timedelta(days=3650)  # longer than a server runs


@dataclass(frozen=True, slots=True)
class Sides:
    engine: Credentials
    gateway: Credentials


def make_credentials(now: datetime) -> Sides:
    """now: with its time zone. An engine's certificate lets nobody in as a gateway, nor the other way round."""
    key = generate_private_key(SECP256R1())
    authority = (
        _certificate(AUTHORITY_NAME, key, AUTHORITY_NAME, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    authority_pem = authority.public_bytes(Encoding.PEM).decode()

    def side(name: str, usage: x509.ObjectIdentifier) -> Credentials:
        own = generate_private_key(SECP256R1())
        signed = (
            _certificate(name, own, AUTHORITY_NAME, now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(key, SHA256())
        )
        own_pem = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return Credentials(signed.public_bytes(Encoding.PEM).decode(), own_pem, authority_pem)

    return Sides(
        side(ENGINE_NAME, ExtendedKeyUsageOID.SERVER_AUTH), side(GATEWAY_NAME, ExtendedKeyUsageOID.CLIENT_AUTH)
    )


def _certificate(name: str, key: EllipticCurvePrivateKey, issuer: str, now: datetime) -> x509.CertificateBuilder:
    now = now.astimezone(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(now + VALID_FOR)
    )


def read_credentials(certificate: Path, key: Path, authority: Path) -> Sides:
    """One certificate, of engines and gateways alike. Raises ConfigError, which tells nothing of what is in a key."""
    texts = []
    for option, path in (("cert", certificate), ("key", key), ("ca", authority)):
        try:
            texts.append(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"engine_tls_{option}: cannot read {path}: {why}") from None
    both = Credentials(*texts)
    if not both.authority.isascii():  # which Python's ssl takes of no authority
        raise ConfigError(f"engine_tls_ca: {authority} has text that is not ASCII, maybe in comments: remove it")
    try:
        client_context(both)
    except (ssl.SSLError, ValueError) as error:
        why = (error.reason if isinstance(error, ssl.SSLError) else str(error)) or "they hold no certificates"
        raise ConfigError(f"engine_tls_cert, engine_tls_key, engine_tls_ca: {why.lower().replace('_', ' ')}") from None
    _check_name(both, certificate)
    return Sides(both, both)


def _check_name(credentials: Credentials, path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(credentials.certificate.encode())
    try:
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = named.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    if ENGINE_NAME not in names:
        raise ConfigError(f"engine_tls_cert: {path} is not for the DNS name {ENGINE_NAME}, which all engines have")
