"""A package index on loopback (the simple repository API), and wheels to put into it."""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .file_sending import Fault, Handler, Servers, sha256_of


def build_wheel(folder: Path, name: str, version: str, files: Mapping[str, bytes]) -> Path:
    """A pure wheel with these members, installable as far as pip can tell."""
    stem = f"{name.replace('-', '_')}-{version}"
    members = {
        **files,
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{member},,\n" for member in members) + f"{stem}.dist-info/RECORD,,\n"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{stem}.dist-info/RECORD", record)
    return path


class PackageIndex(Servers):
    """The wheels of a folder under ``/simple/``.

    Args:
        login: ``user:password`` that everything demands.
        demanding: the name of a project whose pages are refused to everybody.
    """

    def __init__(self, folder: Path, *, login: str | None = None, demanding: str | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.login = login
        self.demanding = demanding
        self._server = self.start(_IndexHandler, index=self)

    @property
    def url(self) -> str:
        return f"{self._server.url}/simple/"

    @property
    def url_with_login(self) -> str:
        return self.url.replace("://", f"://{self.login}@")

    def spoil(self, *faults: Fault) -> None:
        """Let the transfers to come go wrong, in place of earlier orders."""
        self.recorder.faults[:] = faults


class _IndexHandler(Handler):
    index: PackageIndex

    def respond(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if not self._may_read():
            self.reply(401, b"login", WWW_Authenticate='Basic realm="index"')
        elif (page := re.fullmatch(r"/simple/([a-z0-9-]+)/", path)) is not None:
            if page[1] == self.index.demanding:
                self.reply(403, b"forbidden")
            else:
                self._list(page[1])
        elif path.startswith("/files/") and (self.index.folder / Path(path).name).is_file():
            self.request_seen.server = "files"
            file = self.index.folder / Path(path).name
            self.send_file(file, hashlib.md5(file.name.encode(), usedforsecurity=False).hexdigest())
        else:
            self.reply(404, b"not found")

    def _may_read(self) -> bool:
        if self.index.login is None:
            return True
        expected = "Basic " + base64.b64encode(self.index.login.encode()).decode()
        return self.headers.get("Authorization") == expected

    def _list(self, name: str) -> None:
        stem = name.replace("-", "_")
        links = "".join(
            f'<a href="/files/{wheel.name}#sha256={sha256_of(wheel)}">{wheel.name}</a>\n'
            for wheel in sorted(self.index.folder.glob(f"{stem}-*.whl"))
        )
        if links:
            self.reply(
                200, f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), Content_Type="text/html"
            )
        else:
            self.reply(404, b"not found")
