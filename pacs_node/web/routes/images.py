"""Images: lists, one in full, its picture, its DICOM file, and judging it once more."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, HTTPException, Query, Request, Response

from db import facts
from db.audit import Action
from db.engine import db_now, read_scope
from db.facts import InstanceDetail
from pacs_node.web.access import Role, requires
from pacs_node.web.admin_schemas import Done
from pacs_node.web.context import Web, WebContext
from pacs_node.web.dicom_files import FILE, FileForm, dicom_file
from pacs_node.web.listing import Listed, OfImages, page_for
from pacs_node.web.problems import documented
from pacs_node.web.query import refuse
from pacs_node.web.render import SIZE_DEFAULT, SIZE_MAX, SIZE_MIN, THUMBNAIL, Drawing, Form
from pacs_node.web.routes import API
from pacs_node.web.schemas import InstanceLine, InstanceOut, Page

router = APIRouter(
    prefix=f"{API}/instances",
    tags=["images"],
    responses=documented(404, 422),
    dependencies=[requires(Role.RADIOLOGIST, Role.ADMIN, Role.SERVICE)],
)

Size = Annotated[int, Query(ge=SIZE_MIN, le=SIZE_MAX, description="Longest side in pixels; never enlarged.")]
Value = Annotated[
    float,
    Query(ge=-1e7, le=1e7, allow_inf_nan=False, examples=[2048], description="In the image's own units, with `width`."),
]
Width = Annotated[
    float,
    Query(gt=0, le=1e7, allow_inf_nan=False, examples=[4096], description="In the image's own units, with `center`."),
]
Overlay = Annotated[
    Literal["heatmap", "heatmap-layer"] | None,
    Query(
        description="Where the model saw its finding: `heatmap` lies over the image, in red to yellow; `heatmap-layer` "
        "is the heat map alone, as clear as the place is cold, to be laid over an image."
    ),
]
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"image/png": {}, "image/webp": {}},
        "headers": {
            "VOI-Window": {
                "description": "Centre and width in the image's own units, where they come from (`voi`), and the "
                "stored image's rows and columns: a dictionary of RFC 9651.",
                "schema": {"type": "string"},
            }
        },
    },
    304: {"description": "Not Modified"},
}


@router.get("", summary="List images")
def list_instances(web: WebContext, asked: Listed, wanted: OfImages) -> Page[InstanceLine]:
    """Return one page of images, the last received first; `state=failed` lists what can be run again."""
    with read_scope(web.engine) as session:
        found = facts.list_instances(session, asked, **wanted)
    return page_for(web, InstanceLine, "images", asked, found)


@router.get("/{instance_id}", summary="One image in full")
def get_instance(web: WebContext, instance_id: UUID) -> InstanceOut:
    """Return the image's state, results and warnings; the view is audited."""
    instance = detail_of(web, instance_id)
    web.note_view(instance.study_id, "detail")
    own = {name: getattr(instance, name) for name in InstanceOut.model_fields if hasattr(instance, name)}
    of_image = {
        name: getattr(instance.image, name) for name in InstanceOut.model_fields if hasattr(instance.image, name)
    }
    return InstanceOut.model_validate(of_image | own)


@router.get("/{instance_id}/image", summary="The image as PNG or WebP", response_class=Response, responses=PICTURE)
def get_image(
    web: WebContext,
    request: Request,
    instance_id: UUID,
    size: Size = SIZE_DEFAULT,
    center: Value | None = None,
    width: Width | None = None,
    overlay: Overlay = None,
    form: Annotated[Form, Query(alias="format")] = "png",
) -> Response:
    """Return the radiograph as an 8-bit picture, windowed as the model sees it or by `center` and `width`.

    Above 160 pixels it is a view of the study, which is audited; smaller, it is one of a list. A heat map
    is there once one was drawn; until then asking for it is answered by 404.
    """
    if (center is None) != (width is None):
        raise refuse("center", "center and width belong together")
    window = (center, width) if center is not None and width is not None else None
    instance = detail_of(web, instance_id)
    heatmap = _heatmap(web, instance_id) if overlay else None
    if size > THUMBNAIL:
        web.note_view(instance.study_id, "image")
    else:
        web.note_list("thumbnails")
    is_layer = overlay == "heatmap-layer"
    drawing = Drawing(digest=instance.digest, size=size, window=window, form=form, heatmap=heatmap, is_layer=is_layer)
    return picture(web, request, instance, drawing)


@router.get("/{instance_id}/dicom", summary="The image's DICOM file", response_class=Response, responses=FILE)
def get_dicom(web: WebContext, instance_id: UUID, form: FileForm = "dicom") -> Response:
    """Return the file as it was received, as DICOM JSON, or as a page to read; audited, for it names the patient."""
    instance = detail_of(web, instance_id)
    if instance.is_purged:
        raise HTTPException(404, "The input images of this study were purged after the retention time.")
    web.note(Action.DICOM_FETCHED, instance_id, {"study_id": str(instance.study_id), "form": form})
    return dicom_file(
        web, instance.image.path, name=str(instance_id), form=form, address=f"{router.prefix}/{instance_id}/dicom"
    )


@router.post(
    "/{instance_id}/rerun",
    summary="Judge the image once more",
    status_code=202,
    responses=documented(409),
    dependencies=[requires(Role.ADMIN)],
)
def rerun(web: WebContext, instance_id: UUID) -> Done:
    """Queue the image for the model that is active now; what was said about it stands until then. Audited."""
    with web.change() as session:
        now = db_now(session)
        study_id = facts.rerun_instance(session, instance_id, actor=web.caller.actor, now=now)
    return Done(study_id=study_id, subject_id=instance_id, detail="The image waits to be judged again.")


def detail_of(web: Web, instance_id: UUID) -> InstanceDetail:
    """Return one image; an unknown one is a 404 by `problems`."""
    with read_scope(web.engine) as session:
        return facts.instance_detail(session, instance_id)


def picture(web: Web, request: Request, instance: InstanceDetail, drawing: Drawing) -> Response:
    """Return the drawing, or 304 where the browser has it; it asks each time: nothing is shown after a purge."""
    if instance.is_purged:
        raise HTTPException(404, "The input images of this study were purged after the retention time.")
    headers = {"ETag": drawing.etag, "Cache-Control": "private, no-cache"}
    if drawing.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    drawn = web.renderer.draw(web.store.absolute(instance.image.path), drawing)
    headers["VOI-Window"] = drawn.header
    return Response(drawn.content, media_type=f"image/{drawing.form}", headers=headers)


def _heatmap(web: Web, instance_id: UUID) -> str:
    with read_scope(web.engine) as session:
        key = facts.heatmap_of(session, instance_id)
    path = web.store.absolute(key) if key else None
    if path is None or not path.is_file():
        raise HTTPException(404, "No heat map was drawn for this image, or it was purged.")
    return str(path)
