"""A DICOM file of the store as an answer: as it is, as DICOM JSON, or as a page."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import HTTPException, Query, Response
from fastapi.responses import FileResponse

from pacs_node.web.context import Web
from pacs_node.web.dicom_views import as_json, as_page

FileForm = Annotated[
    Literal["dicom", "json", "html"],
    Query(alias="format", description="The file; DICOM JSON without pixels (PS3.18 F); or a page to read."),
]
FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/dicom": {}, "application/dicom+json": {}, "text/html": {}}}
}
BARE_PAGE = "default-src 'none'; frame-ancestors 'none'; sandbox"
"""What a stranger's words are shown under: not even our own scripts run there."""


def dicom_file(web: Web, key: str, *, name: str, form: str, address: str) -> Response:
    """Return a stored file.

    Parameters
    ----------
    key
        In the object store.
    name
        Of the file that a browser saves, without its ending; names no patient.
    address
        Of the file itself, for what DICOM JSON leaves out.

    Raises
    ------
    HTTPException
        404: it is not in the store.
    RenderRefused, RenderBusy
        It cannot be read as DICOM, or too many ask at once.
    """
    path = web.store.absolute(key)
    if not path.is_file():
        raise HTTPException(404, "This file is not in the store.")
    if form == "json":
        return Response(web.renderer.work(as_json, path, address), media_type="application/dicom+json")
    if form == "html":
        page = web.renderer.work(as_page, path)
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": BARE_PAGE})
    return FileResponse(path, media_type="application/dicom", filename=f"{name}.dcm")
