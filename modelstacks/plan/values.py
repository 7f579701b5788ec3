"""The frozen values of a plan: what runs, why it fits, what it costs, or why it is refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from modelstacks.catalog import Checkpoint, CloudKind, EngineForm, Fabric, Gpu, Model, TierForm
from modelstacks.errors import Refused
from modelstacks.fit import Load, Memory, Topology
from modelstacks.plan.weights import WeightsPlan
from modelstacks.pool import Pool
from modelstacks.price import Cost
from modelstacks.spec import StackSpec
from modelstacks.stackfile import object_name
from modelstacks.throughput import Throughput


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason why a plan may not run, in numbers: `need` of a `unit`, `have` of it.

    Where something is simply not there, one is needed and none is had.
    """

    code: str
    message: str
    need: float
    have: float
    unit: str

    # Refusals of policy stop a stack, and only warn about a bare model: the hardware itself fits.
    POLICY = (
        "over-budget",
        "license-not-accepted",
        "remote-code-not-accepted",
        "rollout-would-hang",
        "cold-start-too-slow",
    )

    @property
    def is_policy(self) -> bool:
        """True for licence, budget and how it is changed, False for everything the hardware or engine cannot do."""
        return self.code in Refusal.POLICY


@dataclass(frozen=True, slots=True)
class Choice:
    """One complete configuration to check.

    `form` is the engine in the version asked for, None where it cannot serve this tier; `figures` is then a stand-in.
    """

    model: Model
    gpu: Gpu
    engine: str
    tier: str
    form: EngineForm | None
    quantization: str
    topology: Topology
    load: Load
    figures: EngineForm
    # The sequences per step are the user's or an alternative's, not the engine's own default.
    sequences_set: bool = False

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The files that servers fetch: of the quantization itself, or of what it is made from as it is loaded."""
        return self.model.checkpoints.get(self.model.quantize_at_load.get(self.quantization, self.quantization))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, all from the size of the weights.

    `download_s` and `load_s` are expected at pessimistic speeds; `startup_s` is the budget of the start-up probe,
    `ready_s` that of a pod with its node. `before_s` is the budget of what fetches weights before a server starts,
    `again_s` what a pod that replaces another one is expected to take.
    """

    download_s: int
    load_s: int
    startup_s: int
    ready_s: int
    before_s: int = 0
    again_s: int = 0
    # From nothing at all to the first answer, where a node must come first where nodes are made.
    cold_start_s: int = 0


@dataclass(frozen=True, slots=True)
class Leaving:
    """How a server goes, seconds. `pre_stop_s` lets routers forget it, `drain_s` lets it finish, `grace_s` is both
    and a margin.

    `token_s` is what an output token takes, `tokens` the longest answer that is finished when it had just begun;
    `whole` says that none can be longer. `notice_tokens` is the same under a spot notice of `notice_s`.
    """

    pre_stop_s: int
    drain_s: int
    grace_s: int
    token_s: float
    tokens: int
    whole: bool
    notice_s: int | None = None
    notice_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """A plan that passes the same check, and the one-line change that leads to it."""

    change: str
    choice: Choice
    cost: Cost
    max_concurrency: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A decided deployment, or a refusal of it; `fits` speaks of hardware and engine alone."""

    spec: StackSpec
    stack: str | None
    choice: Choice
    tier_form: TierForm
    cloud: CloudKind | None
    checkpoint: Checkpoint | None
    weights_gib: float
    memory: Memory
    cost: Cost
    throughput: Throughput | None
    timeouts: Timeouts
    weights: WeightsPlan
    leaving: Leaving
    nodes_per_replica: int
    gpus_per_node: int
    pool: Pool | None = None
    # The network between the nodes of a replica; None for one node, and where nobody said.
    fabric: Fabric | None = None
    refusals: tuple[Refusal, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    hf_overrides: dict[str, object] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """No refusal of hardware or engine; licence and budget do not count."""
        return all(refusal.is_policy for refusal in self.refusals)

    @property
    def runs(self) -> bool:
        """Nothing at all stands against applying it."""
        return not self.refusals

    @property
    def refusal_lines(self) -> list[str]:
        """Every refusal and every way out, a line each, as all commands and the Pulumi program print them."""
        reasons = [f"  {refusal.code}: {refusal.message}" for refusal in self.refusals]
        return reasons + [f"  would fit: {alternative.change}" for alternative in self.alternatives]

    def check_runs(self) -> None:
        """Raise Refused with every reason and the nearest plans that fit, unless nothing stands against it."""
        if not self.runs:
            name = self.stack or self.name
            lines = [f"{name}: this plan is refused", *self.refusal_lines]
            raise Refused("\n".join(lines), next_step=f"modelstacks plan {name}")

    @property
    def name(self) -> str:
        """The base of all object names: the stack's, or the model's id for a bare model."""
        return object_name(self.stack or self.choice.model.id)

    @property
    def namespace(self) -> str:
        """The namespace everything lives in."""
        return self.spec.namespace or self.name

    @property
    def places(self) -> list[Plan]:
        """This plan in each of its clusters, whose context is then the only one it knows."""
        contexts = self.spec.clusters
        if not contexts:
            return [self]
        return [
            replace(self, spec=self.spec.model_copy(update={"kube_context": context, "clusters": ()}))
            for context in contexts
        ]

    @property
    def gpus(self) -> int:
        """GPUs of all replicas, in all clusters."""
        return self.choice.topology.gpus * self.spec.replicas * self.spec.copies

    @property
    def gpus_of_node(self) -> int:
        """GPUs of one whole node: of the pool's machine, or the most that machines with this GPU have."""
        return self.pool.machine.gpus if self.pool is not None else self.choice.gpu.max_gpus_per_node

    @property
    def answering_pods(self) -> int:
        """Pods of a replica that have the API, and are Ready only while the engine answers."""
        return self.nodes_per_replica if self.tier_form.answering_pods is None else 1

    @property
    def gpus_of_spare(self) -> int:
        """GPUs that a warm spare holds: those of a machine."""
        return self.pool.machine.gpus if self.pool is not None else self.gpus_per_node

    @property
    def gpus_committed(self) -> int:
        """GPUs that the most replicas and the warm spares of one cluster take together."""
        spares = self.spec.cloud.warm_spares if self.spec.cloud is not None else 0
        return self.choice.topology.gpus * self.spec.replicas_at_most + self.gpus_of_spare * spares

    @property
    def usd_per_month_at_most(self) -> float | None:
        """USD a month of everything that may be bought, spares and a second pool included; None without a price."""
        if self.pool is None:
            return self.cost.usd_per_month
        month = self.pool.usd_per_month_at_most
        return None if month is None else month * self.spec.copies
