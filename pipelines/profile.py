"""What differs between a laptop, containers and a cluster when a pipeline is compiled (infra/profiles/*.yaml)."""

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from kiwi.configuration import Settings
from kiwi.errors import UsageError

PROFILES = Path(__file__).resolve().parents[1] / "infra" / "profiles"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
POOL_LABEL = "kiwi.dev/pool"
SCRATCH = "/scratch"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
FACTORS = {"": Decimal(1), "m": Decimal("0.001")}
FACTORS |= {letter: Decimal(1000) ** power for power, letter in enumerate("MGT", 2)}
FACTORS |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGT", 1)}


def seconds(said: str) -> int:
    """ "90s", "20m", "6h" or "2d" in seconds. Raises ValueError."""
    if not re.fullmatch(r"[1-9][0-9]*[smhd]", said):
        raise ValueError(f"{said!r} is no time such as 90s, 20m, 6h or 2d")
    return int(said[:-1]) * UNITS[said[-1]]


def amount(said: str) -> Decimal:
    """Cores, or bytes: "500m" is 0.5, "16Gi" is 16 * 2**30."""
    number, factor = re.sub(r"[A-Za-z]+$", "", said), re.search(r"[A-Za-z]+$", said)
    return Decimal(number) * FACTORS[factor[0] if factor else ""]


def _cores(said: str) -> str:
    if not re.fullmatch(r"[0-9]+(\.[0-9]{1,3}|m)?", said) or not amount(said):
        raise ValueError(f"{said!r} is no number of cores such as 4, 0.5 or 500m")
    return said


