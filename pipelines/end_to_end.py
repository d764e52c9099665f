"""The story of the project on one page: pairs, dataset, trained editor, verdict, and a report whatever happens."""

from kfp import dsl

from components.finish.component import finish
from pipelines.curriculum import curriculum
from pipelines.evaluation import evaluation
from pipelines.opening import after_prerequisites
from pipelines.refvie import refvie
from pipelines.tasks import step


@dsl.pipeline(name="kiwi-end-to-end", description="From editing pairs to a promoted model, with a report.")
def end_to_end(config: str):
    """`config` is the canonical JSON of kiwi.configuration.RunConfiguration; everything else is derived from it."""
    closing = step(finish(config=config), "Close the run")

    with dsl.ExitHandler(closing, name="run"):
        # Score, ground, segment, synthesize, verify; deduplicate; publish with DVC.
        dataset = refvie(config=config).set_display_name("Build the dataset")
        after_prerequisites(config, dataset)

        # Latents once, then the three stages of the curriculum.
        model = curriculum(config=config, dataset=dataset.output).set_display_name("Train the editor")

        # Benchmark, judge, register, report, decide; promote or hold.
        evaluation(config=config, model=model.output).set_display_name("Judge and promote")
