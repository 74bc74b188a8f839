"""Strikes at brokers: killed by the part they play, all at once, or restarted in order."""

from __future__ import annotations

import time

from app.local.properties import BROKER_SESSION_MS
from tests.campaign.cluster import Cluster
from tests.campaign.stage import Fault, Stage

PARTS = ("leader of an input", "transaction coordinator", "group coordinator", "KRaft leader")
IN_SYNC_S = 60.0
BROKER_SESSION_S = BROKER_SESSION_MS / 1000
SETTLE_S = 60.0


def kill_broker(stage: Stage, cluster: Cluster, row: str, part: str, *, soon: bool = False) -> Fault:
    """SIGKILL the broker that plays a part; start it again; wait until replicas are in sync and all lanes decide.

    It comes back while lanes work, and after its session; or `soon`, within it: then it leads as it did, may end
    transactions by what only its own log says, and tear them (Kafka 4.2.1).
    """
    lane = stage.dice.randrange(stage.lanes)
    match part:
        case "leader of an input":
            node = cluster.leader(f"{stage.prefix}triggers", lane)
        case "transaction coordinator":
            node = cluster.transaction_coordinator(f"{stage.prefix}lane-{lane}")
        case "group coordinator":
            node = cluster.group_coordinator(f"{stage.prefix}gate")
        case _:
            node = cluster.quorum_leader()
    fault = Fault(
        row, f"broker SIGKILL: {part}", time.monotonic(), detail=f"node {node}", lanes=list(range(stage.lanes))
    )
    pid = cluster.pids.get(node)
    cluster.kill(node)
    fault.effective = pid is not None and node not in cluster.pids
    time.sleep(stage.dice.uniform(1.0, 4.0) if soon else BROKER_SESSION_S + stage.dice.uniform(0.5, 3.0))
    cluster.restart(node)
    return _settled(stage, cluster, fault)


def kill_all_brokers(stage: Stage, cluster: Cluster, row: str) -> Fault:
    fault = Fault(row, "broker SIGKILL: all three", time.monotonic(), lanes=list(range(stage.lanes)))
    for node in list(cluster.pids):
        cluster.kill(node)
    fault.effective = not cluster.pids
    cluster.revive()
    fault.at = time.monotonic()  # nothing can be decided before they are back
    return _settled(stage, cluster, fault)


def restart_broker(stage: Stage, cluster: Cluster, row: str, node: int) -> Fault:
    """One step of a rolling restart, in order."""
    fault = Fault(row, "clean restart", time.monotonic(), detail=f"node {node}", lanes=list(range(stage.lanes)))
    pid = cluster.pids.get(node)
    cluster.restart(node)
    fault.effective = cluster.pids.get(node) not in (None, pid)
    return _settled(stage, cluster, fault)


def _settled(stage: Stage, cluster: Cluster, fault: Fault) -> Fault:
    stage.until_all_decide(f"{fault.kind} ({fault.detail})", since=fault.at, timeout_s=SETTLE_S)
    stage.recoveries(fault)
    stage.note(fault)
    if not stage.until(cluster.replicas_in_sync, IN_SYNC_S):
        stage.notes.append(f"replicas were not all in sync {IN_SYNC_S:.0f} s after: {fault.kind}")
    return fault
