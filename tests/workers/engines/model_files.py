"""Small models with random weights, written as the files that their makers publish."""

from __future__ import annotations

import io
import json
import shutil


def write_byte_tokenizer(directory):
    """A byte-level tokenizer with a token for each byte, and <s> and </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: at for at, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)


_TALK = (
    "A chat between a curious user and an artificial intelligence assistant. ",
    "USER: Hello! ASSISTANT: Hi, how can I help you today?",
    "The quick brown fox jumps over the lazy dog.",
)


def write_sentencepiece(path):
    import sentencepiece  # noqa: PLC0415

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TALK * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def write_shards(directory, weights):
    """Two .bin files and their index, with the extra buffers that old checkpoints have."""
    import torch  # noqa: PLC0415

    weights = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), **weights}
    names = list(weights)
    where = {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        shard = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: weights[name].clone() for name in part}, directory / shard)
        where |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def special(content):
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"__type": "AddedToken", "content": content} | flags


def write_vicuna_like(directory):
    """The files that lmsys/vicuna-7b-v1.5 consists of, around a tiny model."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = {
        **ids,
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.4,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "vocab_size": 360,
    }
    generation = {**ids, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}
    tokenizer = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": special("<s>"),
        "clean_up_tokenization_spaces": False,
        "eos_token": special("</s>"),
        "legacy": False,
        "model_max_length": 4096,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": special("<unk>"),
    }
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    for name, content in (
        ("config", config),
        ("generation_config", generation),
        ("tokenizer_config", tokenizer),
        ("special_tokens_map", names),
    ):
        (directory / f"{name}.json").write_text(json.dumps(content))
    write_sentencepiece(directory / "tokenizer.model")
    model = LlamaForCausalLM(LlamaConfig(**config))
    write_shards(directory, model.half().state_dict())


def write_wordy_llama(directory, other):
    """A Llama with the tokenizer and template of the checkpoint `other`.

    It is as large as its vocabulary makes it, so a step takes a few milliseconds. Its text never
    repeats itself, so it tells where a sequence stands; a small trained model is soon in a loop.
    """
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(other, directory, ignore=weights, dirs_exist_ok=True)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.4,  # its likely tokens do not tie
        "tie_word_embeddings": False,
    }
    torch.manual_seed(7)
    LlamaForCausalLM(LlamaConfig.from_pretrained(other, **shape)).save_pretrained(directory)
