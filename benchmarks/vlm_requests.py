"""How near the client comes to the rate that its concurrency allows, against a server that answers after a fixed time.

    taskset -c 0,1 python benchmarks/vlm_requests.py [--concurrency N] [--requests N] [--repeats N] [--out FILE]

Client and server are two processes. Every question bears pictures of its own, encoded while others are under way; the
server reads every body to its end. Two rates are what to compare with, both of the same run: the ideal, concurrency /
delay, and that of a bare loop that sends bodies of the same size, made beforehand, over the same HTTP library: what it
does not reach, this machine does not give. Recorded are the best and all of the repeats, and the client's processor
time a request, encoding included. The floor is for the better of the two shares in every case.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fixed_delay import serve
from machine import machine

from kiwi.curation.curators.vlm_score import Marks
from kiwi.services import Patience, Picture, Question, VlmClient
from kiwi.services.endpoint import Endpoint
from kiwi.services.garbage import older_objects_left_out
from kiwi.services.wire import Call
from kiwi.workspace import write_json

PORT = 8765
FLOOR = 0.9
CASES = {  # height, width, pictures a question, seconds that the server takes
    "64x64": (64, 64, 1, 0.25),
    "832x480": (480, 832, 1, 0.25),
    "832x480, two": (480, 832, 2, 1.0),
}
ANSWER = '{"reasoning": "", "score": [20, 20]}'


def frames(height: int, width: int) -> list[Any]:
    """Sixteen frames with large shapes and fine grain: about 3 bits a pixel, as eight real clips have."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (16, 12, 20, 3), dtype=np.uint8)
    grain = generator.normal(0, 2, (height, width, 3))
    large = [cv2.resize(one, (width, height), interpolation=cv2.INTER_CUBIC) for one in coarse]
    return [np.clip(one + grain, 0, 255).astype(np.uint8) for one in large]


def questions(count: int, pictures: int, shown: list[Any]) -> Iterator[Question]:
    for number in range(count):
        parts = [Picture(shown[(number + more) % len(shown)]) for more in range(pictures)]
        yield Question((*parts, f"question {number}"), "fixed", Marks)


async def bare(body: bytes, concurrency: int, requests: int) -> float:
    """Requests a second of a loop that does nothing but send this body."""
    import aiohttp

    slots = asyncio.Semaphore(concurrency)
    connector = aiohttp.TCPConnector(limit=concurrency)
    server = f"http://127.0.0.1:{PORT}"
    with older_objects_left_out():  # as the client does
        async with aiohttp.ClientSession(server, connector=connector) as session:

            async def one() -> None:
                async with slots, session.post("/v1/chat/completions", data=body) as response:
                    await response.read()

            await asyncio.gather(*(one() for _ in range(concurrency)))
            started = time.perf_counter()
            await asyncio.gather(*(one() for _ in range(requests)))
            return requests / (time.perf_counter() - started)


def measure(case: str, concurrency: int, requests: int, repeats: int) -> dict[str, Any]:
    height, width, pictures, delay = CASES[case]
    shown = frames(height, width)
    client = VlmClient(lambda: Endpoint(f"http://127.0.0.1:{PORT}/v1"), Patience(concurrency=concurrency))
    list(client.ask(questions(concurrency, pictures, shown)))
    sample = next(questions(1, pictures, shown))
    encoded = tuple(part.encoded() for part in sample.parts if isinstance(part, Picture))
    body = b"".join(Call(sample, encoded, 1, 0, 0.0).body())
    ideal = requests / (math.ceil(requests / concurrency) * delay)  # in waves, the last one perhaps not full
    rates, bare_rates, processor = [], [], 0.0
    for _ in range(repeats):
        bare_rates.append(asyncio.run(bare(body, concurrency, requests)))
        processor -= time.process_time()
        started = time.perf_counter()
        answered = sum(reply.failure is None for reply in client.ask(questions(requests, pictures, shown)))
        assert answered == requests
        rates.append(requests / (time.perf_counter() - started))
        processor += time.process_time()
    return {
        "share_of_ideal": round(max(rates) / ideal, 3),
        "share_of_bare": round(max(rates) / max(bare_rates), 3),
        "bare_share_of_ideal": round(max(bare_rates) / ideal, 3),
        "shares": [round(rate / ideal, 3) for rate in rates],
        "requests_per_second": round(max(rates), 1),
        "client_processor_ms": round(processor / requests / repeats * 1000, 2),
        "body_kilobytes": round(len(body) / 1000, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "vlm_requests.json")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ready, most, delay = context.Event(), context.Value("i", 0), context.Value("d", 0.0)
    server = context.Process(target=serve, args=(ANSWER, PORT, delay, ready, most), daemon=True)
    server.start()
    ready.wait(60)
    time.sleep(1.0)
    results = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        for case in CASES:
            delay.value = CASES[case][3]
            results[case] = measure(case, arguments.concurrency, arguments.requests, arguments.repeats)
            print(f"{case:<16} {json.dumps(results[case])}", flush=True)
    finally:
        server.terminate()
        server.join()
    said = {
        "concurrency": arguments.concurrency,
        "requests": arguments.requests,
        "repeats": arguments.repeats,
        "most_at_once": most.value,
        "client_growth_megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
        "floor": FLOOR,
        "floor_met": all(max(found["share_of_ideal"], found["share_of_bare"]) >= FLOOR for found in results.values()),
        "cases": results,
    }
    write_json(arguments.out, {"machine": machine(), **said})
    print(f"floor of {FLOOR} {'met' if said['floor_met'] else 'NOT met'}; written to {arguments.out.name}")


if __name__ == "__main__":
    main()
