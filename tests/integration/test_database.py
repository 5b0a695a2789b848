"""What only several processes at once, a real commit or a real migration show; on both databases."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, inspect, make_url, select, text, update

from db import audit, facts, locks, queue
from db import engine as database
from db.audit import Action
from db.engine import DatabaseAway, Engine, SchemaMismatch, db_now, make_engine, migrate, read_scope, session_scope
from db.queue import JobKind, JobState
from db.tables import Instance, Job, Outcome, Receipt, Series, Study, Table
from tests import crowd
from tests.records import NOON, POLICY, add_image, freeze, judge, make_instance

KEY = b"k" * 32
PROCESSES = 4
EVENTS = 500
JOBS = 400
THREADS = 8
"""Associations that send at once."""


InProcesses = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]


@pytest.fixture(scope="module")
def in_processes() -> Iterator[InProcesses]:
    """Run a function of `tests.crowd` once for each tuple, all at the same time, in processes that are started once."""
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:

        def run(work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
            return [future.result(timeout=120) for future in [pool.submit(work, *given) for given in arguments]]

        yield run


def in_threads(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Run `work(0)` to `work(count - 1)` from one starting line; return what each gave or raised."""
    line, results = threading.Barrier(count), [None] * count

    def run(number: int) -> None:
        line.wait()
        try:
            results[number] = work(number)
        except Exception as error:  # noqa: BLE001 - the test compares whatever came
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results


def count(engine: Engine, kind: type[Table]) -> int:
    with read_scope(engine) as session:
        return session.execute(select(func.count()).select_from(kind)).scalar_one()


# Migrations


def test_migrations_build_exactly_the_tables(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"target_metadata": Table.metadata, "compare_type": True})
        assert compare_metadata(context, Table.metadata) == []


def test_migrations_build_the_partial_indices_and_checks(engine: Engine) -> None:
    """Autogenerate compares neither."""
    with engine.connect() as connection:
        inspector = inspect(connection)
        for table in Table.metadata.sorted_tables:
            wanted = {check.name for check in table.constraints if "Check" in type(check).__name__}
            assert {check["name"] for check in inspector.get_check_constraints(table.name)} == wanted
    with pytest.raises(Exception, match=r"(?i)unique"), session_scope(engine) as session:  # noqa: PT012
        for version in ("1", "2"):
            facts.add_model_version(session, "m", version, version * 64, actor="a", now=NOON)
        session.execute(text("UPDATE model_versions SET state = 'active'"))


def test_migrate_twice_keeps_the_installation(empty_database_url: str) -> None:
    ids = []
    for _ in range(2):
        migrate(empty_database_url)
        engine = make_engine(empty_database_url)
        with read_scope(engine) as session:
            ids.append(facts.installation_id(session))
        engine.dispose()
    assert ids[0] == ids[1]


def test_two_processes_migrate_at_once(empty_database_url: str, in_processes: InProcesses) -> None:
    in_processes(migrate, [(empty_database_url,)] * 2)
    engine = make_engine(empty_database_url)
    database.check_revision(engine)
    engine.dispose()


def test_rejections_keep_their_rows_when_each_sender_gets_its_own(empty_database_url: str) -> None:
    config, engine = database._alembic_config(empty_database_url), make_engine(empty_database_url)
    row = "INSERT INTO rejected_objects VALUES ('1.2', '1.2.3', '113038', '1.2.9', '{}', {}, '2026-12-01 00:00', NULL)"
    senders = text("SELECT calling_ae_title FROM rejected_objects ORDER BY calling_ae_title")
    command.upgrade(config, "2026_12_01_a")
    with session_scope(engine) as session:
        session.execute(text(row.format("PACS", "false")))
    command.upgrade(config, "2026_12_01_b")
    with session_scope(engine) as session:
        session.execute(text(row.format("CR_ROOM_1", "true")))
        assert session.execute(senders).scalars().all() == ["CR_ROOM_1", "PACS"]
    assert inspect(engine).get_pk_constraint("rejected_objects")["name"] == "pk_rejected_objects"
    command.downgrade(config, "2026_12_01_a")
    with read_scope(engine) as session:
        assert session.execute(senders).scalars().all() == ["CR_ROOM_1"], "the word that counts"
    engine.dispose()


