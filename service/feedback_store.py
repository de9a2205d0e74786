"""The store of what was answered and of labels for it: SQL, in an SQLite file or a PostgreSQL database.

Answers are remembered for a while, so that a label can be joined with what was predicted whichever replica takes it.
Labels stay until they are deleted. Called by service/feedback.py in replicas, and by service/feedback_commands.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import (
    URL,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnElement, Connection, Engine, Row

    from model.tokens import Text as Input

Labelled: TypeAlias = "str | list[str]"  # one label, or all that a text has where labels do not exclude one another
Prediction: TypeAlias = "tuple[Labelled, float]"  # with the score of the best

SCHEMA = MetaData()
ANSWERS = Table(
    "heed_answers",
    SCHEMA,
    Column("request_id", String, primary_key=True),  # chosen by callers: of two, the later is remembered
    Column("key", String, primary_key=True),  # the name of the API key that asked; "" without keys
    Column("at", Double, nullable=False),  # seconds since 1970, of a replica's clock
    Column("text_count", Integer, nullable=False),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("predictions", Text, nullable=False),  # JSON: of each text a Prediction, or null where it failed
    Column("texts", Text),  # JSON, which spells out characters that PostgreSQL has not; null without keep_text
    Index("heed_answers_at", "at", "text_count"),  # all that outdated() reads
)
LABELS = Table(
    "heed_labels",
    SCHEMA,
    Column("request_id", String, primary_key=True),
    Column("key", String, primary_key=True),  # of the answer and of the label: nobody labels what others asked
    Column("index", Integer, primary_key=True),
    Column("answered_at", Double, primary_key=True),  # a label for one answer replaces none of another of that id
    Column("at", Double, nullable=False, index=True),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("label", Text, nullable=False),  # JSON
    Column("predicted", Text, nullable=False),  # JSON
    Column("score", Double, nullable=False),
    Column("text", Text),  # JSON: a string, or a list of two; null where neither request brought it to keep
)
INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
SETUP_LOCK = 0x68656564  # "heed": IF NOT EXISTS alone fails where two replicas create a table at once
WAL_ATTEMPTS = 500
CONNECTIONS = 4
CHUNK = 2000  # requests that one transaction deletes: others write in between
PAGE = 1000  # rows of an export that are in memory


class StoreError(ValueError):
    """The store cannot be used; says why and which, and no value that was to be stored."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered to one request; texts only where they are kept."""

    request_id: str
    key: str
    at: float
    model: str
    version: str
    predictions: Sequence[Prediction | None]
    texts: Sequence[Input] | None