def _bytes(said: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*([MGT]|[KMGT]i)?", said):
        raise ValueError(f"{said!r} is no amount of bytes such as 512Mi or 16Gi")
    return said


def _duration(said: str) -> str:
    seconds(said)
    return said


def _name(said: str) -> str:
    if len(said) > 253 or not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", said):
        raise ValueError(f"{said!r} is no name in Kubernetes: small letters, digits, '-' and '.'")
    return said


def _variable(said: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", said):
        raise ValueError(f"{said!r} is no name of an environment variable")
    return said


def _secret_key(said: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", said):
        raise ValueError(f"{said!r} is no key of a secret")
    return said


def _label(said: str) -> str:
    if not re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", said):
        raise ValueError(f"{said!r} is no value of a label")
    return said


def _label_key(said: str) -> str:
    prefix, found, name = said.rpartition("/")
    if found:
        _name(prefix)
    if not name or _label(name) != name:
        raise ValueError(f"{said!r} is no key of a label")
    return said


Cores = Annotated[str, AfterValidator(_cores)]
Bytes = Annotated[str, AfterValidator(_bytes)]
Duration = Annotated[str, AfterValidator(_duration)]
Name = Annotated[str, AfterValidator(_name)]
Variable = Annotated[str, AfterValidator(_variable)]
SecretKey = Annotated[str, AfterValidator(_secret_key)]
Label = Annotated[str, AfterValidator(_label)]
LabelKey = Annotated[str, AfterValidator(_label_key)]


class Toleration(Settings):
    """A taint that a task's pod bears."""

    key: LabelKey
    operator: Literal["Equal", "Exists"] = "Exists"
    value: Label | None = None
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None = None

    @model_validator(mode="after")
    def _a_value_where_one_is_compared(self) -> Self:
        if (self.operator == "Equal") == (self.value is None):
            raise ValueError("Equal compares with a value, Exists with none")
        return self


class Affinity(Settings):
    """One expression on the nodes' labels; a `weight` makes it a wish, none makes it a must."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = "In"
    values: tuple[Label, ...] = ()
    weight: int | None = Field(None, ge=1, le=100)

    @model_validator(mode="after")
    def _as_many_values_as_are_compared(self) -> Self:
        if self.operator in ("Gt", "Lt"):
            if len(self.values) != 1 or not self.values[0].isdecimal():
                raise ValueError(f"{self.operator} compares with one whole number, as text")
        elif (self.operator in ("In", "NotIn")) != bool(self.values):
            raise ValueError("In and NotIn compare with values, Exists and DoesNotExist with none")
        return self

    def expression(self) -> dict[str, Any]:
        """In Kubernetes' words."""
        return {"key": self.key, "operator": self.operator, "values": list(self.values)}


class Pool(Settings):
    """The nodes a task runs on and what it asks of them."""

    cpu: Cores | None = None
    cpu_limit: Cores | None = Field(None, description="None: no limit, so that idle cores are used")
    memory: Bytes | None = Field(None, description="asked for and limit alike: memory cannot be taken back")
    accelerator: LabelKey | None = Field(None, description="the resource's name, such as nvidia.com/gpu")
    accelerators: int = Field(0, ge=0, description="of one node")
    nodes: int = Field(1, ge=1, description="more than one: a TrainJob on as many nodes, for train_stage alone")
    selectors: dict[LabelKey, Label] = {}
    affinity: tuple[Affinity, ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    shared_memory: Bytes | None = Field(None, description="/dev/shm, for the loaders' worker processes; of `memory`")
    scratch: Bytes | None = Field(None, description="a place that lives as long as the pod, where TMPDIR points")
    scratch_class: Name | None = Field(None, description="a volume of that storage class; None: the node's own disk")
    priority: Name | None = Field(None, description="Kueue's WorkloadPriorityClass")

    @model_validator(mode="after")
    def _what_a_node_can_give(self) -> Self:
        if bool(self.accelerator) != bool(self.accelerators):
            raise ValueError("`accelerator` names what `accelerators` counts: give both, or neither")
        if self.cpu_limit and (not self.cpu or amount(self.cpu_limit) < amount(self.cpu)):
            raise ValueError("`cpu_limit` is at least `cpu`, which has to be there")
        if self.shared_memory and (not self.memory or amount(self.shared_memory) >= amount(self.memory)):
            raise ValueError("`shared_memory` counts as memory: less than `memory`, which has to be there")
        if self.scratch_class and not self.scratch:
            raise ValueError("`scratch_class` is of a volume whose size `scratch` says")
        return self


class TaskSettings(Settings):
    """One component's place, and what differs from the profile's retries and timeout."""

    pool: str | None = None
    retries: int | None = Field(None, ge=0)
    timeout: Duration | None = None


class Secret(Settings):
    """A Kubernetes secret by name; its values never stand in a pipeline. `keys`: its key → environment variable."""

    name: Name
    keys: dict[SecretKey, Variable] = Field(min_length=1)
    optional: bool = False
    tasks: tuple[str, ...] = Field((), description="components that get it; none named: all")


class Volume(Settings):
    """A claim that every task mounts: the work folders."""

    claim: Name
    path: str = Field(pattern=r"^/[^:]+$")


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
    namespace: Name | None = None
    service_account: Name | None = None
    pipeline_root: str | None = None
    queue: Name | None = None
    pool: str | None = None
    training_runtime: Name | None = None
    pools: dict[Label, Pool] = {}
    tasks: dict[str, TaskSettings] = {}
    secrets: tuple[Secret, ...] = ()
    environment: dict[Variable, str] = {}
    image_pull_secrets: tuple[Name, ...] = ()
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
    _check_variables(path, profile)
    components = {file.parent.name for file in (Path(__file__).parents[1] / "components").glob("*/component.py")}
    mentioned = {*profile.tasks, *(name for secret in profile.secrets for name in secret.tasks)}
    strangers = sorted(mentioned - components)
    if strangers:
        raise UsageError(
            f"profile {path}: no component {strangers[0]!r}", f"components: {', '.join(sorted(components))}"
        )
    return profile


def _check_variables(path: Path, profile: Profile) -> None:
    """No variable is said twice for one task: which of the two it is would be Kubernetes' secret."""
    for component in sorted({*profile.tasks, *(task for secret in profile.secrets for task in secret.tasks), "*"}):
        said = [*profile.environment]
        for secret in profile.secrets:
            if not secret.tasks or component in secret.tasks:
                said += secret.keys.values()
        twice = sorted({name for name in said if said.count(name) > 1})
        if twice:
            where = "every task" if component == "*" else component
            raise UsageError(
                f"profile {path}: {twice[0]} is said twice for {where}", "once in `secrets:` or `environment:`"
            )


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