def test_study_of_an_older_installation_can_be_held_as_withdrawn(empty_database_url: str) -> None:
    config, engine = database._alembic_config(empty_database_url), make_engine(empty_database_url)

    def hold(value: str) -> None:
        with session_scope(engine) as session:
            session.execute(text("UPDATE studies SET hold = :value"), {"value": value})

    command.upgrade(config, "2026_12_01_c")
    with session_scope(engine) as session:
        add_image(session)
    with pytest.raises(Exception, match="ck_studies_hold"):
        hold("withdrawn")
    command.upgrade(config, "head")
    hold("withdrawn")
    with pytest.raises(Exception, match="ck_studies_hold"):
        hold("whatever")
    command.downgrade(config, "2026_12_01_c")
    with read_scope(engine) as session:
        assert session.execute(text("SELECT hold FROM studies")).scalar_one() == "unidentified"
    engine.dispose()


def test_two_databases_are_two_installations(tmp_path: Path) -> None:
    ids = set()
    for name in ("a", "b"):
        url = f"sqlite:///{tmp_path / name}.sqlite"
        migrate(url)
        with read_scope(make_engine(url)) as session:
            ids.add(facts.installation_id(session))
    assert len(ids) == 2


def test_database_without_tables_is_refused_in_one_line(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url)
    with pytest.raises(SchemaMismatch, match=r"no tables yet.*run `pacs-node migrate`") as refusal:
        database.check_revision(engine)
    assert "\n" not in str(refusal.value)
    engine.dispose()


def test_database_of_another_revision_is_refused_in_one_line(engine: Engine) -> None:
    database.check_revision(engine)
    with session_scope(engine) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '1999_01_01'"))
    with pytest.raises(SchemaMismatch, match=f"is at revision 1999_01_01, .* wants {database.head_revision()}"):
        database.check_revision(engine)


def test_database_of_a_newer_program_is_not_migrated(engine: Engine, database_url: str) -> None:
    with session_scope(engine) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '2999_01_01'"))
    with pytest.raises(SchemaMismatch, match=r"newer program.*2999_01_01"):
        migrate(database_url)


# Transactions


def test_sqlite_keeps_what_it_promises(sqlite_engine: Engine) -> None:
    with read_scope(sqlite_engine) as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_readers_go_on_while_a_writer_writes(sqlite_engine: Engine) -> None:
    with session_scope(sqlite_engine) as writer:
        add_image(writer)
        assert count(sqlite_engine, Study) == 0
    assert count(sqlite_engine, Study) == 1


def test_write_transaction_takes_its_lock_at_the_beginning(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    engine, elsewhere = make_engine(sqlite_url), make_engine(sqlite_url)
    with session_scope(engine) as first:
        first.execute(select(Study.id))
        for other in (engine, elsewhere):
            with pytest.raises(DatabaseAway, match="locked"), session_scope(other) as second:
                second.execute(select(Study.id))
    engine.dispose(), elsewhere.dispose()


def test_error_leaves_no_trace(engine: Engine) -> None:
    with pytest.raises(RuntimeError), session_scope(engine) as session:  # noqa: PT012
        add_image(session)
        raise RuntimeError("crash")
    assert count(engine, Study) == count(engine, Receipt) == 0


def test_reader_sees_one_instant(engine: Engine) -> None:
    with read_scope(engine) as reader:
        assert reader.execute(select(func.count()).select_from(Study)).scalar_one() == 0
        with session_scope(engine) as writer:
            add_image(writer)
        assert reader.execute(select(func.count()).select_from(Study)).scalar_one() == 0


def test_reader_cannot_write_on_postgresql(postgresql_url: str) -> None:
    engine = make_engine(postgresql_url)
    with pytest.raises(Exception, match="read-only"), read_scope(engine) as session:  # noqa: PT012
        add_image(session)
        session.commit()
    engine.dispose()


def test_clock_is_aware_and_goes_on_within_a_transaction(engine: Engine) -> None:
    with session_scope(engine) as session:
        first = db_now(session)
        assert db_now(session) > first
        assert first.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+pg8000://nobody@127.0.0.1:1/none",
        "postgresql+pg8000://nobody@/none?unix_sock=/nowhere/.s.PGSQL.5432",
        "sqlite:////nowhere/at/all/node.sqlite",
    ],
)
def test_unreachable_database_is_away(url: str) -> None:
    for scope in (session_scope, read_scope):
        with pytest.raises(DatabaseAway), scope(make_engine(url)) as session:
            session.execute(text("SELECT 1"))


