"""Draw the README's pictures of the pages: `python -m tests.screenshots`. Synthetic names, invented scores.

Radiographs: Kermany, Zhang, Goldbaum, doi 10.17632/rscbjbr9sj, CC BY 4.0.
"""

from __future__ import annotations

import io
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from db.engine import make_engine, migrate
from db.facts import WarningFacts
from db.tables import DeliveryState
from models.codes import CODES
from pacs_node.settings import NodeSettings, Settings
from pacs_node.settings.web import WebSettings
from pacs_node.wiring import active_card, registry_of
from tests.browser import folder_of_pictures, is_shown, reader_at, running_browser, until
from tests.builders import as_bytes, data_folder, radiograph_from_jpeg
from tests.web_world import LATERAL, UNKNOWN_VIEW, World, free_port, make_world, serving

POINT = {"threshold": 0.52, "abstain_low": 0.40, "abstain_high": 0.62}
COLOURS, BYTES_MAX = (128, 64, 32, 16), 150_000
"""Of the saved pictures: as many colours as these bytes can hold."""


if TYPE_CHECKING:
    from playwright.sync_api import Page


class Case(NamedTuple):
    """One study: who, which file, the invented score (None = not analysed), what else is known."""

    name: str
    file: str
    probability: float | None
    minutes: int
    note: WarningFacts | None = None
    age: int = 3
    is_urgent: bool = False
    delivery: DeliveryState = DeliveryState.SENT


AGE = WarningFacts(
    code="age_outside_card",
    severity="forbids",
    text=CODES["age_outside_card"].text.format(ages="1 to 5 and 18 to 90 years"),
)
CASES = (
    Case("ALDER^Demo", "PNEUMONIA/person1147_virus_1917.jpeg", 0.94, 11, UNKNOWN_VIEW, is_urgent=True),
    Case("ELM^Demo", "NORMAL/IM-0552-0001.jpeg", None, 6, AGE, age=9, is_urgent=True),
    Case("CEDAR^Demo", "PNEUMONIA/person1343_bacteria_3415.jpeg", 0.97, 46),
    Case("BIRCH^Demo", "PNEUMONIA/person279_bacteria_1315.jpeg", 0.88, 30, delivery=DeliveryState.FAILED),
    Case("DOGWOOD^Demo", "PNEUMONIA/person1488_virus_2592.jpeg", 0.71, 24, delivery=DeliveryState.WAITING),
    Case("FIR^Demo", "PNEUMONIA/person849_virus_1494.jpeg", 0.55, 39),
    Case("GINKGO^Demo", "PNEUMONIA/person1449_bacteria_3743.jpeg", None, 27, LATERAL),
    Case("LARCH^Demo", "PNEUMONIA/person438_bacteria_1893.jpeg", 0.19, 50),
    Case("MAPLE^Demo", "NORMAL/IM-0552-0001.jpeg", 0.09, 33),
)


def main() -> None:
    """Write the pictures of worklist, reading and quality page."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = Settings(node=NodeSettings(data_dir=root), web=WebSettings(port=free_port(), authentication="off"))
        migrate(settings.database_url)
        engine = make_engine(settings.database_url)
        world = make_world(engine, root, root / "none")
        card = active_card(engine, registry_of(settings))
        model = {"model_name": card.name, "model_version": card.version}
        first, *_ = [_add(world, number, case, model) for number, case in enumerate(CASES, start=1)]
        with (
            serving(settings) as url,
            running_browser() as browser,
            reader_at(browser, url, width=1280, height=800) as (page, _),
        ):
            for name, address in (("worklist", "/"), ("study", f"/studies/{first}"), ("quality", "/quality")):
                page.goto(address)
                if name == "study":
                    is_shown(page)
                _save(page, name)


def _add(world: World, number: int, case: Case, model: dict[str, str]) -> object:
    born = f"{datetime.now(UTC).year - case.age}0412"
    who = {"patient_name": case.name, "patient_id": f"SYN-{400 + number}", "accession_number": f"A-2204{number:02}"}
    path = data_folder("originals") / case.file
    common = who | {
        "study": f"1.2.{number}",
        "patient_birth_date": born,
        "calling_ae_title": f"CR_ROOM_{number % 2 + 1}",
    }
    common |= {"priority": int(case.is_urgent), "minutes_ago": case.minutes, "study_description": "XR chest"}
    common |= {"study_date": datetime.now(UTC).date()}
    received = world.receive(number, data=as_bytes(radiograph_from_jpeg(path, seed=number)), **common)
    world.judge(received.instance_id, case.probability, [case.note] if case.note else [], **POINT, **model)
    if number == 1:
        lateral = data_folder("originals") / CASES[6].file
        other = world.receive(100, data=as_bytes(radiograph_from_jpeg(lateral, seed=100)), **common)
        world.judge(other.instance_id, None, [LATERAL])
    world.report(received.study_id, case.delivery, "No association: connection refused.")
    return received.study_id


def _save(page: Page, name: str) -> None:
    until(page, "[...document.images].every((image) => image.hidden || (image.complete && image.naturalWidth))")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = folder_of_pictures() / f"{name}.png"
    for colours in COLOURS:
        picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= BYTES_MAX:
            return
    raise AssertionError(f"{path.name} has {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
