"""A certificate authority for tests, by the openssl command: certificates for any name, also expired ones."""

import shutil
import subprocess

MISSING = None if shutil.which("openssl") else "openssl makes the certificates"
_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
_CA = "basicConstraints=critical,CA:TRUE"


def _openssl(command, *more):
    subprocess.run(["openssl"] + command.split() + [str(each) for each in more], check=True, stderr=subprocess.DEVNULL)


class Authority:
    """Signs certificates; `file` is its own one, which its clients trust. All files stand in `folder`."""

    def __init__(self, folder, name="private"):
        self._folder = folder
        self._name = name
        self.file, self._key = str(folder / (name + "-ca.pem")), str(folder / (name + "-ca.key"))
        _openssl("req -x509 %s -days 2" % _KEY, "-subj", "/CN=" + name, "-addext", _CA, "-keyout", self._key,
                 "-out", self.file)  # fmt: skip

    def certificate(self, name, alternative, days=2):
        """Return a file with a certificate and its key. `alternative` is the name in it, such as IP:127.0.0.1.

        With `days` below 0 it has expired.
        """
        request, extensions = self._folder / "request.pem", self._folder / "extensions"
        made, key = self._folder / "made.pem", self._folder / "made.key"
        extensions.write_text("subjectAltName=%s\n" % alternative)
        _openssl("req -new %s" % _KEY, "-subj", "/CN=" + name, "-keyout", key, "-out", request)
        _openssl("x509 -req -CAcreateserial", "-in", request, "-CA", self.file, "-CAkey", self._key, "-days", days,
                 "-extfile", extensions, "-out", made)  # fmt: skip
        file = self._folder / ("%s-%s.pem" % (self._name, name))
        both = made.read_text() + key.read_text()
        replaced = self._folder / "replaced"
        replaced.write_text(both)
        replaced.replace(file)  # as programs that renew certificates do it
        return str(file)
