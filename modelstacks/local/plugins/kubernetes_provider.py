"""The Kubernetes provider that the engine starts: the ResourceProvider service on one cluster."""

# ruff: noqa: N802 -- gRPC names the methods

from __future__ import annotations

import json
import os
import sys
import threading
from importlib.metadata import version
from typing import Any, Final

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
from google.protobuf import any_pb2, empty_pb2  # type: ignore[import-untyped]  # protobuf ships no types
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc, status_pb2

from modelstacks.cluster.connection import (
    ApiError,
    Cluster,
    Kind,
    KindNotFoundError,
    Manifest,
    UnreachableError,
    identifier,
)
from modelstacks.errors import BadInput, ClusterError
from modelstacks.local.plugins.kubernetes_await import TIMEOUT_SECONDS, Wait, timeout_s
from modelstacks.local.plugins.kubernetes_diff import Change, changes, drifted_string_data, importable
from modelstacks.local.plugins.kubernetes_ready import REPLACE_UNREADY, WAIT_FOR, annotation, verdict, wait_conditions
from modelstacks.local.plugins.kubernetes_state import (
    MANAGER,
    forced,
    is_drift,
    manager_of,
    object_of,
    outputs_of,
    refuse_foreign,
)
from modelstacks.local.plugins.kubernetes_values import (
    Secret,
    from_struct,
    has_unknown,
    mark_secrets,
    plain,
    to_struct,
    with_underscores,
)
from modelstacks.local.plugins.serving import Engine, answered, engine_address, serve

_NOTICE: Final = (
    "modelstacks' stand-in for the Kubernetes provider is in use, because the official"
    " pulumi-resource-kubernetes plugin cannot be downloaded on a closed network"
)
_DELETION: Final = "pulumi.com/deletionPropagationPolicy"
_PROPAGATION: Final = {"foreground": "Foreground", "background": "Background", "orphan": "Orphan"}


