"""Certificates for a test: an authority made for it, and one of its own for this machine."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def certificates(directory: Path) -> tuple[Path, Path]:
    """The authority's certificate, and one of it for this machine, as server or client, with its key; as PEM files."""
    now = dt.datetime.now(dt.UTC)

    def certificate(
        name: str,
        public: ec.EllipticCurvePublicKey,
        issuer: str,
        signer: ec.EllipticCurvePrivateKey,
        *,
        authority: bool,
    ) -> x509.Certificate:
        def called(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        made = (
            x509.CertificateBuilder().subject_name(called(name)).issuer_name(called(issuer)).public_key(public)
            .serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )  # fmt: skip
        if not authority:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            made = made.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return made.sign(signer, SHA256())

    root, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    cafile, chain = directory / "authority.pem", directory / "server.pem"
    cafile.write_bytes(
        certificate("authority", root.public_key(), "authority", root, authority=True).public_bytes(Encoding.PEM)
    )
    chain.write_bytes(
        server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate("localhost", server.public_key(), "authority", root, authority=False).public_bytes(Encoding.PEM)
    )
    return cafile, chain
