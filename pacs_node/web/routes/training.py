"""The way back to training: reviewed studies as de-identified training data, made in the background and downloaded."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import StreamingResponse

from db.audit import Action
from db.engine import db_now, read_scope
from pacs_node.web.access import Role, requires
from pacs_node.web.admin_schemas import NewTrainingExport, TrainingExportOut
from pacs_node.web.context import WebContext
from pacs_node.web.problems import documented
from pacs_node.web.routes import API
from pacs_node.web.training_export import ExportRuns, Wanted, zipped

router = APIRouter(
    prefix=f"{API}/exports/training",
    tags=["exports"],
    responses=documented(422, 503),
    dependencies=[requires(Role.ADMIN)],
)

TAKING_OUT = [requires(Role.ADMIN, password=True)]
ZIP: dict[int | str, dict[str, Any]] = {200: {"content": {"application/zip": {}}}}


@router.post("", summary="Make a training export", status_code=202, dependencies=TAKING_OUT, responses=documented(409))
def start_training_export(web: WebContext, wanted: NewTrainingExport) -> TrainingExportOut:
    """Begin to write the reviewed studies as de-identified training data, as `pacs-node export-reviews` does.

    The export is audited before it can be downloaded, and takes the place of the one before.
    """
    with read_scope(web.engine) as session:
        now = db_now(session)
    asked = Wanted(**wanted.model_dump(), actor=web.caller.actor, address=web.caller.address)
    try:
        return TrainingExportOut.model_validate(web.training.start(asked, now=now))
    except ExportRuns:
        raise HTTPException(409, "Another training export is being made; wait for it.") from None


@router.get("", summary="Where the newest training export stands")
def get_training_export(web: WebContext) -> TrainingExportOut:
    """Return whether one is being made, ready or failed, and what is in it."""
    return TrainingExportOut.model_validate(web.training.standing())


@router.get(
    "/file",
    summary="Download the training export",
    dependencies=TAKING_OUT,
    response_class=StreamingResponse,
    responses=ZIP | documented(404),
)
def get_training_file(web: WebContext) -> StreamingResponse:
    """Return the newest whole export as a ZIP; each download is audited."""
    folder = web.training.folder()
    if folder is None:
        raise HTTPException(404, "There is no training export yet.")
    web.note(Action.REVIEWS_EXPORTED, details={"downloaded": folder.name})
    headers = {"Content-Disposition": f'attachment; filename="{folder.name}.zip"'}
    return StreamingResponse(zipped(folder), media_type="application/zip", headers=headers)