class KubernetesProvider(provider_pb2_grpc.ResourceProviderServicer):
    """One configured provider; provider.proto says what each method must do."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cluster: Cluster | None = None
        self._delete_unreachable = False
        self._noticed = False
        self._cancelled = threading.Event()
        self._replacing: set[str] = set()

    def Handshake(self, request: Any, context: Any) -> provider_pb2.ProviderHandshakeResponse:
        return provider_pb2.ProviderHandshakeResponse(accept_secrets=True)

    def Attach(self, request: Any, context: Any) -> empty_pb2.Empty:
        self._engine = Engine(request.address)
        return empty_pb2.Empty()

    def GetPluginInfo(self, request: Any, context: Any) -> plugin_pb2.PluginInfo:
        return plugin_pb2.PluginInfo(version=version("pulumi-kubernetes"))

    def GetSchema(self, request: Any, context: Any) -> provider_pb2.GetSchemaResponse:
        schema = {"name": "kubernetes", "version": version("pulumi-kubernetes"), "resources": {}}
        return provider_pb2.GetSchemaResponse(schema=json.dumps(schema))

    def CheckConfig(self, request: Any, context: Any) -> provider_pb2.CheckResponse:
        return provider_pb2.CheckResponse(inputs=request.news)

    @answered
    def DiffConfig(self, request: Any, context: Any) -> provider_pb2.DiffResponse:
        old, new = from_struct(request.old_inputs or request.olds), from_struct(request.news)
        # A kubeconfig says nothing certain about which cluster it leads to, so nothing is replaced for it.
        return _diff_response(changes(plain(old), plain(new)), replace=False, delete_first=False)

    @answered
    def Configure(self, request: Any, context: Any) -> provider_pb2.ConfigureResponse:
        settings = plain(from_struct(request.args))
        unreachable = settings.get("deleteUnreachable") or os.environ.get("PULUMI_K8S_DELETE_UNREACHABLE")
        self._delete_unreachable = str(unreachable).lower() == "true"
        if not has_unknown(settings):
            names = ("kubeconfig", "context", "namespace")
            kubeconfig, context_name, namespace = (settings.get(name) or None for name in names)
            if isinstance(kubeconfig, dict):
                kubeconfig = json.dumps(kubeconfig, indent=1)  # told from a path by its line breaks
            self._cluster = Cluster.connect(kubeconfig, context_name, namespace)
        if not self._noticed:
            self._noticed = True
            self._engine.info(_NOTICE)
        return provider_pb2.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    @answered
    def Check(self, request: Any, context: Any) -> provider_pb2.CheckResponse:
        kind, inputs = Kind.from_token(request.type), from_struct(request.news)
        inputs = {"apiVersion": kind.api_version, "kind": kind.kind} | inputs
        metadata = plain(inputs.get("metadata") or {})
        failures = []
        if isinstance(metadata, dict) and not has_unknown(metadata):
            if not metadata.get("name"):
                reason = "is missing; this provider makes up no names"
                failures.append(provider_pb2.CheckFailure(property="metadata.name", reason=reason))
            elif not metadata.get("namespace") and self._is_namespaced(Kind.of(plain(inputs))):
                marked = inputs["metadata"]
                placed = {**plain(marked), "namespace": self._connected().namespace}
                inputs["metadata"] = Secret(placed) if isinstance(marked, Secret) else marked | placed
            limit = annotation({"metadata": metadata}, TIMEOUT_SECONDS)
            if limit and not limit.isdecimal():
                path = f'metadata.annotations["{TIMEOUT_SECONDS}"]'
                failures.append(provider_pb2.CheckFailure(property=path, reason="is no number of seconds"))
            if wait_for := annotation({"metadata": metadata}, WAIT_FOR):
                try:
                    wait_conditions(wait_for)
                except BadInput as error:
                    failures += [
                        provider_pb2.CheckFailure(
                            property=f'metadata.annotations["{problem.path}"]', reason=str(problem)
                        )
                        for problem in error.problems
                    ]
        return provider_pb2.CheckResponse(inputs=to_struct(inputs), failures=failures)

    @answered
    def Diff(self, request: Any, context: Any) -> provider_pb2.DiffResponse:
        old, new = (object_of(from_struct(part)) for part in (request.old_inputs, request.news))
        found = changes(old, new)
        failed = self._failed_for_good(new)
        replace = failed or any(change.replaces for change in found)
        (self._replacing.add if replace else self._replacing.discard)(request.urn)
        # Names are fixed, so the old object must go before the new one of that name can come.
        return _diff_response(found, replace=replace, delete_first=replace, failed=failed)

    def _failed_for_good(self, obj: Manifest) -> bool:
        """The live object, such as a Job, has failed, and its annotation asks for a new one in its place."""
        if self._cluster is None or annotation(obj, REPLACE_UNREADY) != "true":
            return False
        try:
            live = self._cluster.get(Kind.of(obj), obj["metadata"].get("namespace"), obj["metadata"]["name"])
            return live is not None and verdict(live, self._cluster).failed
        except ClusterError:
            return False

    @answered
    def Create(self, request: Any, context: Any) -> provider_pb2.CreateResponse:
        inputs = from_struct(request.properties)
        echo = provider_pb2.CreateResponse(properties=to_struct(mark_secrets(inputs, inputs)))
        if request.preview and (has_unknown(inputs) or self._cluster is None):
            return echo
        cluster, obj = self._connected(), object_of(inputs)
        manager = annotation(obj, "pulumi.com/patchFieldManager") or manager_of(request.urn)
        live = cluster.get(Kind.of(obj), obj["metadata"].get("namespace"), obj["metadata"]["name"])
        if request.preview:
            if request.urn in self._replacing and live is not None:
                return echo  # it stands in the place of its replacement, so a dry run would compare the two
            refuse_foreign(live, manager)
            self._dry_run(obj, manager, [])
            return echo
        if live is not None and live["metadata"].get("deletionTimestamp"):
            self._wait(live, request).until_gone(live)
            live = None
        refuse_foreign(live, manager)
        applied = cluster.apply(obj, manager, force=forced(obj))
        outputs = self._settled(request, context, applied, inputs, manager)
        return provider_pb2.CreateResponse(id=identifier(applied), properties=to_struct(outputs))

    @answered
    def Update(self, request: Any, context: Any) -> provider_pb2.UpdateResponse:
        inputs, old_inputs, olds = (from_struct(part) for part in (request.news, request.old_inputs, request.olds))
        merged = to_struct(mark_secrets({**olds, **inputs}, inputs))
        if request.preview and (has_unknown(inputs) or self._cluster is None):
            return provider_pb2.UpdateResponse(properties=merged)
        cluster, obj = self._connected(), object_of(inputs)
        manager = str(plain(olds.get(MANAGER)) or manager_of(request.urn))
        changed = changes(object_of(old_inputs), obj)
        if request.preview:
            dry = self._dry_run(obj, manager, changed)
            outputs = merged if dry is None else to_struct(outputs_of(dry, inputs, manager))
            return provider_pb2.UpdateResponse(properties=outputs)
        try:
            applied = cluster.apply(obj, manager, force=forced(obj))
        except ApiError as error:
            if not is_drift(error, changed):
                raise
            applied = cluster.apply(obj, manager, force=True)
        outputs = self._settled(request, context, applied, inputs, manager)
        return provider_pb2.UpdateResponse(properties=to_struct(outputs))

    @answered
    def Read(self, request: Any, context: Any) -> provider_pb2.ReadResponse:
        cluster, old, state = self._connected(), from_struct(request.inputs), from_struct(request.properties)
        namespace, _, name = request.id.rpartition("/")
        kind = Kind.of(plain(old)) if {"apiVersion", "kind"} <= old.keys() else Kind.from_token(request.type)
        try:
            live = cluster.get(kind, namespace or None, name)
        except UnreachableError:
            if not self._delete_unreachable:
                raise
            live = None
        if live is None:
            return provider_pb2.ReadResponse(id="")
        manager = str(plain(state.get(MANAGER)) or manager_of(request.urn))
        inputs = self._current(old, live, manager) if old else with_underscores(importable(live))
        return provider_pb2.ReadResponse(
            id=identifier(live),
            properties=to_struct(outputs_of(live, old, manager)),
            inputs=to_struct(mark_secrets(inputs, old)),
        )

    @answered
    def Delete(self, request: Any, context: Any) -> empty_pb2.Empty:
        cluster, state = self._connected(), plain(from_struct(request.properties))
        kind = Kind.of(state) if {"apiVersion", "kind"} <= state.keys() else Kind.from_token(request.type)
        namespace, _, name = request.id.rpartition("/")
        try:
            live = cluster.get(kind, namespace or None, name)
            if live is not None:
                policy = annotation(live, _DELETION) or annotation(object_of(state), _DELETION)
                cluster.delete(kind, namespace or None, name, _PROPAGATION.get(policy.lower(), "Foreground"))
                self._wait(live, request).until_gone(live)
        except UnreachableError:
            if not self._delete_unreachable:
                raise
        return empty_pb2.Empty()

    def Cancel(self, request: Any, context: Any) -> empty_pb2.Empty:
        self._cancelled.set()
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, _not_here(f"the function {request.tok}"))

    def Call(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, _not_here(f"the method {request.tok}"))

    def Construct(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, _not_here(f"the component {request.type}"))

    def _connected(self) -> Cluster:
        if self._cluster is None:
            raise ClusterError("the provider's kubeconfig is not known yet", next_step="create the cluster first")
        return self._cluster

    def _is_namespaced(self, kind: Kind) -> bool:
        try:
            return self._cluster is not None and self._cluster.is_namespaced(kind)
        except (KindNotFoundError, UnreachableError):
            return False  # the API answers for it when the object is applied

    def _dry_run(self, obj: Manifest, manager: str, changed: list[Change]) -> Manifest | None:
        """What the server would make of `obj`, or None where its kind or namespace is yet to come."""
        cluster = self._connected()
        try:
            return cluster.apply(obj, manager, dry_run=True, force=forced(obj))
        except KindNotFoundError:
            return None
        except ApiError as error:
            if error.status == 404:
                return None
            if not is_drift(error, changed):
                raise
            return cluster.apply(obj, manager, dry_run=True, force=True)

    def _settled(self, request: Any, context: Any, applied: Manifest, inputs: Manifest, manager: str) -> Manifest:
        """Waits for an applied object; one that does not become ready is recorded with what is missing."""
        live = applied
        try:
            live = self._wait(applied, request).until_ready(applied)
        except ClusterError as error:
            failure = provider_pb2.ErrorResourceInitFailed(
                id=identifier(applied),
                properties=to_struct(outputs_of(applied, inputs, manager)),
                reasons=[str(error)],
                inputs=to_struct(inputs),
            )
            detail = any_pb2.Any()
            detail.Pack(failure, type_url_prefix="type.googleapis.com/")
            code = grpc.StatusCode.UNKNOWN
            status = status_pb2.Status(code=code.value[0], message=str(error), details=[detail])
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(code, str(error))
        return outputs_of(live, inputs, manager)

    def _wait(self, obj: Manifest, request: Any) -> Wait:
        return Wait(
            self._connected(),
            timeout_s(obj, request.timeout),
            self._cancelled,
            lambda line: self._engine.info(line, request.urn, ephemeral=True),
        )

    def _current(self, old: Manifest, live: Manifest, manager: str) -> Manifest:
        """The inputs with what has drifted, measured against what the server would make of them now."""
        try:
            intended = self._connected().apply(object_of(old), manager, dry_run=True, force=True)
        except ClusterError:
            intended = object_of(old)
        return drifted_string_data(plain(old), intended, live)


def _diff_response(
    found: list[Change], *, replace: bool, delete_first: bool, failed: bool = False
) -> provider_pb2.DiffResponse:
    some = provider_pb2.DiffResponse.DiffChanges.DIFF_SOME
    none = provider_pb2.DiffResponse.DiffChanges.DIFF_NONE
    detailed = {}
    for change in found:
        kind = change.kind + ("_REPLACE" if replace and change.replaces else "")
        detailed[change.property_path] = provider_pb2.PropertyDiff(
            kind=provider_pb2.PropertyDiff.Kind.Value(kind), inputDiff=True
        )
    return provider_pb2.DiffResponse(
        changes=some if found or failed else none,
        diffs=sorted({str(change.path[0]) for change in found} | ({"status"} if failed else set())),
        replaces=sorted(
            {str(change.path[0]) for change in found if replace and change.replaces} | ({"status"} if failed else set())
        ),
        deleteBeforeReplace=delete_first,
        detailedDiff=detailed,
        hasDetailedDiff=True,
    )


def _not_here(what: str) -> str:
    return (
        f"{what} is not in modelstacks' stand-in provider, which applies single objects\n"
        "  next: declare the objects themselves, or install the official pulumi-resource-kubernetes plugin"
    )


def main() -> None:
    """Runs the plugin; the engine gives its own address as an argument."""
    provider = KubernetesProvider(Engine(engine_address(sys.argv[1:])))
    serve(lambda server: provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, server))


if __name__ == "__main__":
    main()
