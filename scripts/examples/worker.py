#!/usr/bin/env python
"""Runs accepted jobs, each once: read committed, and a run id that was seen is not run again.

python worker.py localhost:9092 [seconds]     (stops after so many quiet seconds; without, never)

Two rules make it safe. `read_committed`: a job of an aborted transaction was never accepted. And the run id is
written down in one step with the work it names (here: a table of SQLite), because a worker that dies between
working and committing its offset is given the same job again.
"""

import json
import os
import sqlite3
import sys
import time

from confluent_kafka import Consumer

if len(sys.argv) < 2:
    sys.exit("usage: worker.py BOOTSTRAP [SECONDS]")
bootstrap, quiet_s = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else float("inf")
prefix = os.environ.get("TOLLGATE_PREFIX", "tollgate.")
topic, group = prefix + "jobs", prefix + "worker.example"  # groups of workers begin so, where access is controlled
done = sqlite3.connect(os.environ.get("WORKER_DATABASE", "worker.sqlite"))
done.execute("CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, result TEXT)")
consumer = Consumer({
    "bootstrap.servers": bootstrap, "group.id": group, "isolation.level": "read_committed",
    "enable.auto.commit": False, "auto.offset.reset": "earliest",
})  # fmt: skip
consumer.subscribe([topic])
heard_at = time.monotonic()
while time.monotonic() - heard_at < quiet_s:
    message = consumer.poll(0.5)
    if message is None or message.error():
        continue
    heard_at = time.monotonic()
    job = json.loads(message.value())
    with done:  # one transaction: the work and the note that it was done
        new = done.execute("INSERT OR IGNORE INTO runs VALUES (?, NULL)", [job["run_id"]]).rowcount
        if new:
            result = f"{job['job']} {json.dumps(job['params'])} for {job['identity']['subject']}"  # the work
            done.execute("UPDATE runs SET result = ? WHERE run_id = ?", [result, job["run_id"]])
    print("ran" if new else "seen", job["run_id"], result if new else "", flush=True)
    consumer.commit(message)
consumer.close()
