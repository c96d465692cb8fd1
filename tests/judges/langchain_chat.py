"""LangChain's integration tests of a chat model, against the server at JUDGED_URL.

`run_langchain.py` runs them, in an environment of their own: they bring plugins for pytest.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChat(ChatModelIntegrationTests):
    """Everything but structured output."""

    sampling: ClassVar[dict[str, Any]] = {"temperature": 0}

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.sampling | {
            "base_url": os.environ["JUDGED_URL"],
            "model": os.environ["JUDGED_MODEL"],
            "api_key": "none",
            "max_tokens": 200,
            "max_retries": 0,
            "timeout": 300,
            "stream_usage": True,
        }


class TestSchema(TestChat):
    """Structured output by response_format; without the penalty a small model repeats itself."""

    sampling: ClassVar[dict[str, Any]] = {"temperature": 0, "frequency_penalty": 0.5}

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestFunction(TestSchema):
    """Structured output by a function that must be called."""

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "function_calling"}