@pytest.mark.parametrize(
    ("change", "said"), [({"database": "no_such"}, '"no_such" does not exist'), ({"username": "no_one"}, '"no_one"')]
)
def test_server_that_lets_nobody_in_is_away_in_its_own_words(
    postgresql_url: str, change: dict[str, str], said: str
) -> None:
    url = make_url(postgresql_url).set(**change).render_as_string(hide_password=False)
    with pytest.raises(DatabaseAway, match=said):
        database.current_revision(make_engine(url))


def test_full_database_is_away(sqlite_url: str) -> None:
    engine = make_engine(sqlite_url)
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DatabaseAway, match="full"), session_scope(engine) as session:
        audit.append(session, Action.NODE_STARTED, actor="x", details={"text": "x" * 100_000}, now=NOON)
    engine.dispose()


def test_database_that_went_away_comes_back(postgresql_url: str) -> None:
    engine, other = make_engine(postgresql_url), make_engine(postgresql_url)
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> :own"
    with pytest.raises(DatabaseAway), session_scope(engine) as session:  # noqa: PT012
        own = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with other.connect() as killer:
            killer.execute(text(f"{end} AND pid = :victim"), {"own": 0, "victim": own})
        session.execute(text("SELECT 1"))
    assert count(engine, Study) == 0
    engine.dispose(), other.dispose()


def test_bug_in_a_statement_is_no_absence_and_names_no_patient(engine: Engine) -> None:
    with pytest.raises(Exception) as caught, session_scope(engine) as session:  # noqa: PT011
        session.execute(text("INSERT INTO nowhere VALUES (:name)"), {"name": "Doe^Jane"})
    assert not isinstance(caught.value, DatabaseAway)
    assert "Doe" not in str(caught.value)


# Many at once


def test_four_processes_append_while_the_sealer_runs(
    engine: Engine, database_url: str, in_processes: InProcesses
) -> None:
    done, sealed = threading.Event(), []

    def run_sealer() -> None:
        while not done.wait(0.05) or sealed[-1]:
            with session_scope(engine) as session:
                sealed.append(audit.seal(session, KEY))

    sealer = threading.Thread(target=run_sealer)
    sealer.start()
    try:
        in_processes(crowd.append_events, [(database_url, writer, EVENTS) for writer in range(PROCESSES)])
    finally:
        done.set()
        sealer.join(timeout=60)
    with read_scope(engine) as session:
        verdict = audit.verify(session, KEY)
    assert (verdict.sealed, verdict.unsealed, verdict.broken) == (PROCESSES * EVENTS, 0, [])
    assert len([n for n in sealed if n]) > 1, "the sealer ran beside the writers"


def test_two_sealers_at_once_make_one_chain(engine: Engine) -> None:
    with session_scope(engine) as session:
        for _ in range(200):
            audit.append(session, Action.NODE_STARTED, actor="x", now=NOON)

    def seal(_: int) -> int:
        with session_scope(engine) as session:
            return audit.seal(session, KEY, limit=50)

    assert [in_threads(seal, 2) for _ in range(3)] == [[50, 50], [50, 50], [0, 0]]
    with read_scope(engine) as session:
        assert audit.verify(session, KEY).broken == []


