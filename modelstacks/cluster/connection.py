"""Speaks to one API server: type token to REST path, apply, read, list, delete, and its errors in words."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import urllib3
import yaml

from modelstacks.errors import ClusterError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

# A Kubernetes object, or a part of one, as plain JSON data.
Manifest = dict[str, Any]

_APPLY: Final = "application/apply-patch+yaml"
_METADATA: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
# Seconds to connect, seconds to answer: a large apply through admission webhooks may take its 30 s.
_REQUEST_TIMEOUT_S: Final = (5.0, 60.0)


class ApiError(ClusterError):
    """The API server answered with an error."""

    def __init__(self, message: str, *, status: int, causes: list[dict[str, str]], next_step: str | None) -> None:
        super().__init__(message, next_step=next_step)
        self.status = status
        self.causes = causes


class UnreachableError(ClusterError):
    """The API server did not answer."""


class KindNotFoundError(ClusterError):
    """The cluster does not serve this kind: its CustomResourceDefinition is not installed."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What an object is: `apps/v1` and `Deployment`."""

    api_version: str
    kind: str

    @classmethod
    def of(cls, obj: Manifest) -> Kind:
        """The kind that `obj` says it is."""
        return cls(obj["apiVersion"], obj["kind"])

    @classmethod
    def from_token(cls, token: str) -> Kind:
        """The kind that a Pulumi type token names: `kubernetes:apps/v1:Deployment`, `kubernetes:core/v1:Pod`.

        Raises ClusterError for tokens that are no objects: Helm releases, patches, lists.
        """
        match = re.fullmatch(r"kubernetes:([^:/]+)/([^:/]+):(\w+)", token)
        if match is None:
            raise ClusterError(
                f"{token} names no group and version", next_step="use a token such as apps/v1:Deployment"
            )
        group, version, kind = match.groups()
        if group == "helm.sh" or (kind.endswith(("Patch", "List")) and ("." not in group or group.endswith(".k8s.io"))):
            raise ClusterError(
                f"{token} is not in modelstacks' stand-in provider, which applies single objects",
                next_step="declare the objects themselves, or install the official plugin",
            )
        return cls(version if group == "core" else f"{group}/{version}", kind)

    def __str__(self) -> str:
        return f"{self.api_version} {self.kind}"


def group_of(api_version: str) -> str:
    """`apps` for `apps/v1`, the empty string for the core group's `v1`."""
    return api_version.rpartition("/")[0]