@dataclass(frozen=True, slots=True)
class Label:
    """The label that somebody gave a text, and what the model had said of it."""

    request_id: str
    key: str
    index: int
    answered_at: float
    at: float
    model: str
    version: str
    label: Labelled
    predicted: Labelled
    score: float
    text: Input | None


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A text that was answered, and what was said of it."""

    request_id: str
    index: int
    model: str
    predicted: Labelled
    score: float
    text: Input


@dataclass(frozen=True, slots=True)
class Count:
    """What there is of one model."""

    labels: int
    with_text: int  # the others cannot be trained on
    agreeing: int  # with what was predicted
    remembered: int  # requests whose answers can be labelled


class Store:
    """A store that is open; every method is one transaction or a few, from any thread, and may raise StoreError."""

    def __init__(self, location: str, wait_s: int) -> None:
        """Location as of settings.parse_store(); wait_s bounds the wait for a lock or an answer of the database."""
        self._location = location
        with self._told():
            self._engine = _engine(location, wait_s)
            self._create()

    def _create(self) -> None:
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({SETUP_LOCK})"))
            for table in SCHEMA.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(CreateIndex(index, if_not_exists=True))

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()

    def remember(self, answers: Sequence[Answer]) -> None:
        """Remember answers; of two to one request id of a key the later."""
        rows = [
            {
                "request_id": answer.request_id,
                "key": answer.key,
                "at": answer.at,
                "text_count": len(answer.predictions),
                "model": answer.model,
                "version": answer.version,
                "predictions": _json(answer.predictions),
                "texts": None if answer.texts is None else _json(answer.texts),
            }
            for answer in answers
        ]
        self._put(ANSWERS, rows)

    def answer(self, request_id: str, key: str) -> Answer | None:
        """What was answered to a request of a key, None where that is not remembered."""
        with self._connected() as connection:
            asked = select(ANSWERS).where(ANSWERS.c.request_id == request_id, ANSWERS.c.key == key)
            row = connection.execute(asked).one_or_none()
        return None if row is None else _answer(row)

    def keep(self, label: Label) -> None:
        """Keep a label, in place of an earlier one for the same text of the same answer. It is on disk on return."""
        row = {column.name: getattr(label, column.name) for column in LABELS.columns}
        written = {"label": _json(label.label), "predicted": _json(label.predicted)}
        self._put(LABELS, [{**row, **written, "text": None if label.text is None else _json(label.text)}])

    def labels(self, model: str | None = None, since: float | None = None) -> Iterator[Label]:
        """All labels, of one model and given since a time if asked, oldest first."""
        query = select(LABELS).order_by(LABELS.c.at, LABELS.c.request_id, LABELS.c.index)
        query = query if model is None else query.where(LABELS.c.model == model)
        query = query if since is None else query.where(LABELS.c.at >= since)
        with self._connected() as connection:
            for row in connection.execution_options(yield_per=PAGE).execute(query):
                yield _label(row)

    def unlabelled(self, model: str | None = None) -> Iterator[Unlabelled]:
        """Answered texts that are kept and that nobody has labelled, here or in another request, the latest first."""
        given = select(LABELS.c.request_id, LABELS.c.key, LABELS.c.index, LABELS.c.answered_at)
        texts = select(LABELS.c.text).where(LABELS.c.text.is_not(None))
        query = select(ANSWERS).where(ANSWERS.c.texts.is_not(None)).order_by(ANSWERS.c.at.desc())
        query = query if model is None else query.where(ANSWERS.c.model == model)
        with self._connected() as connection:
            labelled = {tuple(row) for row in connection.execute(given)}
            known = {_text(json.loads(row.text)) for row in connection.execute(texts)}
            for row in connection.execution_options(yield_per=PAGE).execute(query):
                answer = _answer(row)
                for index, (prediction, content) in enumerate(zip(answer.predictions, answer.texts or (), strict=True)):
                    place = (answer.request_id, answer.key, index, answer.at)
                    if prediction and place not in labelled and content not in known:
                        yield Unlabelled(answer.request_id, index, answer.model, *prediction, content)

    def counts(self) -> dict[str, Count]:
        """What there is of each model, by name."""
        agreeing = func.count().filter(LABELS.c.label == LABELS.c.predicted)
        given = select(LABELS.c.model, func.count(), func.count(LABELS.c.text), agreeing).group_by(LABELS.c.model)
        remembered = select(ANSWERS.c.model, func.count()).group_by(ANSWERS.c.model)
        with self._connected() as connection:
            answers = {row[0]: row[1] for row in connection.execute(remembered)}
            labels = {row[0]: (row[1], row[2], row[3]) for row in connection.execute(given)}
        names = sorted(answers.keys() | labels.keys())
        return {name: Count(*labels.get(name, (0, 0, 0)), answers.get(name, 0)) for name in names}

    def outdated(self, before: float, most: int) -> float:
        """The time up to which answers are too old, or of more texts than `most` with the later; seconds since 1970."""
        so_far = func.sum(ANSWERS.c.text_count).over(order_by=ANSWERS.c.at.desc()).label("so_far")
        running = select(ANSWERS.c.at, so_far).subquery()
        beyond = select(func.max(running.c.at)).where(running.c.so_far > most)
        with self._connected() as connection:
            return max(before, connection.execute(beyond).scalar() or before)

    def forget_some(self, until: float) -> int:
        """Delete some of the answers up to a time; how many: 0 once all are."""
        return self._delete_some(ANSWERS, ANSWERS.c.at <= until)

    def delete_request(self, request_id: str) -> int:
        """Delete what is stored of a request id, answers and labels of all keys; how many rows that was."""
        return sum(self._delete(table, table.c.request_id == request_id) for table in (ANSWERS, LABELS))

    def delete_before(self, until: float) -> int:
        """Delete the answers and labels of before a time; how many rows that was."""
        return sum(self._delete(table, table.c.at < until) for table in (ANSWERS, LABELS))

    def _delete(self, table: Table, which: ColumnElement[bool]) -> int:
        """Nothing of it is left in a file of SQLite either, its log included."""
        deleted = sum(iter(lambda: self._delete_some(table, which), 0))
        if self._engine.dialect.name == "sqlite":
            with self._told(), self._engine.connect() as connection:
                connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
        return deleted

    def _delete_some(self, table: Table, which: ColumnElement[bool]) -> int:
        some = select(table.c.request_id).where(which).limit(CHUNK)
        with self._told(), self._engine.begin() as connection:
            return connection.execute(delete(table).where(which, table.c.request_id.in_(some))).rowcount

    def _put(self, table: Table, rows: list[dict[str, Any]]) -> None:
        """Insert, or replace what has the same key."""
        insert = INSERT[self._engine.dialect.name](table)
        changed = {column.name: insert.excluded[column.name] for column in table.columns if not column.primary_key}
        with self._told(), self._engine.begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=table.primary_key, set_=changed), rows)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        with self._told(), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the database as StoreError; one of a value is a bug of ours, and stays what it is."""
        try:
            yield
        except (DataError, IntegrityError):
            raise
        except SQLAlchemyError as error:
            cause = str(error.orig if isinstance(error, DBAPIError) else error).strip()
            raise StoreError(f"the feedback store cannot be used ({cause.splitlines()[0]}): {self._location}") from None


