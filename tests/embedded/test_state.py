"""The state folder, its settings and its ports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stoker.embedded import RayCluster, Settings, StateFolder
from stoker.embedded.ports import choose_port, free_ports, is_free
from stoker.embedded.processes import Part, Started, wait_until
from stoker.errors import ClusterError


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_secrets_are_made_once_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    made = folder.credentials(), folder.ray_token(), folder.api_key()
    again = StateFolder(tmp_path / "state")
    assert (again.credentials(), again.ray_token(), again.api_key()) == made
    assert {mode(tmp_path / "state" / name) for name in ("credentials.json", "ray-token", "api-key")} == {0o600}
    assert mode(folder.api_key_file()) == 0o600
    assert mode(tmp_path / "state") == 0o700


def test_the_cluster_gets_the_file_of_hashes_and_no_key_of_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_API_KEY", "of another endpoint")
    monkeypatch.setenv("STOKER_API_KEY_FILE", "/of/another")
    folder = StateFolder(tmp_path)
    try:
        ports = {"dashboard-metrics": 1, "autoscaler-metrics": 2}
        environment = RayCluster(folder)._head_environment(ports, {"STOKER_API_KEY_FILE": str(folder.api_key_file())})
    finally:
        folder.remove_temporary("t")
    assert environment["STOKER_API_KEY_FILE"] == str(tmp_path / "api-keys")
    assert "STOKER_API_KEY" not in environment
    assert folder.api_key() not in "".join(environment.values())


def test_two_folders_have_different_secrets_and_marks(tmp_path: Path) -> None:
    one, two = StateFolder(tmp_path / "one"), StateFolder(tmp_path / "two")
    assert one.credentials() != two.credentials()
    assert one.ray_token() != two.ray_token()
    assert one.instance != two.instance


def test_the_secret_key_is_not_in_the_credentials_text(tmp_path: Path) -> None:
    credentials = StateFolder(tmp_path).credentials()
    assert credentials.secret_key not in repr(credentials)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"store": '])
def test_a_half_written_state_reads_as_nothing(tmp_path: Path, text: str) -> None:
    folder = StateFolder(tmp_path)
    (tmp_path / "state.json").write_text(text)
    assert folder.read() == {}
    folder.record("owner", "up")
    assert folder.read() == {"owner": "up"}


def test_a_damaged_key_pair_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "credentials.json").write_text("{}")
    with pytest.raises(ClusterError, match=r"credentials.json holds no key pair; delete it"):
        StateFolder(tmp_path).credentials()


def test_only_one_process_holds_the_lock(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from stoker.embedded import StateFolder\n"
        "with StateFolder(Path(sys.argv[1])).lock():\n    print('held', flush=True); sys.stdin.read()"
    )
    folder = StateFolder(tmp_path)
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ClusterError, match="another process has held"), folder.lock(timeout_s=0.5):
            pass
    finally:
        other.kill()
        other.communicate()
    with folder.lock(timeout_s=10):
        pass


def test_a_socket_path_fits_however_long_the_temporary_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    folder = StateFolder(tmp_path / "state")
    one, two = folder.temporary("a"), folder.temporary("b")
    try:
        assert len(str(one)) <= 34
        assert mode(one.parent) == 0o700
    finally:
        folder.remove_temporary("a")
        assert two.exists()
        folder.remove_temporary("b")
    assert not one.parent.exists()


def test_a_process_that_took_over_a_pid_is_not_ours() -> None:
    now = psutil.Process().create_time()
    assert Started(os.getpid(), now).is_alive()
    assert not Started(os.getpid(), now - 1000).is_alive()
    assert Started.of({"pid": "nonsense"}) is None


def test_ending_a_part_takes_its_stubborn_orphans_and_nobody_else(tmp_path: Path) -> None:
    part, other = Part(f"test{os.getpid()}", "one"), Part(f"test{os.getpid()}", "two")
    stubborn = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.fork(); print('up', flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    arguments = [sys.executable, "-c", stubborn]
    started = part.start(arguments, environment=os.environ, folder=tmp_path, log=log)
    bystander = other.start(arguments, environment=os.environ, folder=tmp_path, log=tmp_path / "log2")
    try:
        wait_until(lambda: log.read_text().count("up") == 2, "the forks", timeout_s=30, process=started, log=log)
        psutil.Process(started.pid).kill()
        assert part.end(timeout_s=0.2) >= 1
        assert part.processes() == []
        assert bystander.is_alive()
    finally:
        other.end(timeout_s=0)
    assert other.processes() == []


def test_a_program_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    part, log = Part(f"test{os.getpid()}", "short"), tmp_path / "log"
    started = part.start(
        [sys.executable, "-c", "raise SystemExit('no such disk')"], environment=os.environ, folder=tmp_path, log=log
    )
    with pytest.raises(ClusterError, match=r"the disk exited by itself after .* s: no such disk \(log: "):
        wait_until(lambda: False, "the disk", timeout_s=60, process=started, log=log)


def test_a_taken_port_is_replaced_and_the_line_says_how_to_choose(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        chosen = choose_port("s3", port)
    assert chosen != port
    assert f"port {port} for s3 is taken, using {chosen}; choose with STOKER_PORT_S3" in caplog.text


def test_the_environment_chooses_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, other = free_ports(2)
    monkeypatch.setenv("STOKER_PORT_SERVE", str(wanted))
    assert choose_port("serve", other) == wanted
    monkeypatch.setenv("STOKER_PORT_SERVE", "http")
    with pytest.raises(ClusterError, match="STOKER_PORT_SERVE='http' is not a port"):
        choose_port("serve", other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpu: 3", "cpu: Extra inputs are not permitted; known keys are cpus"),
        ("ports: {s3: 99999}", r"ports\.s3: Input should be less than or equal to 65535"),
        ("cpus: many", "cpus: Input should be a valid integer"),
        ("ports: [", "is not valid YAML"),
        ("- 1", "the file: Input should be a valid dictionary"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "local.yaml"
    path.write_text(text)
    with pytest.raises(ClusterError, match=said):
        Settings.read(path)


def test_a_settings_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"cannot read the settings .*absent.yaml"):
        Settings.read(tmp_path / "absent.yaml")


def test_the_state_is_json_that_people_can_read(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.record("store", {"ports": {"s3": 1}, "pid": 2, "started": time.time()})
    assert json.loads((tmp_path / "state.json").read_text())["store"]["pid"] == 2
    folder.record("store", None)
    assert not (tmp_path / "state.json").exists()


def test_a_folder_that_a_program_holds_is_refused_until_that_program_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from stoker.embedded.state import StateFolder\n"
        "with StateFolder(Path(sys.argv[1])).held('demo'): print('held', flush=True); time.sleep(60)"
    )
    folder = StateFolder(tmp_path)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(
                ClusterError, match=r"stoker demo runs in .*; end it with Ctrl-C there, or choose another fo"
            ),
            folder.held("quickstart"),
        ):
            pass
        other.kill()
    with folder.held("quickstart"):
        pass
