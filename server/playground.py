"""GET / and /static/*: the playground, a page that shows answers forming.

Its files lie beside this module and are read once. The policy in the headers lets the page load
its own files and speak to its own server, and nothing else; it also forbids every way of turning
text into HTML or script, so that what a model writes stays text even if the page had a mistake.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

_FOLDER = Path(__file__).parent / "static"
# Not `mimetypes`: it asks the machine, and a script of the wrong type is not run.
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # Asked for again each time, answered by 304 unless the server was updated.
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file of the page, ready to be sent."""

    content: bytes
    media_type: str
    etag: str


def read_static_files() -> dict[str, StaticFile]:
    """Every file of the page by its name."""
    return {path.name: _read(path) for path in _FOLDER.iterdir() if path.suffix in _MEDIA_TYPES}


def _read(path: Path) -> StaticFile:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return StaticFile(content, _MEDIA_TYPES[path.suffix], etag)


def playground_routes() -> APIRouter:
    """The page and its files."""
    router = APIRouter(include_in_schema=False)
    files = read_static_files()

    @router.api_route("/", methods=["GET", "HEAD"])
    async def show_playground(request: Request) -> Response:
        return _send(files["index.html"], request)

    @router.api_route("/static/{name}", methods=["GET", "HEAD"])
    async def send_static_file(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404, f"the playground has no file {name[:100]!r}")
        return _send(files[name], request)

    return router


def _send(file: StaticFile, request: Request) -> Response:
    headers = {**_HEADERS, "etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
