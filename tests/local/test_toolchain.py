"""The toolchain's table, its cache and its errors; nothing is built here."""

import shutil
from pathlib import Path

import pytest

from modelstacks.errors import ToolchainError
from modelstacks.local import build, golang, programs, toolchain
from modelstacks.local.layout import CACHE_DIR_ENV


@pytest.fixture
def module(tmp_path):
    """A copy of one pinned module's folder, to change."""
    return Path(shutil.copytree(golang.modules_folder() / "karpenter", tmp_path / "karpenter"))


def put_program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare_path(tmp_path, monkeypatch):
    """A PATH with only a folder of ours."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize("program", toolchain.PROGRAMS.values(), ids=lambda program: program.name)
def test_every_program_is_pinned(program):
    """Each program's version comes from a go.mod with a go.sum, and its stamps name that version."""
    folder = golang.modules_folder() / program.folder
    assert (folder / "go.sum").is_file()
    assert toolchain.version(program).startswith("v")
    assert f"{program.package}\n" in (folder / "go.mod").read_text()
    assert "{" not in programs.linker_flags(program)


def test_versions_are_stamped():
    """kubectl and kwokctl parse gitVersion, gitMajor and gitMinor."""
    program = toolchain.PROGRAMS["kubectl"]
    major, minor = toolchain.version(program).removeprefix("v").split(".")[:2]
    flags = programs.linker_flags(program)
    assert f"gitVersion={toolchain.version(program)}" in flags
    assert f"gitMajor={major} " in flags
    assert flags.endswith(f"gitMinor={minor}")


def test_key_is_stable(module):
    """The same pins are the same cache entry, wherever the checkout is."""
    assert programs.key(module) == programs.key(golang.modules_folder() / "karpenter")


@pytest.mark.parametrize("name", ["go.mod", "go.sum"])
def test_key_changes_with_the_pins(module, name):
    """A changed go.mod or go.sum is another program."""
    before = programs.key(module)
    (module / name).write_text((module / name).read_text() + "\n// changed\n")
    assert programs.key(module) != before


def test_key_changes_with_patches(module, monkeypatch):
    """A program without its patches is another program."""
    before = programs.key(module)
    plain = programs.Program("karpenter-kwok", "karpenter", "m", "p", 1)
    monkeypatch.setattr(programs, "PROGRAMS", {"karpenter-kwok": plain})
    assert programs.key(module) != before


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("go version go1.24 darwin/arm64", (1, 24, 0)),
        ("go version go1.27rc1 linux/amd64", (1, 27, 0)),
        ("go 1.25.11", (1, 25, 11)),
        ("v3.259.0", (3, 259, 0)),
        ("v3.260.0-alpha.x", (3, 260, 0)),
        ("", None),
        ("command not found", None),
    ],
)
def test_parse_version(text, version):
    """Versions as Go, go.mod files and Pulumi write them."""
    assert golang.parse_version(text) == version


def test_required_go_is_the_newest_line_of_all_modules(tmp_path):
    """One Go builds all modules, so the highest `go` line counts."""
    for name, line in {"a": "1.24.6", "b": "1.25.11", "c": "1.9"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "go.mod").write_text(f"module {name}\n\ngo {line}\n")
    assert golang.required(tmp_path) == (1, 25, 11)


def test_built_programs_need_no_go(tmp_path, bare_path):
    """What was built once runs on, on a machine that has no Go any more."""
    for name in ("etcd", "kubectl"):
        put_program(toolchain.home(tmp_path, toolchain.PROGRAMS[name]) / "bin" / name, "true")
    paths = toolchain.ensure(["etcd", "kubectl"], tmp_path, print)
    assert all(path.is_file() for path in paths.values())


def test_old_go_is_not_used(tmp_path, bare_path):
    """A Go older than the modules need is passed over for the one in the cache, with a word."""
    put_program(bare_path / "go", "echo go version go1.21.0 linux/amd64")
    own = f"{golang.GO_PACKAGE}-{golang.GO_PACKAGE_VERSION}"
    put_program(tmp_path / "tc" / own / "go" / "bin" / "go", "echo go version go1.26.5 linux/amd64")
    said: list[str] = []
    go = golang.find(tmp_path / "tc", said.append)
    assert go.program.is_relative_to(tmp_path / "tc")
    assert "Go on PATH is 1.21.0" in said[0]