def _engine(location: str, wait_s: int) -> Engine:
    """Connections to the store. Parameters stay out of SQLAlchemy's errors: they are what users sent."""
    if "://" in location:
        if importlib.util.find_spec("psycopg") is None:
            raise StoreError(f"PostgreSQL is reached by psycopg: pip install 'heed[postgres]': {location}")
        wait_ms = 1000 * wait_s
        options = f"-c statement_timeout={wait_ms} -c idle_in_transaction_session_timeout={10 * wait_ms}"
        arguments = {"connect_timeout": wait_s, "options": options}
        return create_engine(
            location,
            connect_args=arguments,
            hide_parameters=True,
            pool_size=CONNECTIONS,
            pool_pre_ping=True,  # a server that was started again is no error
        )
    with contextlib.suppress(OSError):  # said by SQLite
        Path(location).touch(mode=0o600)  # texts and names: its owner's alone
    url = URL.create("sqlite", database=location)
    engine = create_engine(url, connect_args={"timeout": wait_s}, hide_parameters=True, pool_size=CONNECTIONS)
    event.listen(engine, "connect", _set_up)
    return engine


def _set_up(connection: sqlite3.Connection, _: object) -> None:
    """Readers and a writer at once; a commit is on disk; what is deleted is overwritten."""
    for pragma in ("synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")
    for attempt in itertools.count():  # of a new file; SQLite does not wait by itself for others that do the same
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or attempt == WAL_ATTEMPTS:
                raise
            time.sleep(0.01)


def _answer(row: Row[Any]) -> Answer:
    predictions = [None if found is None else (found[0], found[1]) for found in json.loads(row.predictions)]
    texts = None if row.texts is None else [_text(found) for found in json.loads(row.texts)]
    return Answer(row.request_id, row.key, row.at, row.model, row.version, predictions, texts)


def _label(row: Row[Any]) -> Label:
    given = {name: json.loads(row._mapping[name]) for name in ("label", "predicted")}
    return Label(**{**row._mapping, **given, "text": None if row.text is None else _text(json.loads(row.text))})


def _text(found: Any) -> Input:
    return found if isinstance(found, str) else (found[0], found[1])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
