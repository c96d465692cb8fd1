"""Encoders of transformers in memory: texts to vectors, or pairs of texts to scores.

Everything here blocks, and is called in one thread at a time.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from queueserve.errors import EngineError
from workers.engines.encoder_files import Pooling, Recipe, recipe_files, recipe_of
from workers.engines.fingerprint import fingerprint
from workers.engines.loading import checkpoint_files
from workers.engines.pooling import Pair
from workers.engines.transformers_placement import device_of
from workers.engines.transformers_tokenizer import TransformersTokenizer

Model: TypeAlias = Any  # a PreTrainedModel: transformers is not followed by mypy
Tensor: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model that is ready to run."""

    model: Model
    tokenizer: TransformersTokenizer
    backend: Any  # transformers' own tokenizer
    pooling: Pooling
    context: int
    fingerprint: str

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        return int(self.model.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows: ids are below it."""
        return int(self.model.config.vocab_size)

    def pair(self, query: str, text: str, limit: int | None) -> Pair:
        """Return two texts as one input, cut to `limit` tokens: the longer one first."""
        fast = self.backend.backend_tokenizer
        first, second = (fast.encode(one, add_special_tokens=False) for one in (query, text))
        room = (
            sys.maxsize if limit is None else max(0, limit - fast.num_special_tokens_to_add(True))
        )
        kept = min(len(first), max(room - len(second), (room + 1) // 2))
        first.truncate(kept)
        second.truncate(min(len(second), room - kept))
        whole = fast.post_process(first, second, True)
        return Pair(tuple(whole.ids), tuple(whole.type_ids))

    def embed(self, inputs: list[tuple[int, ...]]) -> list[array[float]]:
        """Return the inputs' vectors, of length 1."""
        with torch.inference_mode():
            ids, mask = self._padded(inputs)
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            vectors = torch.nn.functional.normalize(_pooled(hidden, mask, self.pooling).float())
            rows = vectors.cpu().contiguous().numpy()
        return [array("f", row.tobytes()) for row in rows]

    def score(self, pairs: list[Pair]) -> list[float]:
        """Return the pairs' scores: the model's own logit, or 0 to 1 where it is a probability."""
        with torch.inference_mode():
            ids, mask = self._padded([pair.tokens for pair in pairs])
            types = {}
            if getattr(self.model.config, "type_vocab_size", 0) > 1:
                types["token_type_ids"], _ = self._padded([pair.types for pair in pairs], pad=0)
            logits = self.model(input_ids=ids, attention_mask=mask, **types).logits[:, 0].float()
            if not _is_raw(self.model.config):
                logits = logits.sigmoid()
            scores: list[float] = logits.cpu().tolist()
        return scores

    def _padded(
        self, rows: Sequence[tuple[int, ...]], *, pad: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the rows as one tensor, padded on the right, and the mask of what is real."""
        if pad is None:
            pad = self.backend.pad_token_id or 0
        longest = max(map(len, rows))
        filled = [[*row, *[pad] * (longest - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        where = self.model.device
        return torch.tensor(filled, device=where), torch.tensor(mask, device=where)


def load_encoder(
    directory: Path, *, scores: bool, dtype: str, device: str | None, context: int | None
) -> Encoder:
    """Load the model in a directory, to score pairs or to make vectors.

    Code that comes with a model is never run.
    Raises EngineError for a directory that holds no such model, for weights that are missing, and
    for a way to make vectors or scores that we do not know.
    """
    disable_progress_bar()  # a worker's output is its log
    recipe = Recipe() if scores else recipe_of(directory)
    where = device_of(device)
    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    if dtype == "auto" and where.type == "cpu":
        wanted = torch.float32  # the models are small, and vectors are compared
    kind = AutoModelForSequenceClassification if scores else AutoModel
    model, info = kind.from_pretrained(
        directory,
        dtype=wanted,
        device_map={"": where},
        trust_remote_code=False,
        output_loading_info=True,
    )
    # A model for vectors needs no pooler: the recipe says how they are made.
    missing = [key for key in sorted(info["missing_keys"]) if scores or "pooler." not in key]
    if missing:
        raise EngineError(f"{directory} lacks the model's weights {', '.join(missing[:3])} …")
    if scores and model.config.num_labels != 1:
        raise EngineError(
            f"{directory} has {model.config.num_labels} labels; one that scores pairs has one"
        )
    backend = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    tokenizer = TransformersTokenizer(backend)
    files = [*checkpoint_files(directory), *recipe_files(directory)]
    return Encoder(
        model=model.eval(),
        tokenizer=tokenizer,
        backend=backend,
        pooling=recipe.pooling,
        context=_context(model.config, backend, recipe, context),
        fingerprint=fingerprint(files, str(model.dtype)),
    )


def _context(config: Any, backend: Any, recipe: Recipe, asked: int | None) -> int:
    """Return how many tokens an input may have: the least of all that is said about it."""
    positions = getattr(config, "max_position_embeddings", None)
    # The tokenizer knows of positions that a model keeps to itself, as RoBERTa's first two.
    bounds = (positions, backend.model_max_length, recipe.max_length, asked)
    return min(int(bound) for bound in bounds if bound)


def _pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    real = mask.unsqueeze(-1)
    match pooling:
        case "cls":
            return hidden[:, 0]
        case "mean":
            return (hidden * real).sum(1) / real.sum(1)
        case "max":
            return hidden.masked_fill(real == 0, float("-inf")).amax(1)
        case "lasttoken":
            return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]


def _is_raw(config: Any) -> bool:
    """Tell whether the model's makers want the logit itself; sentence-transformers keeps it so."""
    own = getattr(config, "sentence_transformers", None) or {}
    named = own.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", "")
    return str(named).endswith("Identity")
