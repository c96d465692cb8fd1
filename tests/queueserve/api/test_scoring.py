"""POST /v1/rerank and /v1/score, in the shapes of Jina, Cohere and vLLM."""

from __future__ import annotations

import httpx
import pytest

DOCUMENTS = ["each worker has a slot", "the queue runs fast", "日本語", "the queue runs"]


@pytest.fixture
async def post(api, worker):
    await worker()
    async with httpx.AsyncClient(base_url=api.url) as client:

        async def ask(path: str, **body):
            answer = await client.post(path, json={"model": "m"} | body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        yield ask


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_the_best_comes_first(post, path):
    answer = await post(path, query="the queue runs", documents=DOCUMENTS)
    results = answer["results"]
    assert [one["index"] for one in results][:2] == [3, 1]
    assert results[0]["relevance_score"] == pytest.approx(1)
    scores = [one["relevance_score"] for one in results]
    assert scores == sorted(scores, reverse=True)
    assert all(one["document"] == {"text": DOCUMENTS[one["index"]]} for one in results)
    assert answer["id"].startswith("rerank-")
    assert answer["usage"]["total_tokens"] > 0


async def test_top_n_and_no_texts(post):
    answer = await post(
        "/v1/rerank",
        query="the queue runs",
        documents=[{"text": text} for text in DOCUMENTS],
        top_n=2,
        return_documents=False,
    )
    assert [sorted(one) for one in answer["results"]] == [["index", "relevance_score"]] * 2


async def test_hundreds_of_documents_keep_their_index(post):
    documents = [f"word {n}" for n in range(300)] + ["the queue runs"]
    answer = await post("/v1/rerank", query="the queue runs", documents=documents, top_n=1)
    assert answer["results"][0]["index"] == 300


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
async def test_scores_of_one_against_many_and_of_pairs(post, path):
    many = await post(path, text_1="the queue runs", text_2=DOCUMENTS)
    assert [one["index"] for one in many["data"]] == [0, 1, 2, 3]
    assert many["data"][3]["score"] == pytest.approx(1)
    pairs = await post(path, text_1=DOCUMENTS, text_2=DOCUMENTS)
    assert [one["score"] for one in pairs["data"]] == pytest.approx([1] * 4)
    assert {one["object"] for one in pairs["data"]} == {"score"}
    assert (pairs["object"], pairs["model"]) == ("list", "m")


@pytest.mark.parametrize(
    "path, body, param",
    [
        ("/v1/rerank", {"query": "q", "documents": []}, "documents"),
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": -1}, "top_n"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
    ],
)
async def test_a_wrong_request_names_the_field(http, path, body, param):
    answer = await http.post(path, json={"model": "m"} | body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_moderation_is_not_ours(http):
    answer = await http.post("/v1/moderations", json={"input": "a"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"
