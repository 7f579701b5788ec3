"""The programs of the embedded cluster: where each is pinned, how it is built, and what a build costs."""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from modelstacks.errors import ToolchainError
from modelstacks.local import golang


@dataclass(frozen=True, slots=True)
class Patch:
    """A line of a module's source that is built differently; the build fails if the line is not there."""

    file: str
    old: str
    new: str
    reason: str


@dataclass(frozen=True, slots=True)
class Program:
    """One program to build, and what a build costs.

    `seconds` is a cold build on two cores with only the programs above it built before (measured 2026-11-24,
    Go 1.26.8, linux/amd64). `stamp` are linker -X settings: unstamped programs misreport their version, and
    their users (the Automation API, kubectl, kwokctl) refuse them for it.
    """

    name: str
    folder: str
    """The module below local/ whose go.mod pins it."""
    module: str
    """The Go module whose version is the program's."""
    package: str
    seconds: int
    stamp: tuple[str, ...] = ()
    patches: tuple[Patch, ...] = ()


_KUBERNETES_STAMP = tuple(
    f"k8s.io/component-base/version.{name}" for name in ("gitVersion={version}", "gitMajor={major}", "gitMinor={minor}")
)


def _kubernetes(name: str, seconds: int) -> Program:
    package = f"k8s.io/kubernetes/cmd/{name}"
    return Program(name, "kubernetes", "k8s.io/kubernetes", package, seconds, _KUBERNETES_STAMP)


# One line, but a module that is changed is built anew: both programs of it take the same.
_KEDA_PATCHES = (
    Patch(
        "cmd/adapter/main.go",
        'fmt.Sprintf(":%v", metricsAPIServerPort)',
        'fmt.Sprintf("127.0.0.1:%v", metricsAPIServerPort)',
        "no option keeps the metrics off the other network interfaces",
    ),
)


def _keda(name: str, package: str, seconds: int) -> Program:
    stamp = ("github.com/kedacore/keda/v2/version.Version={version}",)
    module = "github.com/kedacore/keda/v2"
    return Program(name, "keda", module, f"{module}/cmd/{package}", seconds, stamp, _KEDA_PATCHES)


PROGRAMS = {
    program.name: program
    for program in (
        Program("etcd", "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3", seconds=40),
        Program(
            "kwok",
            "kwok",
            "sigs.k8s.io/kwok",
            "sigs.k8s.io/kwok/cmd/kwok",
            seconds=85,
            stamp=("sigs.k8s.io/kwok/pkg/consts.Version={version}",),
        ),
        Program(
            "kwokctl",
            "kwok",
            "sigs.k8s.io/kwok",
            "sigs.k8s.io/kwok/cmd/kwokctl",
            seconds=12,
            stamp=("sigs.k8s.io/kwok/pkg/consts.Version={version}",),
        ),
        Program(
            "pulumi",
            "pulumi",
            "github.com/pulumi/pulumi/pkg/v3",
            "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
            seconds=185,
            stamp=("github.com/pulumi/pulumi/sdk/v3/go/common/version.Version={version}",),
        ),
        _kubernetes("kube-apiserver", seconds=220),
        _kubernetes("kube-controller-manager", seconds=55),
        _kubernetes("kube-scheduler", seconds=5),
        _kubernetes("kubectl", seconds=26),
        Program(
            "karpenter-kwok",
            "karpenter",
            "sigs.k8s.io/karpenter",
            "sigs.k8s.io/karpenter/kwok",
            seconds=125,
            stamp=("sigs.k8s.io/karpenter/pkg/operator.Version={version}",),
            patches=(
                Patch(
                    "pkg/operator/operator.go",
                    'fmt.Sprintf(":%d", options.FromContext(ctx).MetricsPort)',
                    'fmt.Sprintf("127.0.0.1:%d", options.FromContext(ctx).MetricsPort)',
                    "no option keeps the metrics off the other network interfaces",
                ),
                Patch(
                    "pkg/operator/operator.go",
                    'fmt.Sprintf(":%d", options.FromContext(ctx).HealthProbePort)',
                    'fmt.Sprintf("127.0.0.1:%d", options.FromContext(ctx).HealthProbePort)',
                    "no option keeps the health probe off the other network interfaces",
                ),
                Patch(
                    "kwok/cloudprovider/cloudprovider.go",
                    "nodeClaim.Spec.Resources.Requests,\n",
                    "instanceType.Capacity,\n",
                    "a node's capacity is its machine's, not the sum of the requests that led to it: "
                    "NodePool limits count capacity",
                ),
            ),
        ),
        Program(
            "kuberay-operator",
            "kuberay",
            "github.com/ray-project/kuberay/ray-operator",
            "github.com/ray-project/kuberay/ray-operator",
            seconds=104,
        ),
        _keda("keda-operator", "operator", seconds=190),
        _keda("keda-adapter", "adapter", seconds=8),
    )
}
# Only the test of scaling by real metrics needs it.
KEDA = ("keda-operator", "keda-adapter")
CLUSTER = tuple(name for name in PROGRAMS if name not in ("pulumi", *KEDA))

