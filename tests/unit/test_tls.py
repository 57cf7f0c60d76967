"""The webhook's certificate: made once, trusted by its CA, never half there."""

import ipaddress
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509

from scheduler import errors
from webhooks import tls

NAMES = ["anygpu.anygpu-system.svc", "localhost", "127.0.0.1"]


def test_a_client_that_trusts_the_ca_reaches_every_name(tmp_path: Path) -> None:
    tls.ensure(tmp_path, NAMES)
    for name in NAMES:
        client = ssl.create_default_context(cadata=tls.authority(tmp_path).decode())
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        ours, theirs = socket.socketpair()

        def serve(end: socket.socket = theirs) -> None:
            with tls.context(tmp_path).wrap_socket(end, server_side=True) as wrapped:
                wrapped.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        with client.wrap_socket(ours, server_hostname=name) as wrapped:
            assert wrapped.version() in ("TLSv1.2", "TLSv1.3")
            wrapped.send(b"x")
        thread.join()


def test_the_certificate_names_what_was_asked(tmp_path: Path) -> None:
    tls.ensure(tmp_path, NAMES)
    made = x509.load_pem_x509_certificate((tmp_path / "tls.crt").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == NAMES[:2]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]


def test_the_key_is_for_its_owner_alone_and_the_cas_key_is_not_kept(tmp_path: Path) -> None:
    tls.ensure(tmp_path, NAMES)
    assert stat.S_IMODE((tmp_path / "tls.key").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "tls.crt", "tls.key"]


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    tls.ensure(tmp_path, NAMES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tls.ensure(tmp_path, ["other"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_admins_certificate_without_a_ca_is_its_own_authority(tmp_path: Path) -> None:
    tls.ensure(tmp_path, NAMES)
    (tmp_path / "ca.crt").unlink()
    assert tls.authority(tmp_path) == (tmp_path / "tls.crt").read_bytes()


@pytest.mark.parametrize("there", ["tls.crt", "tls.key"])
def test_half_of_an_admins_pair_is_refused(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("x")
    with pytest.raises(errors.InvalidInput, match=f"holds {there} but not both"):
        tls.ensure(tmp_path, NAMES)


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_killed_at_any_point_the_next_start_makes_a_whole_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    replaced: list[Path] = []
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if len(replaced) == written:
            raise KeyboardInterrupt
        replaced.append(target)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    if written < 3:
        with pytest.raises(KeyboardInterrupt):
            tls.ensure(tmp_path, NAMES)
    monkeypatch.setattr(Path, "replace", real)
    tls.ensure(tmp_path, NAMES)
    tls.context(tmp_path)
    ca = x509.load_pem_x509_certificate(tls.authority(tmp_path))
    x509.load_pem_x509_certificate((tmp_path / "tls.crt").read_bytes()).verify_directly_issued_by(ca)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "tls.crt", "tls.key"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(errors.InvalidInput, match="cannot hold the webhook's certificate"):
        tls.ensure(tmp_path / "file" / "certs", NAMES)


def test_files_that_are_no_certificate_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").write_text("x")
    (tmp_path / "tls.key").write_text("x")
    with pytest.raises(errors.InvalidInput, match="no certificate and key"):
        tls.context(tmp_path)
