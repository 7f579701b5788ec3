"""`python -m modelstacks.local.modelserver --engine vllm -- ARGS…`: runs as a rendered container would, on loopback.

ARGS are the container's own. The port opens when the model is loaded, as with the real engines; SIGTERM finishes what
has begun for as long as the command line says.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time

import uvicorn

from modelstacks.catalog import Catalog
from modelstacks.errors import ModelstacksError
from modelstacks.local import ports
from modelstacks.local.imitation import Imitation
from modelstacks.local.modelserver.app import Server
from modelstacks.local.modelserver.measures import Measures
from modelstacks.local.modelserver.started import Pace, read

_SHARDS = 10
# What real servers write when they end before they serve; the last line is what a pod keeps.
FAILURES = {
    "oom": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 0 bytes free.",
    "no-cache": "ValueError: No available memory for the cache blocks. Try increasing gpu_memory_utilization.",
    "hub-401": "huggingface_hub.errors.GatedRepoError: 401 Client Error. Access to the model is restricted.",
    "hub-429": "huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url",
}


def main(arguments: list[str]) -> int:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="modelserver", description=__doc__)
    parser.add_argument("--engine", choices=("vllm", "tgi"), default="vllm")
    parser.add_argument("--listen", type=int, help="a port other than that of the arguments; 0 takes a free one")
    parser.add_argument("--load-s", type=float, default=0.5)
    parser.add_argument("--token-s", type=float, default=0.02)
    parser.add_argument("--kv-tokens", type=int)
    parser.add_argument("--dies-after", type=int, help="requests after which the engine is dead")
    parser.add_argument(
        "--faster", type=float, default=1.0, help="how many times faster its clock goes than a real one"
    )
    parser.add_argument("--fail", choices=sorted(FAILURES), help="end at start with these words")
    parser.add_argument("args", nargs="*")
    given = parser.parse_args(arguments)
    try:
        pace = Pace(given.load_s, given.token_s, given.kv_tokens, given.dies_after)
        catalog = Catalog()
        started = read(given.engine, given.args, pace, catalog)
    except ModelstacksError as error:
        print(f"{given.engine}: error: {error}", file=sys.stderr)
        return 2
    for shard in range(1, _SHARDS + 1):
        time.sleep(given.load_s / given.faster / _SHARDS)
        share = 100 * shard // _SHARDS
        print(f"Loading safetensors checkpoint shards: {share:3}% Completed | {shard}/{_SHARDS}", file=sys.stderr)
        if given.fail is not None and shard == _SHARDS // 2:
            print(FAILURES[given.fail], file=sys.stderr)
            return 1
    port = started.port if given.listen is None else given.listen
    key = os.environ.get(catalog.any_form(given.engine).api_key_env) or None
    asyncio.run(_serve(started.engine, Imitation(started.settings), port, started.drain_s / given.faster, key))
    return 0


async def _serve(engine: str, core: Imitation, port: int, drain_s: float, key: str | None) -> None:
    app = Server(engine, core, Measures(engine, core), key).app()
    # Told to end, it listens no more and waits for the requests that run, as long as the engine would.
    config = uvicorn.Config(app, host=ports.HOST, port=port, log_level="warning", lifespan="off")
    # Declared for whole seconds, and handed on to asyncio, which takes parts of them.
    config.timeout_graceful_shutdown = drain_s  # type: ignore[assignment]
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    for socket in [s for one in server.servers for s in one.sockets]:
        print(f"serving {core.settings.model} on http://{ports.HOST}:{socket.getsockname()[1]}", flush=True)
    await serving


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
