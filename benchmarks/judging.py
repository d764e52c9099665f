"""How near the judge `mllm` comes to the rate that its concurrency allows, against a server of a fixed delay.

    taskset -c 0,1 python benchmarks/judging.py [--concurrency N] [--edits N] [--repeats N] [--out FILE]

Judge and server are two processes. Every edit shows pictures of its own: eight frames of source and edit each, and a
reference, encoded while others are under way. Two rates are what to compare with, as in vlm_requests.py: the ideal,
concurrency / delay in waves, and that of a bare loop over the same HTTP library that sends one body of the same size,
made beforehand; the floor is for the better of the two shares. Recorded are the best and all of the repeats, and the
judge's processor time an edit; `cores_for_ideal` is what that time comes to at the ideal rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fixed_delay import serve
from machine import machine
from vlm_requests import PORT, bare

from kiwi.benchmark.mllm_judge import MllmJudge
from kiwi.benchmark.rubric import CRITERIA, JudgeView
from kiwi.configuration import BenchmarkSettings, ServiceSettings, VlmSettings
from kiwi.services import Picture
from kiwi.services.wire import Call
from kiwi.workspace import write_json

FLOOR = 0.9
CASES = {"64x64": (64, 64, 0.5), "480x832": (480, 832, 8.0)}  # height, width, seconds that the server takes
FRAMES = 9
ANSWER = json.dumps({"reasoning": "", **dict.fromkeys(CRITERIA["subject"], 3)})


def views(number: int, side: tuple[int, int]) -> Iterator[JudgeView]:
    drawn = np.random.default_rng(0)
    coarse = drawn.integers(0, 256, (FRAMES, 12, 20, 3), dtype=np.uint8)
    large = [cv2.resize(one, side[::-1], interpolation=cv2.INTER_CUBIC) for one in coarse]
    clip = np.clip(np.stack(large) + drawn.normal(0, 2, (*side, 3)), 0, 255).astype(np.uint8)
    for place in range(number):
        edit = np.roll(clip, place, axis=1)
        yield JudgeView(clip, edit, clip[0], "subject", f"edit {place}", None, None, "subject_reference")


def body_of(judge: MllmJudge, view: JudgeView) -> bytes:
    (question,) = judge._inquiry(view).questions
    pictures = tuple(part.encoded() for part in question.parts if isinstance(part, Picture))
    return b"".join(Call(question, pictures, 1, 0, 0.0).body())


def measure(side: tuple[int, int], delay: float, arguments: argparse.Namespace) -> dict[str, Any]:
    settings = BenchmarkSettings(
        judge="mllm",
        mllm=VlmSettings(model="fixed", max_frames=8),
        service=ServiceSettings(concurrency=arguments.concurrency, cache=False),
    )
    judge = MllmJudge.from_settings(settings, "unused")
    list(judge.judge_all(views(arguments.concurrency, side)))
    bare_rate = asyncio.run(bare(body_of(judge, next(views(1, side))), arguments.concurrency, arguments.edits))
    ideal = arguments.edits / (math.ceil(arguments.edits / arguments.concurrency) * delay)
    rates, processor = [], time.process_time()
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        found = list(judge.judge_all(views(arguments.edits, side)))
        rates.append(arguments.edits / (time.perf_counter() - started))
        assert all(each.scores is not None for each in found)
    processor = (time.process_time() - processor) / arguments.edits / arguments.repeats
    return {
        "delay_seconds": delay,
        "share_of_ideal": round(max(rates) / ideal, 3),
        "share_of_bare": round(max(rates) / bare_rate, 3),
        "bare_share_of_ideal": round(bare_rate / ideal, 3),
        "shares": [round(rate / ideal, 3) for rate in rates],
        "edits_per_second": round(max(rates), 1),
        "processor_ms_an_edit": round(processor * 1000, 2),
        "cores_for_ideal": round(ideal * processor, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--edits", type=int, default=320, help="as many as the procedural benchmark has")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", choices=sorted(CASES), action="append", help="only this one; may be repeated")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "judging.json")
    arguments = parser.parse_args()
    os.environ["KIWI_VLM_JUDGE_BASE_URL"] = f"http://127.0.0.1:{PORT}/v1"
    context = multiprocessing.get_context("spawn")
    ready, most, delay = context.Event(), context.Value("i", 0), context.Value("d", 0.0)
    server = context.Process(target=serve, args=(ANSWER, PORT, delay, ready, most), daemon=True)
    server.start()
    ready.wait(60)
    time.sleep(1.0)
    results = {}
    try:
        for name in arguments.case or CASES:
            height, width, seconds = CASES[name]
            delay.value = seconds
            results[name] = measure((height, width), seconds, arguments)
            print(f"{name:<10} {json.dumps(results[name])}", flush=True)
    finally:
        server.terminate()
        server.join()
    said = {
        "concurrency": arguments.concurrency,
        "edits": arguments.edits,
        "repeats": arguments.repeats,
        "most_at_once": most.value,
        "floor": FLOOR,
        "floor_met": all(max(found["share_of_ideal"], found["share_of_bare"]) >= FLOOR for found in results.values()),
        "cases": results,
    }
    write_json(arguments.out, {"machine": machine(), **said})
    print(f"floor of {FLOOR} {'met' if said['floor_met'] else 'NOT met'}; written to {arguments.out.name}")


if __name__ == "__main__":
    main()
