"""The desk over real sockets: nobody without a token, nothing from elsewhere, labels in and out as files."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from desk_house import SITE, House, desk_house
from hypothesis import given
from hypothesis import strategies as st
from live_service import serving

from models.errors import BadInput
from models.images import content_hash
from pipelines.desk import exchange
from pipelines.desk.router import RESERVED, keys_of
from pipelines.federated.site_tables import TOKENS, UNREADABLE
from pipelines.federated.tokens import annotator_of, make_token, revoke_tokens

DESK = f"/desk?site={SITE}"
ADDRESSES = [
    ("GET", "api/desk"), ("POST", "api/sheet"), ("POST", "api/votes"), ("POST", "api/undo"), ("GET", "api/labels"),
    ("POST", "api/labels"), ("GET", "picture/{row}"), ("POST", "logout"),
]  # fmt: skip


@pytest.fixture
def house(tmp_path: Path, empty_registry: Path) -> House:
    return desk_house(tmp_path, empty_registry, clusters=3, each=4)


@pytest.fixture
def client(house: House) -> Iterator[httpx.Client]:
    with serving(house.settings) as running:
        yield running.client


def to(path: str, site: str = SITE) -> str:
    return f"/desk/{path}?site={site}"


def login(client: httpx.Client, token: str, **headers: str) -> httpx.Response:
    return client.post("/desk/login", data={"site": SITE, "token": token}, headers=headers)


def label_sheet(client: httpx.Client, who: dict[str, str], choice: int, action: str) -> dict[str, int]:
    sheet = client.post(to("api/sheet"), json={}, headers=who).json()["sheet"]
    votes = {str(each["item"]): choice for each in sheet["items"]}
    answer = client.post(to("api/votes"), json={"action": action, "votes": votes}, headers=who)
    assert answer.json()["refused"] == {}
    return votes


def test_without_the_sites_token_every_address_is_shut(house: House, client: httpx.Client) -> None:
    other = make_token(house.database, "dora")
    revoke_tokens(house.database, "dora")
    for token in ("", "wrong", other, house.tokens["anna"][:-1]):
        for site in (SITE, "nosuch", "../clinic-1", "."):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            if token.startswith(house.tokens["anna"]) and site == SITE:
                continue
            for method, path in ADDRESSES:
                said = client.request(method, to(path.format(row=house.rows[0]), site), headers=headers)
                assert said.status_code == 401, (token, site, path)
                assert "token" in said.json()["error"]["message"]
                assert "Bearer" in said.headers["www-authenticate"]
    page = client.get(DESK)
    assert page.status_code == 401
    assert "<form" in page.text
    for row in house.rows:
        assert row not in page.text


def test_only_the_hash_of_a_token_is_kept(house: House) -> None:
    with house.database.connect() as connection:
        kept = str(list(connection.execute(TOKENS.select())))
    assert not any(token in kept for token in house.tokens.values())
    assert (
        b"".join(path.read_bytes() for path in house.store.root.glob("site.db*")).find(house.tokens["anna"].encode())
        < 0
    )
    assert annotator_of(house.database, house.tokens["ben"]) == "ben"
    assert annotator_of(house.database, "") is None
    with pytest.raises(BadInput, match="annotator's name"):
        make_token(house.database, "anna, ben")


def test_a_person_logs_in_once_and_the_cookie_is_for_the_desk_alone(house: House, client: httpx.Client) -> None:
    wrong = login(client, "nonsense")
    assert wrong.status_code == 401
    assert "does not open this site" in wrong.text
    said = login(client, house.tokens["anna"])
    assert said.status_code == 303
    cookie = said.headers["set-cookie"].lower()
    for part in ("httponly", "samesite=strict", "path=/desk"):
        assert part in cookie
    page = client.get(DESK)
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http" not in page.text.replace("http-equiv", ""), "the page takes nothing from elsewhere"
    assert client.get(to("api/desk")).json()["annotator"] == "anna"
    # A browser that is logged in may be led here by another page: that page must not be able to vote.
    for headers in (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
    ):
        refused = client.post(to("api/undo"), headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "elsewhere")
        assert login(client, house.tokens["ben"], **headers).status_code == 403
    assert client.post(to("api/undo"), headers={"sec-fetch-site": "same-origin"}).status_code == 200
    client.post(to("logout"))
    client.cookies.clear()
    assert client.get(DESK).status_code == 401


def test_what_a_page_would_break_on_is_shown_as_text(client: httpx.Client) -> None:
    page = client.get('/desk?site="><script>alert(1)</script>')
    assert page.status_code == 401
    assert "<script>" not in page.text


def test_sheets_votes_and_undo(house: House, client: httpx.Client) -> None:
    anna = house.bearer("anna")
    desk = client.get(to("api/desk"), headers=anna).json()
    assert desk["progress"] == {"total": 12, "labelled": 0, "unreadable": 0, "disputed": 0, "own": 0, "open": 12}
    assert [each["key"] for each in desk["classes"]] == list("0123456789")
    first = client.post(to("api/sheet"), json={}, headers=anna).json()["sheet"]
    assert [each["row"] for each in first["items"]] == house.rows[:4]
    assert len(first["neighbours"]) == 4
    png = client.get(to(f"picture/{house.rows[0]}"), headers=anna)
    assert content_hash(png.content) == house.rows[0]
    assert "immutable" in png.headers["cache-control"]
    assert "private" in png.headers["cache-control"]
    assert client.get(to("picture/" + "0" * 32), headers=anna).status_code == 404
    votes = label_sheet(client, anna, 7, "action-1")
    assert house.store.annotations() == dict.fromkeys(house.rows[:4], 7)
    late = client.post(to("api/votes"), json={"action": "action-2", "votes": votes}, headers=house.bearer("ben"))
    assert set(late.json()["refused"].values()) == {"others have labelled it meanwhile"}
    undone = client.post(to("api/undo"), headers=anna).json()
    assert undone["items"] == [int(item) for item in votes]
    assert house.store.annotations() == {}
    assert client.post(to("api/undo"), headers=anna).json()["items"] == []
    for wrong in ({"action": "action-3", "votes": {"1": 10}}, {"action": "action-3", "votes": {"1": -2}}):
        said = client.post(to("api/votes"), json=wrong, headers=anna)
        assert said.status_code == 422
        assert "no class" in said.json()["error"]["message"]
    for broken in ({}, {"action": "x", "votes": {"1": 1}}, {"action": "action-4", "votes": {}}, {"votes": {"a": 1}}):
        assert client.post(to("api/votes"), json=broken, headers=anna).status_code == 422


def test_labels_go_out_and_come_back_as_csv(house: House, client: httpx.Client) -> None:
    anna, ben = house.bearer("anna"), house.bearer("ben")
    label_sheet(client, anna, 7, "action-1")
    label_sheet(client, anna, UNREADABLE, "action-2")
    table = list(csv.DictReader(io.StringIO(client.get(to("api/labels"), headers=anna).text)))
    assert [line["row_id"] for line in table] == house.rows
    assert [line["label"] for line in table] == ["7"] * 4 + ["unreadable"] * 4 + [""] * 4
    assert {line["annotator"] for line in table} == {"anna", ""}
    file = "\n".join(
        ["row_id,label,annotator", f"{house.rows[8]},3,anna", "nowhere,3,", f"{house.rows[9]},eleven,",
         f"{house.rows[10]},,", f"{house.rows[0]},5,", f'{house.rows[11]},unreadable,']
    )  # fmt: skip
    said = client.post(to("api/labels"), content=file, headers=ben).json()
    assert (said["new"], said["known"]) == (2, 0)
    assert [sentence.partition(":")[0] for sentence in said["refused"]] == ["line 3", "line 4", "line 6"]
    words = ("no row nowhere", "no class 'eleven'", "others have labelled")
    for word, sentence in zip(words, said["refused"], strict=True):
        assert word in sentence
    assert house.store.annotations()[house.rows[8]] == 3
    again = client.post(to("api/labels"), content=file, headers=ben).json()
    assert (again["new"], again["known"], again["refused"]) == (0, 2, said["refused"])
    out = list(csv.DictReader(io.StringIO(client.get(to("api/labels"), headers=anna).text)))
    assert out[8]["annotator"] == "ben", "over the network a file does not vote for somebody else"
    assert client.post(to("api/labels"), content="a,b\n1,2", headers=ben).status_code == 422


def test_label_studio_gets_whole_pictures_and_its_export_comes_back(house: House, client: httpx.Client) -> None:
    ben = house.bearer("ben")
    tasks = client.get(to("api/labels") + "&format=label-studio", headers=ben).json()
    assert [task["data"]["row_id"] for task in tasks] == house.rows
    kind, _, data = tasks[0]["data"]["image"].partition(",")
    assert kind == "data:image/png;base64"
    assert content_hash(base64.b64decode(data)) == house.rows[0]

    def answered(task: dict[str, object], choice: str, by: object = 4, **more: object) -> dict[str, object]:
        result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}
        said = {"result": [result], "completed_by": by, "was_cancelled": False} | more
        return task | {"id": 1, "annotations": [said]}

    export = [
        answered(tasks[0], "4"),
        answered(tasks[1], "unreadable", {"id": 2, "email": "cem@clinic.example"}),
        answered(tasks[2], "4", was_cancelled=True),
        answered(tasks[3], "no such class"),
        {"data": {"image": "x"}, "annotations": [{"result": [{"value": {"choices": ["4"]}}]}]},
        "no task", {"annotations": None}, tasks[4],
    ]  # fmt: skip
    classes = house.settings.task.classes
    taken = exchange.read(house.database, classes, json.dumps(export), "label-studio", "ben", trust_names=True)
    assert (taken.new, taken.known) == (2, 0)
    assert [sentence.partition(":")[0] for sentence in taken.refused] == ["task 4", "task 5"]
    assert house.store.annotations() == {house.rows[0]: 4}
    assert exchange.read(house.database, classes, json.dumps(export), "label-studio", "ben", True).known == 2
    back = client.get(to("api/labels") + "&format=label-studio", headers=ben).json()
    assert back[0]["annotations"][0]["result"][0]["value"]["choices"] == ["4"]
    # What we wrote ourselves is read as it stands.
    own = exchange.read(house.database, classes, json.dumps(back), "label-studio", "ben", True)
    assert (own.new, own.known, own.refused) == (0, 2, ())
    for nothing in ("{", "{}", "3"):
        said = client.post(to("api/labels") + "&format=label-studio", content=nothing, headers=ben)
        assert said.status_code == 422
        assert "Label Studio" in said.json()["error"]["message"]


names = st.lists(st.text("abcdefgh0123456789", min_size=1, max_size=6), min_size=1, max_size=50, unique=True)


@given(classes=names)
def test_every_key_is_one_classes_own_and_none_of_the_pages(classes: list[str]) -> None:
    keys = [key for key in keys_of(tuple(classes)) if key]
    assert len(keys) == len(set(keys)) == min(len(classes), 10 + 26 - len(RESERVED))
    assert not set(keys) & {*RESERVED, "?", " "}
    if {*classes} <= {*"0123456789"}:
        assert keys == classes
