"""The first task of a pipeline on a cluster; on a laptop `kiwi run` checks the same before it starts."""

from kfp import dsl

from components.prerequisites.component import prerequisites
from pipelines.tasks import PROFILE, step


def after_prerequisites(config: str, first: dsl.PipelineTask) -> dsl.PipelineTask:
    """`first`, which waits for the check where the profile asks for one."""
    if PROFILE.prerequisites:
        first.after(step(prerequisites(config=config), "Check prerequisites"))
    return first
