"""The parts of the story as pipelines of their own, for a work folder that holds what comes before them."""

from kfp import dsl

from components.find_dataset.component import find_dataset
from components.find_model.component import find_model
from components.finish.component import finish
from pipelines import curriculum as training
from pipelines import evaluation as judging
from pipelines import refvie as building
from pipelines.opening import after_prerequisites
from pipelines.tasks import step


@dsl.pipeline(name="kiwi-refvie", description="Builds and publishes a dataset version.")
def refvie(config: str):
    with dsl.ExitHandler(step(finish(config=config, whole=False), "Close the run"), name="run"):
        after_prerequisites(config, building.refvie(config=config).set_display_name("Build the dataset"))


@dsl.pipeline(name="kiwi-curriculum", description="Trains the editor on the work folder's newest dataset version.")
def curriculum(config: str):
    with dsl.ExitHandler(step(finish(config=config, whole=False), "Close the run"), name="run"):
        found = after_prerequisites(config, step(find_dataset(config=config), "Find the dataset"))
        training.curriculum(config=config, dataset=found.outputs["dataset"]).set_display_name("Train the editor")


@dsl.pipeline(name="kiwi-evaluation", description="Judges the work folder's trained editor, and promotes or holds it.")
def evaluation(config: str):
    with dsl.ExitHandler(step(finish(config=config, whole=False), "Close the run"), name="run"):
        found = after_prerequisites(config, step(find_model(config=config), "Find the model"))
        judging.evaluation(config=config, model=found.outputs["model"]).set_display_name("Judge and promote")
