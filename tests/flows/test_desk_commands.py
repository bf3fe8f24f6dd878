"""The desk's commands: a token opens it, labels go out and come in as files, and what is wrong is a sentence."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import Result
from desk_house import SITE, House, desk_house
from test_cli import fedloop

from pipelines.federated.doubts import Doubt, doubt
from pipelines.federated.queue import progress
from pipelines.federated.tokens import annotator_of
from pipelines.federated.votes import Item, take


@pytest.fixture
def house(tmp_path: Path, empty_registry: Path) -> House:
    return desk_house(tmp_path, empty_registry, clusters=2, each=3)


def ask(house: House, *arguments: str) -> Result:
    return fedloop(*arguments, home=house.settings.home)


def test_a_token_is_one_persons_until_it_is_revoked(house: House) -> None:
    said = ask(house, "desk-token", SITE, "--annotator", "dora")
    assert said.exit_code == 0
    token = said.stdout.strip()
    assert annotator_of(house.database, token) == "dora"
    assert f"/desk?site={SITE}" in said.stderr
    assert "1 of dora's tokens" in ask(house, "desk-token", SITE, "--annotator", "dora", "--revoke").stdout
    assert annotator_of(house.database, token) is None
    assert annotator_of(house.database, house.tokens["anna"]) == "anna"


def test_labels_go_out_and_come_in_and_again_change_nothing(house: House, tmp_path: Path) -> None:
    table = list(csv.DictReader(io.StringIO(ask(house, "labels", "export", SITE).stdout)))
    assert [line["row_id"] for line in table] == house.rows
    file = tmp_path / "labels.csv"
    file.write_text("row_id,label,annotator\n" + "".join(f"{row},{i},ben\n" for i, row in enumerate(house.rows)))
    said = ask(house, "labels", "import", SITE, str(file), "--annotator", "anna")
    assert (said.exit_code, said.stdout) == (0, "6 new labels, 0 known already, 0 refused\n")
    assert house.store.annotations() == {row: i for i, row in enumerate(house.rows)}
    assert progress(house.database, "ben").own == 6
    with file.open("a") as more:
        more.write("nowhere,1,\n")
    again = ask(house, "labels", "import", SITE, str(file), "--annotator", "anna")
    assert (again.exit_code, again.stdout) == (1, "0 new labels, 6 known already, 1 refused\n")
    assert "line 8: the queue has no row nowhere" in again.stderr
    out = tmp_path / "tasks.json"
    told = ask(house, "labels", "export", SITE, "--format", "label-studio", "--out", str(out))
    assert '<Image name="image" value="$image"/>' in told.stderr
    assert len(json.loads(out.read_text())) == 6


def test_suspected_labels_are_asked_for_anew(house: House, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("row_id,label\n" + "".join(f"{row},1\n" for row in house.rows))
    ask(house, "labels", "import", SITE, str(file), "--annotator", "anna")
    assert take(house.database, "ben") is None
    doubt(house.store, "labelling", [Doubt(house.rows[1], 1, 2, 0.1)])
    doubt(house.store, "diagnosis", [Doubt(house.rows[4], 1, 3, 0.2), Doubt(house.rows[1], 1, 2, 0.3)])
    assert "about 1 of them" in ask(house, "labels", "doubt", SITE, "--most", "1").stdout
    said = ask(house, "labels", "doubt", SITE).stdout
    assert "2 labels" in said
    assert "about 1 of them" in said
    assert "asks anew about 0 of them" in ask(house, "labels", "doubt", SITE).stdout
    assert take(house.database, "anna") is None, "it is her label that is doubted"
    asked: list[Item] = []
    while (sheet := take(house.database, "ben", beside=[each.item for each in asked])) is not None:
        asked += sheet.items
    assert {each.row_id for each in asked} == {house.rows[1], house.rows[4]}


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["desk-token", "nosuch", "--annotator", "anna"], ["no site 'nosuch'", SITE]),
        (["desk-token", SITE, "--annotator", "an na"], ["annotator's name"]),
        (["desk-token", SITE, "--annotator", "anna", "--task", "retina"], ["no sites yet", "fedloop ingest"]),
        (["labels", "export", SITE, "--format", "xml"], ["no format 'xml'", "label-studio"]),
        (["labels", "import", SITE, "nowhere.csv", "--annotator", "anna"], ["no file nowhere.csv"]),
    ],
)
def test_what_is_wrong_is_one_sentence(house: House, arguments: list[str], fragments: list[str]) -> None:
    said = ask(house, *arguments)
    assert said.exit_code == 2, said.stdout + said.stderr
    for fragment in fragments:
        assert fragment in said.stderr
