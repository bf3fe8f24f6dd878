"""Labels out of the queue and into it as files: CSV, and Label Studio's JSON.

CSV has a line per row: row_id, cluster, reason, label, annotator. label is the class' name, `unreadable`, or empty.

Label Studio takes a list of tasks, each `{"data": {...}}`, where an <Image value="$image"/> may be a URL or a
`data:image/png;base64,...` URI (HumanSignal/label-studio#6086). We write the URI: a URL behind the desk's token
would have to be fetched by Label Studio's page from another origin, without the token. Its JSON export has the
same tasks with `annotations`, whose results of type "choices" are read here; a cancelled (skipped) one says nothing.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

import sqlalchemy as sa

from models.errors import BadInput
from models.images import data_uri
from pipelines.federated.site_tables import ANNOTATIONS, ITEMS, PICTURES, UNREADABLE
from pipelines.federated.tokens import ANNOTATOR
from pipelines.federated.votes import STANDING, vote

Format = Literal["csv", "label-studio"]
COLUMNS = ("row_id", "cluster", "reason", "label", "annotator")
UNREADABLE_WORD = "unreadable"


@dataclass(frozen=True)
class Taken:
    """What an import did. refused: sentences that name the line (CSV, the header is line 1) or the task (JSON)."""

    new: int
    known: int
    refused: tuple[str, ...]


def format_of(name: str) -> Format:
    """The format of that name.

    Raises:
        BadInput: there is no such format.
    """
    if name not in ("csv", "label-studio"):
        raise BadInput(f"there is no format {name!r}; there are csv and label-studio")
    return "csv" if name == "csv" else "label-studio"


def interface(classes: Sequence[str]) -> str:
    """The labelling interface that a Label Studio project needs for our tasks."""
    choices = "".join(f"<Choice value={quoteattr(name)}/>" for name in (*classes, UNREADABLE_WORD))
    return f'<View><Image name="image" value="$image"/><Choices name="label" toName="image">{choices}</Choices></View>'


def write(database: sa.Engine, classes: Sequence[str], format: Format) -> str:
    """Every row that the queue has, or ever had and has a label, in the order in which they came."""
    with database.connect() as connection:
        items = list(connection.execute(sa.select(ITEMS).order_by(ITEMS.c.item)))
        by = {row.row_id: row.annotator for row in connection.execute(sa.select(ANNOTATIONS))}
        pngs = {row.row_id: row.png for row in connection.execute(sa.select(PICTURES))} if format != "csv" else {}
    newest = {row.row_id: row for row in items if row.label is not None or row.withdrawn_at is None}
    table = [
        (row.row_id, row.cluster, row.reason, _word(row.label, classes), by.get(row.row_id, ""))
        for row in newest.values()
    ]
    if format == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([COLUMNS, *table])
        return text.getvalue()
    tasks = []
    for row in table:
        values = dict(zip(COLUMNS, row, strict=True))
        task: dict[str, Any] = {"data": {"image": data_uri(pngs[row[0]]), **{k: values[k] for k in COLUMNS[:3]}}}
        if values["label"]:
            choice = {"from_name": "label", "to_name": "image", "type": "choices"}
            task["annotations"] = [{"result": [choice | {"value": {"choices": [values["label"]]}}]}]
        tasks.append(task)
    return json.dumps(tasks, indent=1)


def read(
    database: sa.Engine, classes: Sequence[str], text: str, format: Format, annotator: str, trust_names: bool
) -> Taken:
    """Votes from a file; the same file again changes nothing.

    annotator: whose votes they are. trust_names: unless the file names somebody; not from the network, where one
    person could vote as two.

    Raises:
        BadInput: the file is not of that format at all.
    """
    lines = list(_lines(text) if format == "csv" else _tasks(text))
    with database.connect() as connection:
        query = sa.select(ITEMS).where(ITEMS.c.withdrawn_at.is_(None) | ITEMS.c.label.is_not(None))
        items = {row.row_id: row for row in connection.execute(query.order_by(ITEMS.c.item))}
        standing = {
            (row.item, row.annotator): row.choice
            for row in connection.execute(sa.select(STANDING).order_by(STANDING.c.vote))
        }
    number = {name: i for i, name in enumerate(classes)} | {UNREADABLE_WORD: UNREADABLE}
    refused: list[tuple[int, str]] = []
    wanted: dict[str, dict[int, int]] = {}
    where: dict[tuple[str, int], tuple[int, str]] = {}
    known = 0
    for place, (name, row, label, who) in enumerate(lines):
        by = who if trust_names and who else annotator
        if row not in items:
            refused.append((place, f"{name}: the queue has no row {row or '(empty)'}"))
        elif label not in number:
            refused.append((place, f"{name}: there is no class {label!r}; known are {', '.join(number)}"))
        elif not ANNOTATOR.fullmatch(by):
            refused.append((place, f"{name}: {by!r} is no annotator's name"))
        elif number[label] in (items[row].label, standing.get((items[row].item, by))):
            known += 1
        else:
            wanted.setdefault(by, {})[items[row].item] = number[label]
            where[by, items[row].item] = (place, name)
    new = 0
    for by, choices in wanted.items():
        said = vote(database, by, choices, secrets.token_hex(16))
        refused += [(where[by, item][0], f"{where[by, item][1]}: {reason}") for item, reason in said.items()]
        new += len(choices) - len(said)
    return Taken(new, known, tuple(sentence for _, sentence in sorted(refused)))


def _lines(text: str) -> Iterator[tuple[str, str, str, str]]:
    """(which line, row, label, annotator) of a CSV; lines without a label say nothing."""
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in ("row_id", "label") if name not in (reader.fieldnames or ())]
    if missing:
        raise BadInput(f"the CSV has no column {missing[0]!r}; its first line must name row_id and label")
    for line in reader:
        label = (line["label"] or "").strip()
        if label:
            yield (
                f"line {reader.line_num}",
                (line["row_id"] or "").strip(),
                label,
                (line.get("annotator") or "").strip(),
            )


def _tasks(text: str) -> Iterator[tuple[str, str, str, str]]:
    """The same of a Label Studio export (JSON, not JSON-MIN)."""
    try:
        tasks = json.loads(text)
    except ValueError as error:
        raise BadInput(f"this is no JSON ({error}); export the project from Label Studio as JSON") from error
    if not isinstance(tasks, list):
        raise BadInput("a Label Studio export is a list of tasks; export the project as JSON")
    for place, task in enumerate(tasks, 1):
        data = task.get("data") if isinstance(task, dict) else None
        row = str(data.get("row_id", "")) if isinstance(data, dict) else ""
        said = task.get("annotations") if isinstance(task, dict) else None
        for annotation in said if isinstance(said, list) else []:
            if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
                continue
            by = annotation.get("completed_by")
            who = str(by.get("email", by.get("id", ""))) if isinstance(by, dict) else f"label-studio-{by}" if by else ""
            for result in annotation.get("result") or []:
                value = result.get("value") if isinstance(result, dict) else None
                choices = value.get("choices") if isinstance(value, dict) else None
                if isinstance(choices, list) and choices:
                    yield f"task {place}", row, str(choices[0]), who


def _word(label: int | None, classes: Sequence[str]) -> str:
    return "" if label is None else UNREADABLE_WORD if label == UNREADABLE else classes[label]
