"""Throwaway certificates made with the openssl command, once per test session."""

import pathlib
import ssl
import subprocess


def _openssl(directory, *args):
    done = subprocess.run(["openssl", *map(str, args)], cwd=directory, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"openssl {' '.join(map(str, args))}\n{done.stderr}"


class Pair:
    """Paths of a certificate and its key."""

    def __init__(self, directory, name):
        self.cert = pathlib.Path(directory) / f"{name}.crt"
        self.key = pathlib.Path(directory) / f"{name}.key"


class Certs:
    """A CA and what it signed: `server` (localhost, 127.0.0.1, ::1), `name_only` (localhost alone), `wrong_name`,
    `expired`, `client`; `other_ca` has signed `other_server` and `other_client`."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ca = self._authority("ca")
        self.other_ca = self._authority("other_ca")
        here = "DNS:localhost,IP:127.0.0.1,IP:::1"
        self.server = self._signed("server", self.ca, san=here)
        self.server2 = self._signed("server2", self.ca, san=here)
        self.name_only = self._signed("name_only", self.ca, san="DNS:localhost")
        self.wrong_name = self._signed("wrong_name", self.ca, san="DNS:elsewhere.example")
        self.expired = self._signed("expired", self.ca, san=here, expired=True)
        self.client = self._signed("client", self.ca, usage="clientAuth")
        self.other_server = self._signed("other_server", self.other_ca, san=here)
        self.other_client = self._signed("other_client", self.other_ca, usage="clientAuth")

    def _key(self, pair):
        _openssl(self.directory, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", pair.key)

    def _authority(self, name):
        pair = Pair(self.directory, name)
        self._key(pair)
        # A configuration of our own: OpenSSL 1.1.1 puts what the system's one says beside an -addext, twice.
        config = self.directory / f"{name}.cnf"
        config.write_text("[req]\ndistinguished_name=d\nx509_extensions=e\n[d]\n[e]\nsubjectKeyIdentifier=hash\n"
                          "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n")
        _openssl(self.directory, "req", "-x509", "-new", "-config", config, "-key", pair.key, "-subj", f"/CN=test {name}",
                 "-days", 30, "-out", pair.cert)
        return pair

    def _signed(self, name, ca, san=None, usage="serverAuth", expired=False):
        pair = Pair(self.directory, name)
        self._key(pair)
        request = self.directory / f"{name}.csr"
        _openssl(self.directory, "req", "-new", "-key", pair.key, "-subj", f"/CN=test {name}", "-out", request)
        ext = self.directory / f"{name}.ext"
        ext.write_text(f"basicConstraints=CA:FALSE\nextendedKeyUsage={usage}\n"
                       + (f"subjectAltName={san}\n" if san else ""))
        if expired:
            self._sign_expired(pair, request, ext, ca)
        else:
            _openssl(self.directory, "x509", "-req", "-in", request, "-CA", ca.cert, "-CAkey", ca.key,
                     "-set_serial", abs(hash(name)) % (1 << 60) + 1, "-days", 30, "-extfile", ext, "-out", pair.cert)
        return pair

    def _sign_expired(self, pair, request, ext, ca):
        index = self.directory / "index.txt"
        index.write_text("")
        config = self.directory / "ca.cnf"
        config.write_text(f"[ca]\ndefault_ca=d\n[d]\ndatabase={index}\nnew_certs_dir={self.directory}\n"
                          "rand_serial=yes\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n")
        _openssl(self.directory, "ca", "-batch", "-config", config, "-cert", ca.cert, "-keyfile", ca.key,
                 "-in", request, "-extfile", ext, "-startdate", "20200101000000Z", "-enddate", "20200102000000Z",
                 "-notext", "-out", pair.cert)

    def client_context(self, ca=None, client=None):
        """A verifying ssl context for lib.wire.Wire(tls=...)."""
        context = ssl.create_default_context(cafile=str((ca or self.ca).cert))
        if client:
            context.load_cert_chain(client.cert, client.key)
        return context

    def server_context(self, pair=None, ask_client=None):
        """An ssl context for a scripted peer."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pair = pair or self.server
        context.load_cert_chain(pair.cert, pair.key)
        if ask_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(str(ask_client.cert))
        return context
