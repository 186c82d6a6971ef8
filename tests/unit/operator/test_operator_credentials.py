"""A kubeconfig's client certificate is used, and its private key stays nowhere on disk."""

import base64
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tuneloop_operator.kube.credentials import from_kubeconfig


def pair() -> tuple[bytes, bytes]:
    """A certificate that signs itself, and its key; both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    start = datetime(2026, 1, 1, tzinfo=UTC)
    certificate = builder.not_valid_before(start).not_valid_after(start + timedelta(days=1)).sign(key, hashes.SHA256())
    form = serialization.PrivateFormat.PKCS8
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()),
    )


def kubeconfig(folder: Path, user: dict[str, str]) -> Path:
    """A file with one context and this user."""
    cluster = {"server": "https://127.0.0.1:6443"}
    context = {"cluster": "here", "user": "admin"}
    path = folder / "kubeconfig"
    entries = {"clusters": ("cluster", cluster), "users": ("user", user), "contexts": ("context", context)}
    names = {"clusters": "here", "users": "admin", "contexts": "here"}
    content = {section: [{"name": names[section], key: value}] for section, (key, value) in entries.items()}
    path.write_text(yaml.safe_dump({"current-context": "here", **content}))
    return path


@pytest.mark.parametrize("inline", [True, False])
def test_a_client_certificate_is_loaded_and_leaves_no_file(
    inline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = pair()
    folder, temporary = tmp_path / "config", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    if inline:
        coded = {"client-certificate-data": certificate, "client-key-data": key}
        user = {name: base64.b64encode(data).decode() for name, data in coded.items()}
    else:
        (folder / "crt").write_bytes(certificate)
        (folder / "key").write_bytes(key)
        user = {"client-certificate": str(folder / "crt"), "client-key": str(folder / "key")}
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    found = from_kubeconfig(kubeconfig(folder, user))
    assert found.tls is not None
    assert found.server == "https://127.0.0.1:6443"
    assert not list(temporary.iterdir())


def test_a_key_that_is_not_the_certificates_own_is_refused_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded = {"client-certificate-data": pair()[0], "client-key-data": pair()[1]}
    user = {name: base64.b64encode(data).decode() for name, data in coded.items()}
    path = kubeconfig(tmp_path, user)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(OSError, match="KEY_VALUES_MISMATCH"):
        from_kubeconfig(path)
    assert not list(temporary.iterdir())
