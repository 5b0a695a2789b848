"""The first image of a device model says so: once, whatever runs twice or at the same time."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import Engine, func, select

from db import facts
from db.engine import Session, db_now, session_scope
from db.facts import SeenDevice
from db.tables import Device
from tests.records import NOON, add_image

FUJI = SeenDevice(manufacturer="FUJI", model_name="CR 1", detector_type="")
PHILIPS = SeenDevice(manufacturer="PHILIPS", model_name="DR 2", detector_type="DIRECT")


def test_first_image_of_a_model_stays_the_first(session: Session) -> None:
    first, second = (add_image(session, number).instance_id for number in (1, 2))
    assert facts.note_devices(session, {first: FUJI}, now=NOON) == {first}
    assert facts.note_devices(session, {second: FUJI}, now=NOON) == set()
    assert facts.note_devices(session, {first: FUJI}, now=NOON) == {first}
    assert session.execute(select(func.count()).select_from(Device)).scalar_one() == 1


def test_models_of_one_batch_are_told_apart_and_the_earliest_image_is_the_first(session: Session) -> None:
    ids = [add_image(session, number).instance_id for number in (1, 2, 3)]
    assert facts.note_devices(session, {ids[0]: PHILIPS, ids[1]: FUJI, ids[2]: PHILIPS}, now=NOON) == set(ids[:2])
    assert facts.note_devices(session, {}, now=NOON) == set()


def test_another_detector_is_another_model(session: Session) -> None:
    first, second = (add_image(session, number).instance_id for number in (1, 2))
    other = SeenDevice(manufacturer="FUJI", model_name="CR 1", detector_type="STORAGE")
    assert facts.note_devices(session, {first: FUJI, second: other}, now=NOON) == {first, second}


def test_text_that_the_database_refuses_is_cleaned(session: Session) -> None:
    first = add_image(session).instance_id
    odd = SeenDevice(manufacturer="A\0\ud800", model_name="", detector_type="")
    assert facts.note_devices(session, {first: odd}, now=NOON) == {first}
    assert facts.note_devices(session, {first: odd}, now=NOON) == {first}


@pytest.mark.parametrize("order", [(FUJI, PHILIPS), (PHILIPS, FUJI)])
def test_workers_that_meet_the_same_models_at_once_agree_on_one_first(
    engine: Engine, order: tuple[SeenDevice, SeenDevice]
) -> None:
    with session_scope(engine) as session:
        now = db_now(session)
        ids = [add_image(session, number, now=now).instance_id for number in range(1, 9)]
    found: list[frozenset] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        devices = dict(zip(ids[2 * number : 2 * number + 2], order if number % 2 else order[::-1], strict=True))
        with session_scope(engine) as session:
            found.append(facts.note_devices(session, devices, now=now))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 4
    assert len(frozenset().union(*found)) == sum(map(len, found)) == 2
