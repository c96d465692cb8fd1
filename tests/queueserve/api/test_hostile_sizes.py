"""Bodies that are wrong a hundred thousand times over are refused at their first mistake."""

from __future__ import annotations

import inspect
from importlib import import_module
from pkgutil import iter_modules

import pydantic
import pytest

from queueserve.api import schemas
from queueserve.api.schemas.generation import Schema

MANY = 100_000
ALLOWED = 1_000  # few enough for most fields
FEW = 60  # errors: a union has some for each of its branches


def models() -> list[type[Schema]]:
    found = []
    for module in iter_modules(schemas.__path__):
        members = vars(import_module(f"queueserve.api.schemas.{module.name}")).values()
        found += [
            each
            for each in members
            if inspect.isclass(each)
            and issubclass(each, Schema)
            and each.__module__.endswith(module.name)
        ]
    return found


@pytest.mark.parametrize(
    "wrong", [[1] * MANY, [{}] * MANY, [1] * ALLOWED, {str(at): [] for at in range(MANY)}]
)
@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_no_field_of_any_schema_lists_all_its_mistakes(model, wrong):
    for name, field in model.model_fields.items():
        assert mistakes(model, {field.alias or name: wrong}) < FEW, name


def mistakes(model: type[Schema], body: dict) -> int:
    try:
        model.model_validate(body)
    except pydantic.ValidationError as error:
        return error.error_count()
    return 0


async def test_such_a_request_is_a_400(http):
    for content in ([1] * MANY, [{"type": "text", "text": ""}] * MANY):
        body = {"model": "m", "messages": [{"role": "user", "content": content[:3000]}]}
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith("messages[0].content")
