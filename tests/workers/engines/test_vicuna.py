"""A model of exactly Vicuna's layout chats, through a worker and a real Redis."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from workers.engines.transformers import TransformersEngine

PROMPT = (
    "<s>A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: hello ASSISTANT:"
)


@pytest.mark.parametrize("known_by", ["its card", "the option"])
async def test_it_chats_with_the_template_that_it_does_not_ship(
    house, read, vicuna_like, tmp_path, known_by
):
    path = tmp_path / "model"
    path.mkdir()
    for file in vicuna_like.iterdir():
        (path / file.name).symlink_to(file)
    template = "vicuna"
    if known_by == "its card":
        template = None
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").unlink()
        named = config | {"_name_or_path": "lmsys/vicuna-7b-v1.5"}
        (path / "config.json").write_text(json.dumps(named))
    engine = TransformersEngine(str(path), slots=2, dtype="float32", device="cpu")
    await house.worker(engine, model_path=str(path), chat_template=template)
    plane = await house.plane()
    chat = house.job(sampling={"max_tokens": 12})
    text, tokens, end = await read(await plane.owner.open(chat))
    prompt = await engine.tokenizer.encode(PROMPT, add_special=False)
    same = house.job(kind="completion", messages=(), prompt=prompt, sampling={"max_tokens": 12})
    assert (text, tokens) == (await read(await plane.owner.open(same)))[:2]
    assert len(tokens) == 12
    assert end.finish_reason == "length"
