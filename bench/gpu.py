"""QueueServe in front of vLLM against vLLM itself, on a machine with GPUs; all in one command.

For each model: vLLM alone (AsyncLLM in a process), vLLM's own OpenAI server, QueueServe (embedded
Redis, API servers, a worker a GPU) and, for comparison, the transformers engine. The models have
random weights, as speed does not depend on their values: Vicuna-7B's shape, and SmolLM2's.

    python -m bench.gpu --tokenizer DIRECTORY [--models vicuna,smollm2] [--out results]

DIRECTORY holds SmolLM2's tokenizer and config.json. Prints a table; raw numbers go to `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.gpu_bench import Bench, table
from bench.gpu_load import read_loads
from bench.gpu_systems import SYSTEMS

VICUNA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": 32000,
}


def write_models(tokenizer: Path, into: Path) -> dict[str, Path]:
    """Directories with a configuration and a tokenizer, and without weights."""
    configs = {"vicuna": VICUNA, "smollm2": json.loads((tokenizer / "config.json").read_text())}
    for name, config in configs.items():
        (into / name).mkdir(parents=True)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (tokenizer / file).is_file():
                shutil.copy(tokenizer / file, into / name)
        (into / name / "config.json").write_text(json.dumps(config))
    return {name: into / name for name in configs}


def machine() -> str:
    """What it ran on."""
    found = [f"{os.cpu_count()} cores", f"Python {platform.python_version()}"]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        found += subprocess.run(
            query, capture_output=True, text=True, check=False
        ).stdout.splitlines()
    return "; ".join(found)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="QueueServe and vLLM on GPUs.")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--models", default="vicuna")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--gpus", type=int, default=1, help="0: a CPU")
    parser.add_argument("--api-servers", type=int, default=2, help="processes a GPU")
    parser.add_argument(
        "--loads",
        type=read_loads,
        default="1x15,64x1,64x3,256x1,256x3",
        help="STREAMSxREQUESTS,…: all streams begin at once and send theirs one after the other",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--transformers-path", default="", help="a newer one for its engine")
    parser.add_argument("--engine-arguments", default="", help="more of vLLM's, for all of them")
    parser.add_argument("--patience", type=float, default=240, help="seconds for any one step")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    return parser.parse_args()


def main() -> None:
    """Measure everything; what fails is said, and the rest goes on."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        bench.say(machine())
        models = write_models(options.tokenizer, Path(scratch) / "models")
        failures: list[str] = []
        try:
            for model in options.models.split(","):
                for system in options.systems.split(","):
                    _try(system, bench, models[model], failures)
                    _save(bench, failures)
        finally:
            print(table(bench.results))
            print("\n".join(f"FAILED {failure}" for failure in failures))
    sys.exit(bool(failures))


def _try(system: str, bench: Bench, model: Path, failures: list[str]) -> None:
    try:
        SYSTEMS[system](bench, model)
    except Exception as error:  # noqa: BLE001  # one system must not end the others
        failures.append(f"{model.name} {system}: {type(error).__name__}: {error}")
        bench.say(failures[-1])


def _save(bench: Bench, failures: list[str]) -> None:
    """Write the raw numbers and the ends of all logs so far."""
    raw = {"machine": machine(), "options": vars(bench.options), "failures": failures}
    (bench.options.out / "gpu.json").write_text(
        json.dumps(raw | {"results": bench.results}, default=str)
    )
    with (bench.options.out / "logs.txt").open("w") as file:
        for log in sorted(bench.scratch.glob("*.log")):
            end = log.read_text(errors="replace").splitlines()[-150:]
            file.write("\n".join([f"== {log.name}", *(line[:2000] for line in end), ""]))


if __name__ == "__main__":
    main()
