"""A certificate authority of the tests, and what a client needs to believe it."""

import datetime
import hashlib
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = datetime.timedelta(days=1)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Authority:
    """`store`: a directory as /etc/ssl/certs, with this authority as the only one."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject("authority of the tests")
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        self._identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        certificate = (
            self._begin(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(self._identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        text = certificate.public_bytes(serialization.Encoding.PEM)
        self.store = base / "store"
        self.store.mkdir()
        self.bundle = self.store / "ca-certificates.crt"
        self.bundle.write_bytes(text)
        # How OpenSSL finds an authority in a directory: the SHA-1 of its name, canonical (lower
        # case, UTF-8, without the outermost header), four bytes of it (openssl-rehash(1)).
        digest = hashlib.sha1(self._name.public_bytes()[2:]).digest()
        number = int.from_bytes(digest[:4], "little")
        (self.store / f"{number:08x}.0").write_bytes(text)

    def _begin(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + 30 * _DAY)
        )

    def certify(self, *names: str) -> Path:
        """A file with a key and its certificate for names or addresses."""
        path = self._base / f"{names[0].replace('*', 'any')}.pem"
        if path.exists():
            return path
        key = ec.generate_private_key(ec.SECP256R1())
        known: list[x509.GeneralName] = []
        for name in names:
            try:
                known.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                known.append(x509.DNSName(name))
        identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
        certificate = (
            self._begin(_subject(names[0]), key)
            .add_extension(x509.SubjectAlternativeName(known), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(identifier(self._identifier), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        path.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            + certificate.public_bytes(pem)
        )
        return path