def test_eight_associations_send_one_study_and_the_same_image_at_once(engine: Engine) -> None:
    """Each sends 5 images of its own and one that all send, in two series, last or first."""

    def send(number: int) -> list[Outcome]:
        mine = [make_instance(10 * number + i, series_instance_uid=f"1.2.2.{i % 2}") for i in range(1, 6)]
        shared = make_instance(1000)
        outcomes = []
        for new in [shared, *mine] if number % 2 else [*mine, shared]:
            with session_scope(engine) as session:
                outcomes.append(facts.add_instance(session, new, now=db_now(session)).outcome)
        return outcomes

    results = in_threads(send)
    assert [result for result in results if isinstance(result, Exception)] == []
    outcomes = [outcome for result in results for outcome in result]
    images = 5 * THREADS + 1
    assert outcomes.count(Outcome.NEW) == images
    assert outcomes.count(Outcome.DUPLICATE) == THREADS - 1
    assert [count(engine, kind) for kind in (Study, Series, Instance, Job)] == [1, 3, images, images]
    with read_scope(engine) as session:
        kept = facts.counts(session)
    assert kept.adds_up
    assert (kept.received, kept.duplicate) == (images + THREADS - 1, THREADS - 1)


def test_same_image_of_two_studies_at_once_leaves_no_empty_study(engine: Engine) -> None:
    def send(number: int) -> Outcome:
        with session_scope(engine) as session:
            new = make_instance(study_instance_uid=f"1.{number}", sop_instance_uid="1.9", digest=f"{number:064x}")
            return facts.add_instance(session, new, now=db_now(session)).outcome

    outcomes = in_threads(send)
    assert sorted(outcomes) == [Outcome.NEW] + [Outcome.QUARANTINED] * (THREADS - 1)
    assert count(engine, Study) == count(engine, Instance) == 1


def test_four_processes_send_the_same_study_at_once(
    engine: Engine, database_url: str, in_processes: InProcesses
) -> None:
    outcomes = list(chain(*in_processes(crowd.send_study, [(database_url, sender, 15) for sender in range(PROCESSES)])))
    assert (outcomes.count("new"), outcomes.count("duplicate")) == (15, 15 * (PROCESSES - 1))
    assert [count(engine, kind) for kind in (Study, Series, Instance, Job)] == [1, 1, 15, 15]


def test_four_processes_claim_every_job_once(engine: Engine, database_url: str, in_processes: InProcesses) -> None:
    with session_scope(engine) as session:
        study_id = add_image(session).study_id
        for _ in range(JOBS - 1):
            queue.enqueue(session, JobKind.INFER, uuid4(), study_id, now=NOON)
    shares = in_processes(crowd.work_off, [(database_url, f"w{n}") for n in range(PROCESSES)])
    done = list(chain(*shares))
    assert len(done) == len(set(done)) == JOBS
    assert len([share for share in shares if share]) > 1, "they did not work side by side"
    with read_scope(engine) as session:
        assert queue.counts(session) == {(JobKind.INFER, JobState.DONE): JOBS}


def test_claims_beside_each_other_do_not_wait(postgresql_url: str) -> None:
    engine = make_engine(postgresql_url)
    with session_scope(engine) as session:
        for number in range(4):
            add_image(session, number)
    with session_scope(engine) as one, session_scope(engine) as other:
        taken = [
            queue.claim(session, JobKind.INFER, owner="w", limit=2, policy=POLICY, now=db_now(session))
            for session in (one, other)
        ]
    assert len({job.id for jobs in taken for job in jobs}) == 4
    engine.dispose()


