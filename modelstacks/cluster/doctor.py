"""Everything that keeps a stack from running on a live cluster, each with the command that mends it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from modelstacks.catalog import Catalog
from modelstacks.cluster import access, admission, drift, namespace, nodes, pods, pool, scaling, software
from modelstacks.cluster.connection import Cluster, Manifest
from modelstacks.cluster.findings import Finding, in_order, note, problem, warning
from modelstacks.cluster.snapshot import Snapshot, plural, read
from modelstacks.errors import ClusterError
from modelstacks.plan import Plan

# The oldest Kubernetes whose objects the templates use: lifecycle.preStop.sleep is on by default from 1.30.
_OLDEST_MINOR = 30
# Image volumes are beta and on by default from 1.35 (kubernetes PR 135195).
_IMAGE_VOLUMES_MINOR = 35


def look(cluster: Cluster, plan: Plan | None, manifests: list[Manifest], catalog: Catalog) -> list[Finding]:
    """Read the cluster and judge it for one stack, or as a whole when `plan` is None."""
    snapshot = read(cluster, plan.namespace if plan is not None else "default", manifests)
    return examine(snapshot, plan, manifests, catalog)


def examine(snapshot: Snapshot, plan: Plan | None, manifests: list[Manifest], catalog: Catalog) -> list[Finding]:
    """Every finding of one reading, problems first."""
    found = [*_version(snapshot, plan), *_readable(snapshot)]
    found += _checked("operators", lambda: software.examine(snapshot, plan, catalog))
    if plan is None:
        return in_order([*found, *_checked("nodes", lambda: nodes.overview(snapshot))])
    wanted = nodes.needs(manifests)
    found += _permissions(snapshot)
    found += pool.unserved(snapshot, plan, manifests, catalog)
    found += _checked("namespace", lambda: namespace.examine(snapshot, plan, manifests, wanted))
    found += _checked("quota", lambda: admission.examine(snapshot, plan, manifests, wanted))
    found += _checked("pool", lambda: pool.examine(snapshot, plan, manifests))
    # Nodes that a pool makes need not be there beforehand.
    if plan.pool is None and (plan.cloud is None or not plan.cloud.makes_nodes):
        found += _checked("nodes", lambda: nodes.examine(snapshot, plan, wanted))
    found += _checked("workload", lambda: drift.examine(snapshot, plan, manifests))
    found += _checked("weights", lambda: pods.weights(snapshot, plan))
    found += _checked("scaling", lambda: scaling.examine(snapshot, plan))
    found += _checked("pods", lambda: pods.examine(snapshot, plan))
    return in_order(found)


def _checked(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """One check; an object that is not as Kubernetes makes them ends this check alone, and is said to."""
    try:
        return check()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        text = f"this check could not read an object of the cluster ({type(error).__name__}: {error})"
        return [warning(name, text, "report it with the output of --json")]


def unreachable(error: ClusterError) -> Finding:
    """The finding that stands for a cluster that cannot be asked at all."""
    return problem("access", error.message, error.next_step)


def preflight(cluster: Cluster, plan: Plan, manifests: list[Manifest], catalog: Catalog) -> None:
    """What must hold before the first object is made: kinds are served, and this user may make them.

    Raises ClusterError that names all of it.
    """
    missing = access.missing_kinds(cluster, manifests)
    groups = {api_version.partition("/")[0] for api_version, _ in missing}
    brought = {crd.partition(".")[2] for name in plan.spec.operators for crd in catalog.operators[name].crds}
    late = [(v, k) for v, k in missing if v.partition("/")[0] not in brought]
    served = {group: tuple(access.served_versions(cluster, group)) for group in groups}
    here = [m for m in manifests if (m["apiVersion"], m["kind"]) in late]
    snapshot = Snapshot("", cluster.host, plan.namespace, versions=served, missing_kinds=frozenset(late))
    found = pool.unserved(snapshot, plan, here, catalog)
    found += _permissions(Snapshot("", cluster.host, plan.namespace, denied=tuple(access.denied(cluster, manifests))))
    if found:
        lines = [f"{one.message}" + (f"\n    mend: {one.mend}" if one.mend else "") for one in found]
        text = "\n  - ".join([f"{cluster.host} is not ready for {plan.name}, nothing was made:", *lines])
        raise ClusterError(text, next_step=f"modelstacks doctor {plan.stack or plan.name}")


# Collections without which the checks still say what keeps a stack.
_ASIDE = ("definitions", "helm_releases", "operator_claims", "rayclusters", "priorityclasses")


def _version(snapshot: Snapshot, plan: Plan | None) -> list[Finding]:
    parts = snapshot.version.removeprefix("v").split(".")
    if len(parts) < 2 or not parts[1].isdigit():
        return []
    if int(parts[1]) < _OLDEST_MINOR:
        text = f"Kubernetes {snapshot.version} is older than 1.{_OLDEST_MINOR}, which the servers' preStop hooks need"
        return [problem("access", text, "upgrade the cluster")]
    if plan is not None and plan.weights.place == "image" and int(parts[1]) < _IMAGE_VOLUMES_MINOR:
        text = f"Kubernetes {snapshot.version} has image volumes off: they are on from 1.{_IMAGE_VOLUMES_MINOR}"
        mend = "turn the gate ImageVolume on (from 1.33), or keep weights in a volume: modelstacks:weights"
        return [problem("access", text, mend)]
    return [note("access", f"{snapshot.host} answers: Kubernetes {snapshot.version}")]


def _readable(snapshot: Snapshot) -> list[Finding]:
    """Collections that this user may not see, so that the checks on them say nothing."""
    hidden = sorted(
        plural(name) for name, why in snapshot.unreadable.items() if why == "forbidden" and name not in _ASIDE
    )
    if not hidden:
        return []
    text = f"{', '.join(hidden)} may not be listed by this user: what the checks would find there is not known"
    return [warning("permissions", text, f"ask for the verb list on them: kubectl auth can-i list {hidden[0]} -A")]


def _permissions(snapshot: Snapshot) -> list[Finding]:
    """What `pulumi up` would be refused, one finding for each verb and place."""
    by: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for one in snapshot.denied:
        name = f"{one.resource}.{one.group}" if one.group else one.resource
        by[one.verb, one.namespace].append(name)
    found = []
    for (verb, space), names in by.items():
        where = f"in namespace {space}" if space else "cluster-wide"
        flag = f" -n {space}" if space else ""
        text = f"this user may not {verb} {', '.join(names)} {where}"
        found.append(
            problem("permissions", text, f"kubectl auth can-i {verb} {names[0]}{flag}; ask the administrator for it")
        )
    return found
