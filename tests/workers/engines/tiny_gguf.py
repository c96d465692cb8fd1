"""GGUF files of tiny Llamas, made for what their vocabularies can write.

Two have random weights, so that with sampling all kinds of broken characters come up. One is a
chain: its weights say which tokens may follow each token, so that it writes whole characters in
all the ways that its vocabulary allows.
"""

import random
import struct
from array import array
from math import prod

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
WIDTH, HIDDEN, HEADS, CONTEXT = 32, 64, 2, 512
ALIGNMENT = 32


def string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def entry(key, value):
    if isinstance(value, str):
        return string(key) + struct.pack("<I", 8) + string(value)
    if isinstance(value, float):
        return string(key) + struct.pack("<If", 6, value)
    if isinstance(value, int):
        return string(key) + struct.pack("<II", 4, value)
    if isinstance(value[0], str):
        body = b"".join(map(string, value))
        return string(key) + struct.pack("<IIQ", 9, 8, len(value)) + body
    kind, code = (6, "f") if isinstance(value[0], float) else (5, "i")
    return string(key) + struct.pack(f"<IIQ{len(value)}{code}", 9, kind, len(value), *value)


def random_weights(name, size):
    chance = random.Random(name)
    return [chance.gauss(0, 0.5) for _ in range(size)]


def write_model(path, tokens, weights=random_weights, **metadata):
    """A Llama of one layer, and the vocabulary `tokens`: (text, type)."""
    about = {
        "general.architecture": "llama",
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.block_count": 1,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "tokenizer.ggml.tokens": [text for text, _ in tokens],
        "tokenizer.ggml.token_type": [kind for _, kind in tokens],
    } | metadata
    shapes = {
        "token_embd.weight": (WIDTH, len(tokens)),
        "output.weight": (WIDTH, len(tokens)),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ffn_norm.weight": (WIDTH,),
        "blk.0.ffn_gate.weight": (WIDTH, HIDDEN),
        "blk.0.ffn_up.weight": (WIDTH, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, WIDTH),
    } | {f"blk.0.attn_{name}.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    infos, data = b"", b""
    for name, shape in shapes.items():
        infos += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += array("f", weights(name, prod(shape))).tobytes()
        data += b"\0" * (-len(data) % ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(about))
    head += b"".join(entry(key, value) for key, value in about.items()) + infos
    path.write_bytes(head + b"\0" * (-len(head) % ALIGNMENT) + data)
    return path


def byte_level_letters():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + index) for index, byte in enumerate(others)
    }


def byte_level_model(path, merged, weights=random_weights):
    """Two control tokens, all bytes, and the longer pieces `merged`."""
    letters = byte_level_letters()

    def written(data):
        return "".join(letters[byte] for byte in data)

    tokens = [("<|end|>", CONTROL), ("<|tool|>", CONTROL)]
    tokens += [(letters[byte], NORMAL) for byte in range(256)]
    tokens += [(written(data), NORMAL) for data in merged]
    return write_model(
        path,
        tokens,
        weights,
        **{
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.merges": [
                f"{written(data[:1])} {written(data[1:])}" for data in merged
            ],
            "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.ggml.bos_token_id": 0,
        },
    )


EMOJI = "\U0001f940".encode()  # F0 9F A5 80
PARTS = [EMOJI[start:end] for start in range(4) for end in range(start + 2, 5) if end - start < 4]
TOOL = 1


def chain_model(path):
    """Writes one emoji after another, in pieces of one to three bytes, and <|tool|> within some."""
    pieces = [bytes([byte]) for byte in EMOJI] + PARTS
    ids = {piece: 2 + piece[0] for piece in pieces[:4]}
    ids |= {piece: 258 + index for index, piece in enumerate(PARTS)}
    follows = {}
    for piece in pieces:
        end = (EMOJI.index(piece) + len(piece)) % 4
        follows[ids[piece]] = [ids[other] for other in pieces if EMOJI.index(other) == end]
    half = ids[EMOJI[:2]]
    follows[TOOL] = follows[half]
    follows[half] = [*follows[half], TOOL]
    places = {token: place for place, token in enumerate(follows)}

    def weights(name, size):
        values = [1.0 if "norm" in name else 0.0] * size
        for token, place in places.items():
            if name == "token_embd.weight":
                values[token * WIDTH + place] = 1.0
            if name == "output.weight":
                for other in follows[token]:
                    values[other * WIDTH + place] = 4.0
        return values

    return byte_level_model(path, PARTS, weights)


def sentencepiece_model(path):
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    tokens += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    tokens += [("▁", NORMAL), ("▁hello", NORMAL), ("é", NORMAL), ("h", NORMAL), ("a", NORMAL)]
    tokens += [("▁▁", NORMAL), ("<tool>", USER_DEFINED)]
    return write_model(
        path,
        tokens,
        **{
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": [-float(index) for index in range(len(tokens))],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        },
    )