CRDS = {
    "karpenter": ("karpenter-kwok", ("kwok/charts/crds/*.yaml", "kwok/apis/crds/*.yaml")),
    "kuberay": ("kuberay-operator", ("config/crd/bases/*.yaml",)),
}
"""Custom resource definitions: the program that serves them, and the files of its module that hold them."""
KEDA_CRDS = {"keda": ("keda-operator", ("config/crd/bases/*.yaml",))}

_KWOK_KINDS = ("stages", "clusterportforwards", "portforwards", "clusterlogs", "logs")
SIMULATION = {
    # kwokctl makes these too, unless it was interrupted at the wrong moment.
    "simulation": ("kwok", tuple(f"kustomize/crd/bases/kwok.x-k8s.io_{kind}.yaml" for kind in _KWOK_KINDS)),
    "stages": ("kwok", (
        "kustomize/stage/pod/fast/pod-*.yaml", "kustomize/stage/node/fast/node-initialize.yaml",
        "kustomize/stage/node/heartbeat-with-lease/node-*.yaml",
    )),
}  # fmt: skip
"""What makes simulated pods and nodes live, as objects of the cluster: tests change them while it runs."""


def version(program: Program) -> str:
    """The pinned version, from the go.mod."""
    text = (golang.modules_folder() / program.folder / "go.mod").read_text()
    match = re.search(rf"^(?:require)?\s*{re.escape(program.module)} (v\S+)", text, re.MULTILINE)
    if match is None:
        raise ToolchainError(f"local/{program.folder}/go.mod does not require {program.module}")
    return match[1]


def linker_flags(program: Program) -> str:
    number = version(program)
    major, minor = number.removeprefix("v").split(".")[:2]
    stamps = [f"-X {stamp.format(version=number, major=major, minor=minor)}" for stamp in program.stamp]
    return " ".join(["-s", "-w", *stamps])


def key(folder: Path) -> str:
    """What a module folder's programs are cached under: changes with all that may change them but Go.

    Go's version is left out so that programs once built run on without any Go; it is noted beside them.
    """
    digest = hashlib.sha256(f"{sys.platform} {platform.machine()}".encode())
    for name in ("go.mod", "go.sum"):
        digest.update((folder / name).read_bytes())
    for program in PROGRAMS.values():
        if program.folder == folder.name:
            digest.update(repr((program.package, program.stamp, program.patches)).encode())
    return digest.hexdigest()[:12]


def home(cache: Path, program: Program) -> Path:
    """The cache folder of the program's module: bin, crds, go-version."""
    return cache / "toolchain" / f"{program.folder}-{key(golang.modules_folder() / program.folder)}"
