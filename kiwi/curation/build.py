"""All of curation without a pipeline: the same functions, shard by shard, in this process or in several.

Each worker takes a shard through its stages; what must see every shard at once is done here, between them.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from kiwi.configuration import RunConfiguration
from kiwi.curation.deduplicate import deduplicate
from kiwi.curation.errors import CurationError
from kiwi.curation.finished import assemble
from kiwi.curation.plan import plan_shards
from kiwi.curation.stages import SHARD_STAGES, run_stage
from kiwi.curation.unique_crops import unique_crops
from kiwi.dataset.schema import CURATION_STAGES
from kiwi.tracking import task_run

_CUT = CURATION_STAGES.index("unique_crops")
FIRST, SECOND = CURATION_STAGES[:_CUT], tuple(stage for stage in SHARD_STAGES if CURATION_STAGES.index(stage) > _CUT)
_PR_SET_PDEATHSIG = 1


def build_dataset(configuration: RunConfiguration, workers: int = 1) -> dict[str, Any]:
    """Plans, runs every stage of every shard, deduplicates and assembles. What is finished is not done again.

    Args:
        workers: processes; each takes one shard at a time.

    Returns:
        What kiwi.curation.finished.assemble returns.
    """
    with task_run(configuration, "plan_shards") as task:
        shards = plan_shards(configuration, task)
    _each_shard(configuration, FIRST, shards, workers)
    with task_run(configuration, "unique_crops") as task:
        unique_crops(configuration, task)
    _each_shard(configuration, SECOND, shards, workers)
    with task_run(configuration, "deduplicate") as task:
        deduplicate(configuration, task)
    with task_run(configuration, "publish_dataset") as task:
        return assemble(configuration, task)


def run_stages(configuration: RunConfiguration, stages: tuple[str, ...], shard: int) -> None:
    """Takes one shard through these stages."""
    for stage in stages:
        with task_run(configuration, stage, shard=shard) as task:
            run_stage(configuration, stage, shard, task)


def _each_shard(configuration: RunConfiguration, stages: tuple[str, ...], shards: list[int], workers: int) -> None:
    if workers <= 1 or len(shards) == 1:
        for shard in shards:
            run_stages(configuration, stages, shard)
        return
    spawning = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(shards)), spawning, initializer=_end_with_parent)
    try:
        jobs = [pool.submit(_job, configuration.canonical(), stages, shard) for shard in shards]
        pending = set(jobs)
        while pending:  # a wait without end would not see Ctrl-C
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
            for job in done:
                job.result()
    except BrokenProcessPool as error:
        pool.shutdown(wait=True, cancel_futures=True)
        raise CurationError(
            "a worker was killed (out of memory?)", "give the same command again, with fewer --workers: it goes on"
        ) from error
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


def _job(configuration: str, stages: tuple[str, ...], shard: int) -> None:
    run_stages(RunConfiguration.parse(configuration), stages, shard)


def _end_with_parent() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when that is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(1)