def test_result_that_comes_while_its_report_is_frozen_is_not_forgotten(postgresql_url: str) -> None:
    engine = make_engine(postgresql_url)
    with session_scope(engine) as session:
        accepted = add_image(session)
    recorded = threading.Event()

    def record() -> None:
        with session_scope(engine) as session:
            judge(session, accepted.instance_id)
        recorded.set()

    with session_scope(engine) as session:
        facts.study_facts(session, accepted.study_id, lock=True)
        worker = threading.Thread(target=record)
        worker.start()
        assert not recorded.wait(0.3), "the worker waits for the study's lock"
        freeze(session, accepted.study_id)
    worker.join(timeout=30)
    with read_scope(engine) as session:
        assert facts.study_facts(session, accepted.study_id, lock=False).unreported_since is not None
    engine.dispose()


# Locks


def test_task_runs_in_one_place_at_a_time(engine: Engine) -> None:
    with locks.task_lock(engine, "seal", holder="a", for_s=60) as is_ours:
        assert is_ours
        for holder in ("a", "b"):
            with locks.task_lock(engine, "seal", holder=holder, for_s=60) as is_theirs:
                assert not is_theirs
        with locks.task_lock(engine, "purge", holder="b", for_s=60) as is_theirs:
            assert is_theirs
    with locks.task_lock(engine, "seal", holder="b", for_s=60) as is_theirs:
        assert is_theirs


def test_lock_of_a_dead_holder_is_taken_after_its_time(engine: Engine) -> None:
    with locks.task_lock(engine, "seal", holder="a", for_s=0) as is_ours:
        assert is_ours
        with locks.task_lock(engine, "seal", holder="b", for_s=60) as is_theirs:
            assert is_theirs
    with locks.task_lock(engine, "seal", holder="c", for_s=60) as is_ours:
        assert is_ours


def test_lock_is_given_back_when_its_task_fails(engine: Engine) -> None:
    with pytest.raises(RuntimeError), locks.task_lock(engine, "seal", holder="a", for_s=60):
        raise RuntimeError("boom")
    with locks.task_lock(engine, "seal", holder="b", for_s=60) as is_ours:
        assert is_ours


def test_one_of_eight_gets_the_lock(engine: Engine) -> None:
    line = threading.Barrier(THREADS)

    def take(number: int) -> bool:
        with locks.task_lock(engine, "seal", holder=str(number), for_s=60) as is_ours:
            line.wait(timeout=30)
            return is_ours

    assert sorted(in_threads(take)) == [False] * (THREADS - 1) + [True]


def test_backup_of_a_living_sqlite_database_is_whole(sqlite_engine: Engine, tmp_path: Path) -> None:
    with session_scope(sqlite_engine) as session:
        add_image(session)
    copy = tmp_path / "copy.sqlite"
    with sqlite_engine.connect() as connection, sqlite3.connect(copy) as target:
        connection.connection.driver_connection.backup(target)  # type: ignore[union-attr]
    engine = make_engine(f"sqlite:///{copy}")
    database.check_revision(engine)
    assert count(engine, Instance) == 1
    with session_scope(engine) as session:
        session.execute(update(Study).values(revision=0))
    engine.dispose()


def test_sqlite_file_that_is_taken_away_is_missed_at_once_and_never_made_anew(sqlite_url: str, tmp_path: Path) -> None:
    engine = make_engine(sqlite_url)
    path, away = Path(sqlite_url.removeprefix("sqlite:///")), tmp_path / "away.sqlite"
    with session_scope(engine) as session:
        add_image(session)
    path.rename(away)
    for _ in range(3):
        with pytest.raises(DatabaseAway, match="taken away"), session_scope(engine) as session:
            add_image(session, 2)
        with pytest.raises(DatabaseAway, match="taken away"), read_scope(engine) as session:
            facts.counts(session)
    assert not path.exists()
    away.rename(path)
    with session_scope(engine) as session:
        add_image(session, 2)
        assert facts.counts(session).received == 2
    engine.dispose()
