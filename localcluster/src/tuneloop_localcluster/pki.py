"""The authorities and certificates of one cluster, made anew with it and never reused.

Certificates' keys are elliptic (P-256), which are made in milliseconds. Everything is valid for a year.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = datetime.timedelta(days=365)
_CLOCK_SKEW = datetime.timedelta(minutes=10)
_BOTH_USES = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


def pair(folder: Path, name: str) -> Pair:
    """The files that hold `name`'s certificate and key in `folder`."""
    return Pair(folder / f"{name}.crt", folder / f"{name}.key")


class Authority:
    """A certificate authority that lives as files in one folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.files = pair(folder, name)
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject(f"tuneloop-{name}", [])
        usage = _key_usage(sign=True)
        self._certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        _write(self.files, self._certificate, self._key)

    def issue(self, name: str, common_name: str, organizations: Sequence[str] = (), sans: Sequence[str] = ()) -> Pair:
        """Write a certificate for a client, or with `sans` (DNS names or addresses) for a server too."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_subject(common_name, organizations), self._name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_BOTH_USES), critical=False)
        )
        if sans:
            certificate = certificate.add_extension(x509.SubjectAlternativeName(_names(sans)), critical=False)
        files = pair(self.folder, name)
        _write(files, certificate.sign(self._key, hashes.SHA256()), key)
        return files


def write_signing_key(path: Path) -> None:
    """Write the key that signs service account tokens: RSA, since RS256 is what most clusters' tokens carry.

    kube-apiserver reads both halves from this file, and only in the traditional PEM form.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    _write_secret(path, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def _subject(common_name: str, organizations: Sequence[str]) -> x509.Name:
    groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in organizations]
    return x509.Name([*groups, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _VALID)
    )


def _key_usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(sans: Sequence[str]) -> list[x509.GeneralName]:
    return [_general_name(name) for name in sans]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(files: Pair, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_secret(files.key, _pem(key))


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
