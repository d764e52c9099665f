"""Trains anew when there is a dataset version that the champion has not seen, once for each; else does nothing."""

from kfp import dsl

from components.compare_dataset.component import compare_dataset
from components.find_dataset.component import find_dataset
from components.finish.component import finish
from components.rest.component import rest
from pipelines.curriculum import curriculum
from pipelines.evaluation import evaluation
from pipelines.opening import after_prerequisites
from pipelines.tasks import step


@dsl.pipeline(name="kiwi-retrain", description="Trains and judges an editor if there is a newer dataset version.")
def retrain(config: str):
    closing = step(finish(config=config, whole=False), "Close the run")

    with dsl.ExitHandler(closing, name="run"):
        compared = step(compare_dataset(config=config), "Compare with the champion's dataset")
        after_prerequisites(config, compared)

        with dsl.If(compared.output == "train", name="newer"):
            found = step(find_dataset(config=config), "Find the dataset")
            model = curriculum(config=config, dataset=found.outputs["dataset"]).set_display_name("Train the editor")
            evaluation(config=config, model=model.output).set_display_name("Judge and promote")
        with dsl.Else(name="not-newer"):
            step(rest(config=config), "Rest")
