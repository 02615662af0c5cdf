"""A model hub on loopback that speaks the hub's HTTP API, with a content server on another port.

``python -m tests.support.hub_server --root DIR [--port N]`` serves ``DIR/ORG/REPO/files`` and prints its URL.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from .file_sending import Fault, Handler, Request, Servers, sha256_of

_NAME = r"[A-Za-z0-9._-]+"
_API = re.compile(rf"/api/models/({_NAME}/{_NAME})(?:/(revision|tree)/([^/]+)(?:/(.*))?)?")
_RESOLVE = re.compile(rf"/({_NAME}/{_NAME})/resolve/([^/]+)/(.+)")
_LFS_SUFFIXES = (".gguf", ".bin", ".safetensors")


@dataclass(frozen=True)
class Stated:
    """What the hub says of a file instead of the truth."""

    size: int | None = None
    sha256: str | None = None


class Hub(Servers):
    """``root/ORG/REPO`` served as repositories.

    Args:
        tokens: bearer tokens the hub knows, each with the private or gated repositories it may read.
        private: repositories that exist only for those tokens.
        gated: repositories that everybody sees and only those tokens may download.
    """

    def __init__(
        self,
        root: Path,
        *,
        port: int = 0,
        tokens: Mapping[str, frozenset[str]] | None = None,
        private: frozenset[str] = frozenset(),
        gated: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.root = root
        self.tokens = dict(tokens or {})
        self.private = private
        self.gated = gated
        self.stated: dict[str, Stated] = {}
        self._content = self.start(_ContentHandler, hub=self)
        self._api = self.start(_ApiHandler, port, hub=self)

    @property
    def url(self) -> str:
        return self._api.url

    @property
    def content_url(self) -> str:
        return self._content.url

    @property
    def requests(self) -> list[Request]:
        return self.recorder.requests

    def spoil(self, *faults: Fault) -> None:
        """Let the transfers to come go wrong, in place of earlier orders."""
        self.recorder.faults[:] = faults

    def files(self, repo: str) -> dict[str, Path]:
        folder = self.root / repo
        return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def commit(self, repo: str) -> str:
        """A commit id that changes with the repository's content."""
        listing = [
            (name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in self.files(repo).items()
        ]
        return hashlib.sha1(repr(listing).encode(), usedforsecurity=False).hexdigest()

    def describe(self, repo: str, name: str, path: Path) -> tuple[int, str]:
        """Size and digest as the hub states them."""
        stated = self.stated.get(f"{repo}/{name}", Stated())
        size = stated.size if stated.size is not None else path.stat().st_size
        return size, stated.sha256 or sha256_of(path)


class _ApiHandler(Handler):
    server_label = "hub"
    hub: Hub

    def respond(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        for fault in self.recorder.faults_for(path, server=self.server_label):
            self.refuse_by(fault)
            return
        if match := _API.fullmatch(path):
            if self._may_see(match[1]):
                self._describe(match[1], match[2], parse_qs(url.query))
        elif (match := _RESOLVE.fullmatch(path)) is not None:
            if self._may_see(match[1]) and self._may_download(match[1]):
                self._resolve(match[1], match[2], match[3])
        else:
            self._refuse(404, "NotFound", "Not found")

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _may_see(self, repo: str) -> bool:
        token = self._token()
        if token is not None and token not in self.hub.tokens:
            self._refuse(401, None, "Invalid credentials in Authorization header")
            return False
        known = (self.hub.root / repo).is_dir()
        if not known or (repo in self.hub.private and repo not in self.hub.tokens.get(token or "", ())):
            self._refuse(401 if token is None else 404, "RepoNotFound", "Repository not found")
            return False
        return True

    def _may_download(self, repo: str) -> bool:
        token = self._token()
        if repo not in self.hub.gated or repo in self.hub.tokens.get(token or "", ()):
            return True
        self._refuse(
            401 if token is None else 403,
            "GatedRepo",
            f"Access to model {repo} is restricted and you are not allowed",
        )
        return False

    def _describe(self, repo: str, what: str | None, query: dict[str, list[str]]) -> None:
        entries = []
        for name, path in self.hub.files(repo).items():
            size, sha256 = self.hub.describe(repo, name, path)
            blob = hashlib.sha1(sha256.encode(), usedforsecurity=False).hexdigest()
            is_lfs = name.endswith(_LFS_SUFFIXES)
            if what == "tree":
                lfs = {"lfs": {"oid": sha256, "size": size, "pointerSize": 134}} if is_lfs else {}
                entries.append({"type": "file", "oid": blob, "size": size, "path": name, **lfs})
                continue
            entry: dict[str, object] = {"rfilename": name}
            if "blobs" in query:
                entry |= {"blobId": blob, "size": size}
                if is_lfs:
                    entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
            entries.append(entry)
        if what == "tree":
            self._json(entries)
            return
        self._json(
            {
                "_id": "0" * 24,
                "id": repo,
                "modelId": repo,
                "author": repo.split("/")[0],
                "sha": self.hub.commit(repo),
                "lastModified": "2026-01-31T08:00:00.000Z",
                "createdAt": "2026-01-31T08:00:00.000Z",
                "private": repo in self.hub.private,
                "gated": "manual" if repo in self.hub.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": ["gguf"],
                "siblings": entries,
            }
        )

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        commit = self.hub.commit(repo)
        path = self.hub.files(repo).get(name)
        if revision not in ("main", commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif path is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif name.endswith(_LFS_SUFFIXES):
            size, sha256 = self.hub.describe(repo, name, path)
            self.reply(
                302,
                X_Repo_Commit=commit,
                X_Linked_Size=str(size),
                X_Linked_Etag=f'"{sha256}"',
                ETag=f'"{sha256}"',
                Accept_Ranges="bytes",
                Location=f"{self.hub.content_url}/{repo}/{name}?Signature=abc123&Expires=4102444800",
            )
        else:
            self.reply(200, path.read_bytes(), X_Repo_Commit=commit, ETag=f'"{sha256_of(path)[:40]}"')

    def _json(self, content: object) -> None:
        self.reply(200, json.dumps(content).encode(), Content_Type="application/json; charset=utf-8")

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        named = {"X_Error_Code": code} if code else {}
        self.reply(
            status,
            json.dumps({"error": message}).encode(),
            Content_Type="application/json; charset=utf-8",
            X_Error_Message=message,
            **named,
        )


class _ContentHandler(Handler):
    """The content server: signed links, no tokens (as with S3, a second authentication is an error)."""

    server_label = "files"
    hub: Hub

    def respond(self) -> None:
        url = urlsplit(self.path)
        path = self.hub.root / unquote(url.path).lstrip("/")
        if self.headers.get("Authorization") is not None:
            self.reply(400, b"Only one auth mechanism allowed")
        elif "Signature" not in parse_qs(url.query) or not path.is_file():
            self.reply(403, b"Access denied")
        else:
            self.send_file(path, hashlib.md5(str(path).encode(), usedforsecurity=False).hexdigest())


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    with Hub(arguments.root, port=arguments.port) as hub:
        print(f"hub listening on {hub.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
