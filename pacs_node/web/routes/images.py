"""One image: what is known about it, and its picture."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, HTTPException, Query, Request, Response

from db import facts
from db.engine import read_scope
from db.facts import InstanceDetail
from pacs_node.web.context import Web, WebContext
from pacs_node.web.problems import documented
from pacs_node.web.query import refuse
from pacs_node.web.render import SIZE_DEFAULT, SIZE_MAX, SIZE_MIN, Drawing
from pacs_node.web.routes import API
from pacs_node.web.schemas import InstanceOut

router = APIRouter(prefix=f"{API}/instances", tags=["images"], responses=documented(404, 422, 503))

THUMBNAIL = 160
"""Pixels; larger pictures are views of the study, which are audited."""
Size = Annotated[int, Query(ge=SIZE_MIN, le=SIZE_MAX, description="Longest side in pixels; never enlarged.")]
Value = Annotated[
    float, Query(ge=-1e7, le=1e7, allow_inf_nan=False, description="In the image's own units, with `width`.")
]
Width = Annotated[
    float, Query(gt=0, le=1e7, allow_inf_nan=False, description="In the image's own units, with `center`.")
]


@router.get("/{instance_id}", summary="One image in full")
def get_instance(web: WebContext, instance_id: UUID) -> InstanceOut:
    """Return the image's state, results and warnings."""
    instance = detail_of(web, instance_id)
    web.note_view(instance.study_id, "detail")
    own = {name: getattr(instance, name) for name in InstanceOut.model_fields if hasattr(instance, name)}
    of_image = {
        name: getattr(instance.image, name) for name in InstanceOut.model_fields if hasattr(instance.image, name)
    }
    return InstanceOut.model_validate(of_image | own)


@router.get(
    "/{instance_id}/image",
    summary="The image as PNG",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}, 304: {"description": "Not Modified"}},
)
def get_image(
    web: WebContext,
    request: Request,
    instance_id: UUID,
    size: Size = SIZE_DEFAULT,
    center: Value | None = None,
    width: Width | None = None,
) -> Response:
    """Return the radiograph as an 8-bit grey PNG, windowed as the model sees it or by `center` and `width`.

    Above 160 pixels it is a view of the study, which is audited.
    """
    if (center is None) != (width is None):
        raise refuse("center", "center and width belong together")
    window = (center, width) if center is not None and width is not None else None
    instance = detail_of(web, instance_id)
    if size > THUMBNAIL:
        web.note_view(instance.study_id, "image")
    return picture(web, request, instance, size=size, window=window)


def detail_of(web: Web, instance_id: UUID) -> InstanceDetail:
    """Return one image; an unknown one is a 404 by `problems`."""
    with read_scope(web.engine) as session:
        return facts.instance_detail(session, instance_id)


def picture(
    web: Web, request: Request, instance: InstanceDetail, *, size: int, window: tuple[float, float] | None
) -> Response:
    """Return the drawing, or 304 where the browser has it; it asks each time: nothing is shown after a purge."""
    if instance.is_purged:
        raise HTTPException(404, "The input images of this study were purged after the retention time.")
    drawing = Drawing(digest=instance.digest, size=size, window=window)
    headers = {"ETag": drawing.etag, "Cache-Control": "private, no-cache"}
    if drawing.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    png = web.renderer.draw(web.store.absolute(instance.image.path), drawing)
    return Response(png, media_type="image/png", headers=headers)
