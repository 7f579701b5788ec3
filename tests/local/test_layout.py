"""Where the embedded cluster's files lie."""

from pathlib import Path

import platformdirs
import pytest

from modelstacks.local.layout import CACHE_DIR_ENV, STATE_DIR_ENV, Layout


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch):
    monkeypatch.delenv(CACHE_DIR_ENV, raising=False)
    monkeypatch.delenv(STATE_DIR_ENV, raising=False)


def test_defaults_are_the_platforms_folders(tmp_path):
    """Without overrides, programs are cached per user and state is kept per user and project."""
    layout = Layout.of(tmp_path, "shop")
    assert layout.toolchain == platformdirs.user_cache_path("modelstacks") / "toolchain"
    assert layout.state.parent == platformdirs.user_state_path("modelstacks")
    assert layout.state.name.startswith("shop-")


def test_two_projects_share_programs_and_nothing_else(tmp_path):
    """Equal names in different folders are different projects."""
    one, two = Layout.of(tmp_path / "one" / "app"), Layout.of(tmp_path / "two" / "app")
    assert one.cache == two.cache
    assert one.state != two.state
    assert one.cluster_name != two.cluster_name


def test_overrides_move_the_folders(tmp_path, monkeypatch):
    """Both folders can be moved, and a relative override is made absolute: programs run in other folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_DIR_ENV, "cache")
    monkeypatch.setenv(STATE_DIR_ENV, str(tmp_path / "state"))
    layout = Layout.of(tmp_path)
    assert layout.cache == tmp_path / "cache"
    assert layout.state.parent == tmp_path / "state"


def test_same_project_by_another_path(tmp_path):
    """A symbolic link to a project is that project."""
    project, link = tmp_path / "project", tmp_path / "link"
    project.mkdir()
    link.symlink_to(project)
    assert Layout.of(link) == Layout.of(project)


def test_down_removes_only_the_cluster(tmp_path):
    """Pulumi's state, its passphrase and the lock are outside the folder that `down` removes."""
    layout = Layout.of(tmp_path)
    kept: list[Path] = [layout.pulumi_backend, layout.passphrase, layout.plugins, layout.lock]
    assert not any(path.is_relative_to(layout.cluster) for path in kept)
    assert all(
        path.is_relative_to(layout.cluster)
        for path in (layout.kubeconfig, layout.ports, layout.kwok_cluster, layout.logs, layout.instance_types)
    )
