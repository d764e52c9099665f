"""What differs between a laptop, containers and a cluster when a pipeline is compiled (infra/profiles/*.yaml)."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError

from kiwi.configuration import Settings
from kiwi.errors import UsageError

PROFILES = Path(__file__).resolve().parents[1] / "infra" / "profiles"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
POOL_LABEL = "kiwi.dev/pool"
SCRATCH = "/scratch"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(said: str) -> int:
    """ "90s", "20m", "6h" or "2d" in seconds. Raises ValueError."""
    if not re.fullmatch(r"[1-9][0-9]*[smhd]", said):
        raise ValueError(f"{said!r} is no time such as 90s, 20m, 6h or 2d")
    return int(said[:-1]) * UNITS[said[-1]]


def _quantity(said: str) -> str:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?", said):
        raise ValueError(f"{said!r} is no amount such as 4, 500m or 16Gi")
    return said


def _duration(said: str) -> str:
    seconds(said)
    return said


Quantity = Annotated[str, AfterValidator(_quantity)]
Duration = Annotated[str, AfterValidator(_duration)]


class Toleration(Settings):
    """A taint that a task's pod bears."""

    key: str
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str | None = None
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None = None


class Affinity(Settings):
    """One expression on the nodes' labels; a `weight` makes it a wish, none makes it a must."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = "In"
    values: tuple[str, ...] = ()
    weight: int | None = Field(None, ge=1, le=100)

    def expression(self) -> dict[str, Any]:
        """In Kubernetes' words."""
        return {"key": self.key, "operator": self.operator, "values": list(self.values)}


