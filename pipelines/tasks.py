"""What every task of every pipeline is given: a name that people read, retries, its place, and no cache of KFP's."""

import os

from kfp import dsl

from pipelines.placing import place, set_environment
from pipelines.profile import Profile, read_profile


def compiled_profile() -> Profile:
    """The profile that KIWI_PROFILE names; KIWI_SHARD_THREADS is set by the local runner."""
    profile = read_profile(os.environ.get("KIWI_PROFILE", "local"))
    threads = os.environ.get("KIWI_SHARD_THREADS")
    return profile.model_copy(update={"shard_threads": int(threads)}) if threads else profile


PROFILE = compiled_profile()

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")


def step(task: dsl.PipelineTask, title: str) -> dsl.PipelineTask:
    """A task with its title, its retries, and its place in the profile.

    KFP's own cache stays off: kiwi's functions find their finished results by content, and the same configuration
    must be judged against the champion anew.
    """
    task.set_display_name(title)
    retries = PROFILE.task(task.component_spec.name.replace("-", "_")).retries
    if retries:
        task.set_retry(num_retries=retries, backoff_duration=PROFILE.backoff, backoff_factor=2.0)
    task.set_caching_options(enable_caching=False)
    place(task, PROFILE)
    return task


def shard_step(task: dsl.PipelineTask, title: str) -> dsl.PipelineTask:
    """A task inside the fan-out: where shards share one machine, they share its threads."""
    step(task, title)
    if PROFILE.shard_threads:
        names = (*THREAD_VARIABLES, "OPENCV_FOR_THREADS_NUM")
        set_environment(task, dict.fromkeys(names, str(PROFILE.shard_threads)))
    return task
