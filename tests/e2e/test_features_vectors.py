"""Embeddings, reranking and scores of a real model, with the official client."""

from __future__ import annotations

import base64
import struct

import openai
import pytest

QUERY = "Where do penguins live?"
DOCUMENTS = ["Bread is baked in an oven.", "Penguins are found in Antarctica."]


@pytest.fixture
def embed(client, up):
    def embed(texts: object, **fields):
        answer = client.embeddings.create(model=up.embeddings, input=texts, **fields)
        assert [one.index for one in answer.data] == list(range(len(answer.data)))
        return [one.embedding for one in answer.data]

    return embed


@pytest.fixture
def post(client, up):
    def post(path: str, **body):
        return client.post(path, body={"model": up.embeddings} | body, cast_to=object)

    return post


def alike(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_what_means_the_same_lies_close(embed):
    query, near, far = embed(["How old are you?", "What is your age?", "Rain fell on the roof."])
    assert alike(query, query) == pytest.approx(1, abs=1e-4)
    assert alike(query, near) > 0.7
    assert alike(query, far) < 0.3


def test_numbers_or_base64(embed, client, up):
    (numbers,) = embed("a cat", encoding_format="float")
    (unpacked,) = embed("a cat")  # the client asks for base64, and unpacks it
    assert unpacked == pytest.approx(numbers, abs=1e-6)
    raw = client.embeddings.with_raw_response.create(
        model=up.embeddings, input="a cat", encoding_format="base64"
    )
    packed = base64.b64decode(raw.http_response.json()["data"][0]["embedding"])
    assert struct.unpack(f"<{len(numbers)}f", packed) == pytest.approx(numbers, abs=1e-6)


def test_fewer_dimensions_are_the_beginning_in_length_one(embed, client, up):
    (whole,), (short,) = embed("a cat"), embed("a cat", dimensions=16)
    assert len(short) == 16
    length = alike(whole[:16], whole[:16]) ** 0.5
    assert short == pytest.approx([value / length for value in whole[:16]], abs=1e-5)
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model=up.embeddings, input="a", dimensions=len(whole) + 1)
    assert error.value.param == "dimensions"


def test_a_thousand_texts_come_back_in_their_order(embed):
    words = [f"{number}" for number in range(1000)]
    all_of_them = embed(words)
    places = [0, 63, 64, 500, 999]  # at the ends of jobs, and between
    for place, vector in zip(places, embed([words[place] for place in places]), strict=True):
        assert alike(vector, all_of_them[place]) > 0.999


def test_token_ids_stand_for_their_text(embed, client, up):
    root = client.with_options(base_url=up.url)
    body = {"model": up.embeddings, "prompt": "a cat"}
    tokens = root.post("/tokenize", body=body, cast_to=object)["tokens"]
    (text,) = embed("a cat")
    assert alike(*embed([tokens, tokens])) == pytest.approx(1, abs=1e-4)
    assert alike(*embed(tokens), text) == pytest.approx(1, abs=1e-3)


def test_what_is_too_long_is_refused_or_cut(embed, client, up):
    long = "a cat and " * 300
    with pytest.raises(openai.BadRequestError) as error:
        embed(long)
    assert error.value.code == "context_length_exceeded"
    answer = client.embeddings.create(
        model=up.embeddings, input=long, extra_body={"truncate_prompt_tokens": -1}
    )
    assert answer.usage.prompt_tokens == client.models.retrieve(up.embeddings).max_model_len
    assert len(answer.data) == 1


def test_the_best_document_comes_first(post):
    ranking = post("/rerank", query=QUERY, documents=DOCUMENTS, return_documents=True)
    assert [one["index"] for one in ranking["results"]] == [1, 0]
    best, other = ranking["results"]
    assert best["document"]["text"] == DOCUMENTS[1]
    assert best["relevance_score"] > 0.5 > other["relevance_score"]
    (only,) = post("/rerank", query=QUERY, documents=DOCUMENTS, top_n=1)["results"]
    assert only["index"] == 1


def test_scores_of_one_text_and_others(post):
    other, best = (one["score"] for one in post("/score", text_1=QUERY, text_2=DOCUMENTS)["data"])
    assert best > 0.5 > other
    (same,) = post("/score", text_1=QUERY, text_2=QUERY)["data"]
    assert same["score"] == pytest.approx(1, abs=1e-4)


def test_a_model_for_vectors_does_not_chat(client, up):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=up.embeddings, prompt="a")
    assert error.value.param == "model"