class Pool(Settings):
    """The nodes a task runs on and what it asks of them."""

    cpu: Quantity | None = None
    cpu_limit: Quantity | None = Field(None, description="None: no limit, so that idle cores are used")
    memory: Quantity | None = Field(None, description="asked for and limit alike: memory cannot be taken back")
    accelerator: str | None = Field(None, description="the resource's name, such as nvidia.com/gpu")
    accelerators: int = Field(0, ge=0, description="of one node")
    nodes: int = Field(1, ge=1, description="more than one: a TrainJob on as many nodes, for train_stage alone")
    selectors: dict[str, str] = {}
    affinity: tuple[Affinity, ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    shared_memory: Quantity | None = Field(None, description="/dev/shm, for the loaders' worker processes")
    scratch: Quantity | None = Field(None, description="a volume that lives as long as the pod, where TMPDIR points")
    scratch_class: str | None = Field(None, description="its storage class; None: the cluster's default")
    priority: str | None = Field(None, description="Kueue's WorkloadPriorityClass")


class TaskSettings(Settings):
    """One component's place, and what differs from the profile's retries and timeout."""

    pool: str | None = None
    retries: int | None = Field(None, ge=0)
    timeout: Duration | None = None


class Secret(Settings):
    """A Kubernetes secret by name; its values never stand in a pipeline. `keys`: its key → environment variable."""

    name: str
    keys: dict[str, str]
    optional: bool = False
    tasks: tuple[str, ...] = Field((), description="components that get it; none named: all")


class Volume(Settings):
    """A claim that every task mounts: the work folders."""

    claim: str
    path: str


class Security(Settings):
    """Who a task's process is."""

    user: int = Field(1000, ge=1)
    group: int = Field(1000, ge=1)


class Profile(Settings):
    """One place to run. The defaults are the laptop's.

    Attributes:
        cluster: tasks run in containers, so an image reference is needed.
        image: REPOSITORY@sha256:… or REPOSITORY:<git SHA>; KIWI_IMAGE overrides it.
        retries, backoff, timeout: for each task; `tasks` may say otherwise.
        parallelism: shards at once.
        shard_threads: threads of one task inside the fan-out; None leaves them alone.
        prerequisites: a first task checks what the run needs; elsewhere `kiwi run` does so before it starts.
        free_gigabytes: that the work folder's volume must have free at the start.
        queue: Kueue's LocalQueue, as a label of each pod.
        pool: of the tasks for which `tasks` names none; also of the task that launches a TrainJob.
        training_runtime: the namespace's TrainingRuntime (infra/k8s/base/training.yaml), for pools of several nodes.
    """

    name: str = "local"
    cluster: bool = False
    image: str | None = None
    retries: int = Field(1, ge=0)
    backoff: Duration = "1s"
    timeout: Duration | None = None
    parallelism: int = Field(2, ge=1)
    shard_threads: int | None = Field(None, ge=1)
    prerequisites: bool = False
    free_gigabytes: float = Field(1.0, ge=0)
    namespace: str | None = None
    service_account: str | None = None
    pipeline_root: str | None = None
    queue: str | None = None
    pool: str | None = None
    training_runtime: str | None = None
    pools: dict[str, Pool] = {}
    tasks: dict[str, TaskSettings] = {}
    secrets: tuple[Secret, ...] = ()
    environment: dict[str, str] = {}
    image_pull_secrets: tuple[str, ...] = ()
    volume: Volume | None = None
    security: Security | None = None

    def task(self, component: str) -> TaskSettings:
        """A component's settings, with the profile's where it has none of its own."""
        own = self.tasks.get(component, TaskSettings())
        return TaskSettings(
            pool=own.pool or self.pool,
            retries=self.retries if own.retries is None else own.retries,
            timeout=own.timeout or self.timeout,
        )

    def secrets_of(self, component: str) -> list[Secret]:
        everything = component == "prerequisites"
        return [secret for secret in self.secrets if everything or not secret.tasks or component in secret.tasks]


def read_profile(name: str, *, with_image: bool = True) -> Profile:
    """The profile of that name, or in that file; `with_image` asks that a cluster's has an image.

    Raises:
        UsageError: no such profile, a setting that there is not or that does not fit, a pool or component that there
            is not, or a cluster's profile without an image.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        if name == "local":  # installed from a wheel, without infra/
            return Profile()
        known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.yaml"))) or "local"
        raise UsageError(f"no profile {name!r} ({path})", f"profiles: {known}; or name a YAML file")
    try:
        said = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"profile {path} is not YAML: {' '.join(str(error).split())}", "mend the file") from None
    profile = _checked(path, said)
    if with_image and profile.cluster and not (os.environ.get("KIWI_IMAGE") or profile.image):
        raise UsageError(
            f"profile {profile.name!r} runs in containers and names no image",
            "set KIWI_IMAGE=REPOSITORY@sha256:<digest> (or :<git SHA>), or `image:` in the profile",
        )
    return profile


def _checked(path: Path, said: Any) -> Profile:
    try:
        profile = Profile.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        *above, last = [str(part) for part in first["loc"]] or ["the file"]
        if first["type"] == "extra_forbidden":
            where = f" in {'.'.join(above)}" if above else ""
            settings = f"settings: {', '.join(Profile.model_fields)}" if not above else "see pipelines/profile.py"
            raise UsageError(f"profile {path}: no setting {last!r}{where}", settings) from None
        raise UsageError(f"profile {path}: {'.'.join([*above, last])}: {first['msg']}", "mend the file") from None
    named = {task.pool for task in profile.tasks.values()} | {profile.pool}
    lacking = sorted(name for name in named if name and name not in profile.pools)
    if lacking:
        raise UsageError(f"profile {path}: no pool {lacking[0]!r}", f"pools: {', '.join(profile.pools) or 'none'}")
    _check_nodes(path, profile)
    components = {file.parent.name for file in (Path(__file__).parents[1] / "components").glob("*/component.py")}
    mentioned = {*profile.tasks, *(name for secret in profile.secrets for name in secret.tasks)}
    strangers = sorted(mentioned - components)
    if strangers:
        raise UsageError(
            f"profile {path}: no component {strangers[0]!r}", f"components: {', '.join(sorted(components))}"
        )
    return profile


def _check_nodes(path: Path, profile: Profile) -> None:
    """A pool of several nodes is for train_stage alone, which makes a TrainJob; its launcher needs another pool."""
    several = {name for name, pool in profile.pools.items() if pool.nodes > 1}
    if not several:
        return
    if not profile.training_runtime:
        raise UsageError(
            f"profile {path}: pool {min(several)!r} has several nodes, and no `training_runtime:` is named",
            "name the TrainingRuntime of infra/k8s/base/training.yaml",
        )
    placed = {component: task.pool for component, task in profile.tasks.items() if component != "train_stage"}
    wrong = sorted(component for component, pool in placed.items() if pool in several)
    if wrong or profile.pool in several:
        raise UsageError(
            f"profile {path}: {wrong[0] if wrong else 'pool'!r} is in a pool of several nodes",
            "only train_stage trains on several; give the others a pool of one node",
        )
