"""The tokenizer of the llama_cpp engine: text to tokens by llama.cpp, tokens to text by us."""

from __future__ import annotations

import httpx

from queueserve.errors import EngineError, InvalidRequestError
from workers.engines.llama_cpp_server import LlamaServer
from workers.engines.llama_cpp_vocabulary import Utf8Detokenizer, Vocabulary


class LlamaCppTokenizer:
    """Encodes through the server's port on this machine, as xllamacpp gives no other way."""

    def __init__(self, server: LlamaServer, vocabulary: Vocabulary) -> None:
        self.chat_template = vocabulary.chat_template
        self.special_tokens = vocabulary.special_tokens
        self._vocabulary = vocabulary
        self._client = httpx.AsyncClient(
            base_url=server.address,
            headers={"Authorization": f"Bearer {server.key}"},
            timeout=60.0,
            trust_env=False,  # no proxy to ourselves
            # The server drops idle connections, and one that is just being dropped is an error.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def encode(self, text: str, *, add_special: bool) -> tuple[int, ...]:
        """Token ids of `text`; special tokens in it are recognised."""
        try:
            response = await self._client.post(
                "/tokenize",
                json={"content": text, "add_special": add_special, "parse_special": True},
            )
            response.raise_for_status()
        except UnicodeEncodeError as error:
            raise InvalidRequestError("the text is not valid Unicode: lone surrogates") from error
        except httpx.HTTPError as error:
            raise EngineError(f"llama.cpp cannot tokenize: {error}") from error
        return tuple(response.json()["tokens"])

    def detokenizer(self) -> Utf8Detokenizer:
        """A new one, for one sequence's output."""
        return Utf8Detokenizer(self._vocabulary)

    async def close(self) -> None:
        """Close what connections there are."""
        await self._client.aclose()