def test_new_go_is_used(tmp_path, bare_path):
    """The installed Go is used if it is new enough."""
    program = put_program(bare_path / "go", "echo go version go1.99.0 linux/amd64")
    assert golang.find(tmp_path, print) == golang.Go(program, (1, 99, 0))


def test_builds_never_fetch_another_go(tmp_path, monkeypatch):
    """GOTOOLCHAIN is local and go.mod files are never rewritten; the user's proxy and flags stay."""
    monkeypatch.setenv("GOPROXY", "https://proxy.example")
    monkeypatch.setenv("GOFLAGS", "-modcacherw")
    monkeypatch.setenv("GOOS", "plan9")
    environment = golang.Go(tmp_path, (1, 26, 0)).environment()
    assert environment["GOTOOLCHAIN"] == "local"
    assert environment["GOPROXY"] == "https://proxy.example"
    assert environment["GOFLAGS"] == "-modcacherw -mod=readonly -trimpath"
    assert "GOOS" not in environment


def test_cache_path_that_is_a_file(tmp_path):
    """The error names the folder, the room it has and needs, and the way out."""
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(ToolchainError) as caught:
        toolchain.ensure(["etcd"], tmp_path / "cache", print)
    message = str(caught.value)
    assert str(tmp_path / "cache" / "toolchain") in message
    assert "GB are free there, 1 GB are needed" in message
    assert CACHE_DIR_ENV in (caught.value.next_step or "")


def test_too_little_room(tmp_path, monkeypatch):
    """A build that will not fit does not begin; folders on one disk share its room."""
    monkeypatch.setattr(build, "free_gb", lambda _: 4.0)
    folders = {name: tmp_path / name for name in build.DISK_GB}
    with pytest.raises(ToolchainError, match=r"11\.0 GB are needed and 4\.0 GB free") as caught:
        build.check_room(folders, share=1)
    assert all(name in (caught.value.next_step or "") for name in folders)
    build.check_room(folders, share=0.25)


def test_failed_build_shows_the_end_of_its_log(tmp_path, bare_path):
    """The last lines, where the whole log is, and what to do; nothing half-built is left in place."""
    put_program(
        bare_path / "go",
        'case "$1" in version) echo go version go1.99.0 linux/amd64;;\n'
        f'env) echo \'{{"GOCACHE": "{tmp_path}", "GOMODCACHE": "{tmp_path}"}}\';;\n'
        "*) echo link: write: no space left on device >&2; exit 1;; esac",
    )
    with pytest.raises(ToolchainError, match="building etcd failed") as caught:
        toolchain.ensure(["etcd"], tmp_path / "cache", lambda _: None)
    assert "no space left on device" in caught.value.message
    assert "make room" in (caught.value.next_step or "")
    assert (tmp_path / "cache" / "toolchain" / "logs" / "etcd.log").read_text() in caught.value.message + "\n"
    assert not list((tmp_path / "cache").rglob("bin/*"))


@pytest.mark.parametrize(
    ("log", "step"),
    [
        ('Get "https://proxy.example/x": dial tcp: lookup proxy.example: no such host', "GOPROXY"),
        ("verifying x@v1: checksum mismatch", "not the pinned one"),
        ("compile: signal: killed", "memory"),
        ("syntax error", "try again"),
    ],
)
def test_advice(log, step):
    """The usual causes of a failed build have their next step."""
    assert step in golang.advice(log)


def test_patch_that_does_not_fit_is_an_error(tmp_path):
    """After a version bump, a patch whose line is gone fails loudly instead of being left out."""
    program = toolchain.PROGRAMS["karpenter-kwok"]
    source = tmp_path / "source"
    for patch in program.patches:
        (source / patch.file).parent.mkdir(parents=True, exist_ok=True)
        (source / patch.file).write_text("package changed\n")
    with pytest.raises(ToolchainError, match="lacks the line to patch"):
        build.patched_modfile(source, program, tmp_path / "work")


@pytest.mark.parametrize(
    ("printed", "used"),
    [("v99.0.0", True), ("v3.1.0", False), ("dev", False)],
)
def test_installed_pulumi_is_used_if_it_is_new_enough(tmp_path, bare_path, printed, used):
    """An older Pulumi than the pinned one, which the tests run, is not used."""
    installed = put_program(bare_path / "pulumi", f"echo {printed}")
    own = put_program(toolchain.home(tmp_path, toolchain.PROGRAMS["pulumi"]) / "bin" / "pulumi", "true")
    assert toolchain.pulumi_program(tmp_path, print) == (installed if used else own)
