"""The real service under inputs that nobody thought of: its own description turned against it, and broken pictures."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from live_service import Serving, register_untrained, serving, settings_in
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from pipelines import release
from pipelines.serving_described import page

PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Iterator[Serving]:
    settings = settings_in(tmp_path_factory.mktemp("fuzz"), empty_registry)
    release.promote(settings, register_untrained(settings).number, "test")
    with serving(settings) as running:
        running.ready()
        yield running


@schemathesis.serializer("application/zip", "image/png", "image/jpeg")
def as_it_is(_: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else getattr(value, "data", None) or repr(value).encode()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_fits_or_contradicts_its_description_is_no_server_error(served: Serving, mode: GenerationMode) -> None:
    asked = set()
    for found in schemathesis.openapi.from_url(f"{served.url}/openapi.json").get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy(generation_mode=mode))
        @examples(max_examples=5, suppress_health_check=list(HealthCheck))
        def no_server_error(case: schemathesis.Case) -> None:
            asked.add(case.path)
            case.call_and_validate(checks=[not_a_server_error])

        with suppress(Unsatisfiable):  # an operation without input cannot be contradicted
            no_server_error()
    assert {"/predict", "/predict/image", "/feedback", "/cases"} <= asked


def test_every_operation_has_an_example_and_stands_on_the_page(served: Serving) -> None:
    made = served.client.get("/openapi.json").json()
    listed = served.client.get("/docs").text
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            assert f"<code>{method.upper()} {path}</code>" in listed
            assert "429" in operation["responses"]
            if not path.startswith("/desk"):
                (answer,) = operation["responses"]["200"]["content"].values()
                assert "example" in answer, (method, path)
    assert "http://" not in listed and "https://" not in listed and "<script" not in listed
    assert page(made) == listed


def saved(kind: str, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 60} if kind == "JPEG" else {}))
    return buffer.getvalue()


@given(
    kind=st.sampled_from(["PNG", "JPEG"]),
    seed=st.integers(0, 9),
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 400) | st.none(),
    tail=st.binary(max_size=40),
)
@examples(max_examples=150, suppress_health_check=list(HealthCheck))
def test_a_mutated_picture_is_answered_or_refused_and_the_next_one_is_answered(
    served: Serving, kind: str, seed: int, edits: list[tuple[int, int]], cut: int | None, tail: bytes
) -> None:
    data = bytearray(saved(kind, seed))
    for where, value in edits:
        data[where % len(data)] = value
    sent = bytes(data)[:cut] + tail
    for path in ("/predict/image?site=s", "/cases?expected=1"):
        said = served.client.post(path, content=sent, headers=PNG)
        assert said.status_code in (200, 422), said.text
        if said.status_code == 422:
            assert said.json()["error"]["message"]
    good = served.client.post("/predict/image?site=s", content=saved("PNG", 1), headers=PNG)
    assert good.status_code == 200, good.text


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_picture_is_refused_wherever_it_was_cut(served: Serving, kind: str) -> None:
    whole = saved(kind, 3)
    for end in random.Random(1).sample(range(len(whole)), 40):
        said = served.client.post("/predict/image?site=s", content=whole[:end], headers=PNG)
        assert said.status_code in (200, 422)
    assert served.client.get("/readyz").status_code == 200
