"""LangChain's integration tests of a chat model, against the server at JUDGED_URL.

`run_langchain.py` runs them, in an environment of their own: they bring plugins for pytest.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChat(ChatModelIntegrationTests):
    """Structured output comes by response_format."""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": os.environ["JUDGED_URL"],
            "model": os.environ["JUDGED_MODEL"],
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 256,
            "max_retries": 0,
            "timeout": 300,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestFunctionCalling(TestChat):
    """Structured output comes by a function that must be called."""

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "function_calling"}
