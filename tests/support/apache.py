"""Apache from Debian as a web server behind the balancer: a private instance over TLS.

Decides: what it serves: its name at `/`, a file of a chosen size at `/large`; what is sent to either is thrown away.
Refuses to know: the balancer.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.certs import Issued
from tests.support.ports import free_port
from tests.support.real_servers import RealServer
from tests.support.tools import require, require_root

_MODULES = ("mpm_event", "ssl", "authz_core", "mime", "dir")


class Apache(RealServer):
    """A web server that answers with its name and the name of the virtual host that it was asked for.

    Args:
        certificate: what `https_port` shows.
        large_bytes: size of the file at `/large`, which takes no place on the disk.
    """

    def __init__(self, name: str, certificate: Issued, large_bytes: int = 0) -> None:
        self._program = require("apache2")
        require_root("apache2 becomes a user of its own")
        super().__init__(name)
        self.https_port = free_port()
        self._config = self.folder / "apache.conf"
        pages = self.folder / "pages"
        pages.mkdir()
        pages.chmod(0o755)
        (pages / "index.html").write_text(f"{name} \n")
        with (pages / "large").open("wb") as large:
            large.truncate(large_bytes)
        modules = "".join(f"LoadModule {m}_module /usr/lib/apache2/modules/mod_{m}.so\n" for m in _MODULES)
        self._config.write_text(f"""\
{modules}
ServerName {name}.invalid
ServerRoot {self.folder}
PidFile {self.folder}/pid
ErrorLog {self.log_file}
CustomLog {self.log_file} "%h - - %t \\"%r\\" %>s"
User www-data
Group www-data
Listen 127.0.0.1:{self.https_port}
DocumentRoot {pages}
DirectoryIndex index.html
TypesConfig /dev/null
LimitRequestBody 0
SSLEngine on
SSLCertificateFile {certificate.chain}
SSLCertificateKeyFile {certificate.key}
""")

    def command(self) -> Sequence[str]:
        return [self._program, "-f", str(self._config), "-D", "FOREGROUND"]

    def listening_ports(self) -> Sequence[int]:
        return [self.https_port]
