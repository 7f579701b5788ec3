"""The choice of ports."""

import socket

import pytest

from modelstacks.errors import ClusterError
from modelstacks.local import ports


@pytest.fixture(autouse=True)
def _no_fixed_port(monkeypatch):
    monkeypatch.delenv(ports.API_PORT_ENV, raising=False)


def test_every_program_gets_its_own_port(tmp_path):
    """Ten programs, ten ports, all in the range that outgoing connections do not use."""
    chosen = ports.choose(tmp_path / "ports.json", print, free=lambda _: True)
    assert set(chosen) == set(ports.NAMES)
    assert len(set(chosen.values())) == len(ports.NAMES)
    assert all(ports.FIRST <= port < ports.LAST for port in chosen.values())


def test_choice_is_remembered(tmp_path):
    """A second start uses the same ports, so kubeconfig files that were copied stay valid."""
    file = tmp_path / "ports.json"
    first = ports.choose(file, print, free=lambda _: True)
    assert ports.choose(file, print, free=lambda _: True) == first == ports.remembered(file)


def test_taken_port_is_replaced_and_said(tmp_path):
    """Only the port that somebody took changes."""
    file, said = tmp_path / "ports.json", []
    first = ports.choose(file, said.append, free=lambda _: True)
    second = ports.choose(file, said.append, free=lambda port: port != first["etcd"])
    assert {name for name in first if first[name] != second[name]} == {"etcd"}
    assert len(said) == 1
    assert f"port {first['etcd']} of etcd" in said[0]


def test_taken_ports_are_skipped_at_first(tmp_path):
    """The first choice avoids ports in use."""
    odd = ports.choose(tmp_path / "ports.json", print, free=lambda port: port % 2 == 1)
    assert all(port % 2 == 1 for port in odd.values())


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"etcd": "x"}', '{"other": 1}'])
def test_broken_memory_is_no_memory(tmp_path, text):
    """A half-written file is overwritten with a new choice."""
    file = tmp_path / "ports.json"
    file.write_text(text)
    assert ports.remembered(file) == {}
    assert set(ports.choose(file, print, free=lambda _: True)) == set(ports.NAMES)


def test_fixed_port_is_used(tmp_path, monkeypatch):
    """The user may fix the API server's port."""
    monkeypatch.setenv(ports.API_PORT_ENV, "16443")
    assert ports.choose(tmp_path / "p.json", print, free=lambda _: True)["kube-apiserver"] == 16443


def test_fixed_port_that_is_taken_is_an_error(tmp_path, monkeypatch):
    """A port the user chose is never replaced silently."""
    monkeypatch.setenv(ports.API_PORT_ENV, "16443")
    with pytest.raises(ClusterError, match="port 16443 ") as caught:
        ports.choose(tmp_path / "p.json", print, free=lambda port: port != 16443)
    assert ports.API_PORT_ENV in (caught.value.next_step or "")


@pytest.mark.parametrize("text", ["http", "80", "70000", "-1"])
def test_fixed_port_that_is_none(tmp_path, monkeypatch, text):
    """A port is a number from 1024 to 65535."""
    monkeypatch.setenv(ports.API_PORT_ENV, text)
    with pytest.raises(ClusterError, match="not a port between 1024 and 65535"):
        ports.choose(tmp_path / "p.json", print)


def test_port_with_a_listener_is_not_free():
    """What listens on loopback takes the port."""
    with socket.socket() as listener:
        listener.bind((ports.HOST, 0))
        listener.listen()
        assert not ports.is_free(listener.getsockname()[1])


def test_no_port_left(tmp_path):
    """When every port is taken, the error says how to find out by whom."""
    with pytest.raises(ClusterError, match="no free port"):
        ports.choose(tmp_path / "p.json", print, free=lambda _: False)


def test_kept_ports_are_not_probed(tmp_path):
    """The ports on which the running control plane itself listens are no reason to choose others."""
    file = tmp_path / "ports.json"
    first = ports.choose(file, print, free=lambda _: True)
    taken = {first["etcd"], first["karpenter"]}
    second = ports.choose(file, print, free=lambda port: port not in taken, keep=["etcd"])
    assert {name for name in first if first[name] != second[name]} == {"karpenter"}


def test_fixed_port_is_compared_with_the_remembered_one(tmp_path, monkeypatch):
    """A running cluster on another port than the one the user now fixes is not what they ask for."""
    file = tmp_path / "ports.json"
    assert ports.as_fixed(file)
    port = ports.choose(file, print, free=lambda _: True)["kube-apiserver"]
    assert ports.as_fixed(file)
    monkeypatch.setenv(ports.API_PORT_ENV, str(port))
    assert ports.as_fixed(file)
    monkeypatch.setenv(ports.API_PORT_ENV, "1234")
    assert not ports.as_fixed(file)


def test_a_port_that_is_held_is_for_one_alone():
    """Two that start at once get two; what shares ports can still listen on its own, and nobody else can."""
    with ports.hold() as one, ports.hold() as two:
        port = one.getsockname()[1]
        assert port != two.getsockname()[1]
        assert not ports.is_free(port)
        with socket.socket() as serve:
            serve.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            serve.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            serve.bind((ports.HOST, port))
            serve.listen()
            with socket.create_connection((ports.HOST, port), timeout=5):
                serve.accept()[0].close()
            with ports.hold_on(port) as again:
                one.close()
                serve.close()
                assert again.getsockname()[1] == port
                assert not ports.is_free(port)


def test_a_port_that_another_took_is_not_held_on_to():
    """Another free one is, then."""
    with socket.socket() as stranger:
        stranger.bind((ports.HOST, 0))
        with ports.hold_on(stranger.getsockname()[1]) as other:
            assert ports.FIRST <= other.getsockname()[1] < ports.LAST