def identifier(obj: Manifest) -> str:
    """The resource id of an object: `namespace/name`, or `name` where there is no namespace."""
    metadata = obj["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else str(metadata["name"])


def held_by_pulumi(live: Manifest) -> list[Manifest]:
    """The entries of `managedFields` that are Pulumi's, whatever its provider called itself."""
    entries = live["metadata"].get("managedFields") or []
    return [entry for entry in entries if str(entry.get("manager")).startswith("pulumi")]


class Cluster:
    """One API server as the provider's configuration reaches it."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        self._resources: dict[Kind, tuple[str, bool]] = {}
        self.client = api
        self.namespace = namespace
        self.host: str = api.configuration.host

    @classmethod
    def connect(cls, kubeconfig: str | None, context: str | None, namespace: str | None) -> Cluster:
        """The cluster that `kubeconfig` (a path, several, or the file's contents) and `context` name.

        Without one: KUBECONFIG, then ~/.kube/config, then the pod's own service account. Raises ClusterError.
        """
        # The client takes 1.3 s to import, and the engine starts instances that it never configures.
        from kubernetes import client, config

        source = kubeconfig or os.environ.get("KUBECONFIG") or config.KUBE_CONFIG_DEFAULT_LOCATION
        files = [Path(part).expanduser() for part in source.split(os.pathsep)] if "\n" not in source else []
        settings = client.Configuration()
        settings.connection_pool_maxsize = 64
        settings.retries = 1
        in_effect = namespace
        try:
            if any(len(str(file)) < 1024 and file.is_file() for file in files):
                path = os.pathsep.join(str(file) for file in files)
                config.load_kube_config(path, context, settings, persist_config=False)  # type: ignore[no-untyped-call]
                _, active = config.list_kube_config_contexts(path)  # type: ignore[no-untyped-call]
            elif kubeconfig and isinstance(content := yaml.safe_load(kubeconfig), dict):
                config.load_kube_config_from_dict(content, context, settings, persist_config=False)  # type: ignore[no-untyped-call]
                active = {"context": _context(content, context)}
            elif kubeconfig:
                raise ClusterError(f"kubeconfig {kubeconfig} does not exist", next_step="give a file or its contents")
            else:
                config.load_incluster_config(settings)  # type: ignore[no-untyped-call]
                active = {}
        except (config.ConfigException, yaml.YAMLError) as error:
            raise ClusterError(
                f"the kubeconfig cannot be used: {error}",
                next_step="set KUBECONFIG or the kubeContext; `modelstacks local up` starts a cluster",
            ) from error
        if in_effect is None and context is None and active:
            in_effect = active.get("context", {}).get("namespace")
        return cls(client.ApiClient(settings), in_effect or "default")

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Manifest:
        """The API server's answer as data. Raises ApiError or UnreachableError."""
        answer: Manifest = json.loads(self._ask(method, path, query, body, content_type, accept))
        return answer

    def text(self, method: str, path: str, query: Mapping[str, str] | None = None) -> str:
        """The API server's answer as it is, such as a log. Raises ApiError or UnreachableError."""
        found = self._ask(method, path, query, None, "application/json", "*/*")
        return found.decode(errors="replace") if isinstance(found, bytes) else found

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: object,
        content_type: str,
        accept: str,
    ) -> str | bytes:
        from kubernetes.client.exceptions import ApiException

        headers = {"Accept": accept} | ({"Content-Type": content_type} if body is not None else {})
        # JSON is YAML, so one encoding serves apply patches as well.
        payload = None if body is None else (json.dumps(body) if content_type == _APPLY else body)
        try:
            call = self.client.param_serialize(
                method, path, query_params=list((query or {}).items()), header_params=headers, body=payload,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            response = self.client.call_api(*call, _request_timeout=_REQUEST_TIMEOUT_S)
            text = response.read()  # type: ignore[no-untyped-call]
        except ApiException as error:
            raise _api_error(error.status or 0, error.body, method, path, self.host) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = str(getattr(error, "reason", None) or error).rpartition(": ")[2]
            if "PEM lib" in str(error) or "KEY_VALUES_MISMATCH" in str(error):
                raise UnreachableError(
                    "the client certificate of the kubeconfig cannot be read", next_step="write the kubeconfig afresh"
                ) from error
            if "certificate verify failed" in str(error).lower():
                raise UnreachableError(
                    f"the certificate of {self.host} is not signed by the kubeconfig's authority: {reason}",
                    next_step="write the kubeconfig afresh: it is of another cluster, or of before a renewal",
                ) from error
            raise UnreachableError(
                f"the API server {self.host} does not answer: {reason}",
                next_step="check the context, and that the cluster runs (`modelstacks local status`)",
            ) from error
        if not 200 <= response.status <= 299:
            raise _api_error(response.status, text, method, path, self.host)
        found: str | bytes = text
        return found

    def path(self, kind: Kind, namespace: str | None = None, name: str | None = None) -> str:
        """The REST path of an object or a collection. Raises KindNotFoundError."""
        plural, namespaced = self.resource(kind)
        root = _root(kind.api_version)
        scope = f"/namespaces/{quote(namespace or self.namespace)}" if namespaced else ""
        return f"{root}{scope}/{plural}" + (f"/{quote(name, safe=':')}" if name else "")

    def is_namespaced(self, kind: Kind) -> bool:
        """Whether objects of this kind live in a namespace. Raises KindNotFoundError."""
        return self.resource(kind)[1]

    def resource(self, kind: Kind) -> tuple[str, bool]:
        """The resource name of a kind and whether it is namespaced; what is served is asked once for each version.

        Raises KindNotFoundError where the cluster does not serve it.
        """
        if kind not in self._resources:
            try:
                served = self.request("GET", _root(kind.api_version))["resources"]
            except ApiError as error:
                if error.status != 404:
                    raise
                served = []
            for resource in served:
                if "/" not in resource["name"]:
                    found = Kind(kind.api_version, resource["kind"])
                    self._resources[found] = (resource["name"], resource["namespaced"])
        if kind not in self._resources:
            plural = kind.kind.lower() + ("es" if kind.kind.endswith(("s", "x", "ch")) else "s")
            raise KindNotFoundError(
                f"the cluster does not serve {kind}: the CustomResourceDefinition"
                f" {plural}.{group_of(kind.api_version)} is not installed",
                next_step="install the operator that brings it, or let this resource depend on it",
            )
        return self._resources[kind]

    def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """The live object, or None where it or its kind does not exist."""
        try:
            return self.request("GET", self.path(kind, namespace, name))
        except KindNotFoundError:
            return None
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def items(self, kind: Kind, namespace: str | None, **query: str) -> list[Manifest]:
        """The objects of one kind; `labelSelector` and `fieldSelector` go into the query."""
        found: list[Manifest] = self.request("GET", self.path(kind, namespace), query)["items"]
        return found

    def everywhere(self, kind: Kind, *, names_only: bool = False, **query: str) -> list[Manifest]:
        """The objects of one kind in all namespaces; queries as in `items`. `names_only`: nothing but metadata."""
        plural, _ = self.resource(kind)
        accept = _METADATA if names_only else "application/json"
        path = f"{_root(kind.api_version)}/{plural}"
        # An empty list of metadata comes as null.
        found: list[Manifest] = self.request("GET", path, query, accept=accept)["items"] or []
        return found

    def apply(self, obj: Manifest, manager: str, *, dry_run: bool = False, force: bool = False) -> Manifest:
        """Server-side apply with strict field validation; the object that results. Raises ApiError."""
        metadata = obj["metadata"]
        query = {"fieldManager": manager, "force": str(force).lower(), "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        path = self.path(Kind.of(obj), metadata.get("namespace"), metadata["name"])
        return self.request("PATCH", path, query, obj, _APPLY)

    def delete(self, kind: Kind, namespace: str | None, name: str, propagation: str) -> None:
        """Asks for the object's deletion; one that is gone, or whose kind is, is no error."""
        with contextlib.suppress(KindNotFoundError):
            try:
                path = self.path(kind, namespace, name)
                self.request("DELETE", path, body={"propagationPolicy": propagation})
            except ApiError as error:
                if error.status != 404:
                    raise


def _context(kubeconfig: dict[str, Any], name: str | None) -> dict[str, Any]:
    wanted = name or kubeconfig.get("current-context")
    return next((entry["context"] for entry in kubeconfig.get("contexts", []) if entry["name"] == wanted), {})


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _api_error(status: int, text: str | bytes | None, method: str, path: str, host: str) -> ApiError:
    try:
        answer = json.loads(text or "{}")
    except ValueError:
        answer = {"message": text.decode(errors="replace") if isinstance(text, bytes) else text}
    message = str(answer.get("message") or f"HTTP status {status}")
    causes: list[dict[str, str]] = (answer.get("details") or {}).get("causes") or []
    step: str | None = None
    if status == 400 and "HTTP request to an HTTPS server" in message:
        message, step = f"{host} speaks HTTPS", "write https:// in the kubeconfig's server"
    elif status == 401:
        message = f"the API server {host} rejects the kubeconfig's credentials"
        step = "sign in to the cluster again and renew the kubeconfig"
    elif status == 403 and (denied := re.search(r'cannot (\w+) resource "([^"]+)"', message)):
        place = re.search(r'in the namespace "[^"]+"|at the cluster scope', message)
        where = place[0].replace('"', "") if place else ""
        step = f"ask the cluster's administrator for the verb {denied[1]} on {denied[2]} {where}".rstrip()
    elif status == 404 and "namespaces" in message:
        step = "create the namespace first, or let this resource depend on it"
    elif status == 409 and any(cause.get("reason") == "FieldManagerConflict" for cause in causes):
        fields = [f"{cause['field']}: {cause['message']}" for cause in causes]
        message = "\n  ".join(["other field managers own fields of this object:", *fields])
        step = (
            "leave those fields out of the manifest if something else sets them (an autoscaler: replicas), or"
            ' take them over with the annotation pulumi.com/patchForce: "true"'
        )
    elif status == 422 and causes:
        head = message.partition(": ")[0]
        message = "\n  ".join([f"{head}:", *(f"{cause.get('field', '')}: {cause['message']}" for cause in causes)])
        step = "correct these fields"
    elif "strict decoding error" in message or "field not declared in schema" in message:
        step = "correct or remove these fields; `kubectl explain` lists what the kind has"
    return ApiError(message, status=status, causes=causes, next_step=step)
