"""LangChain's integration tests of embeddings, against the server at JUDGED_URL.

`run_embeddings.py` runs them, in an environment of their own: they bring plugins for pytest.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_openai import OpenAIEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests


class TestEmbeddings(EmbeddingsIntegrationTests):
    """Without the check of the context: it would send the ids of OpenAI's own tokens."""

    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {
            "base_url": os.environ["JUDGED_URL"],
            "model": os.environ["JUDGED_MODEL"],
            "api_key": "none",
            "max_retries": 0,
            "timeout": 60,
            "check_embedding_ctx_length": False,
        }
