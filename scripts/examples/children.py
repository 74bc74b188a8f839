#!/usr/bin/env python
"""Runs a job that starts others: a child for each region among its parameters, in the name of whom the worker serves.

TOLLGATE_URL=… TOLLGATE_CLIENT=svc:worker TOLLGATE_CLIENT_SECRET=… TOLLGATE_HANDED=token-file \
    python children.py localhost:9092 reports/nightly reports/region [seconds]       (seconds as in worker.py)

The worker was handed a webhook token that starts the child job with any parameters. What it starts a child with is
less: exchanged (RFC 8693) for these parameters, one use and a minute, and the audit says who acted for whom. The
child's key is made of the run id: a worker that dies half-way, and is given the job again, starts none of them twice.
"""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from confluent_kafka import Consumer

if len(sys.argv) < 4:
    sys.exit("usage: children.py BOOTSTRAP JOB CHILD [SECONDS]; the environment as its first lines say")
bootstrap, parent, child = sys.argv[1:4]
quiet_s = float(sys.argv[4]) if len(sys.argv) > 4 else float("inf")
prefix, door = os.environ.get("TOLLGATE_PREFIX", "tollgate."), os.environ["TOLLGATE_URL"]
credential = f"{os.environ['TOLLGATE_CLIENT']}:{os.environ['TOLLGATE_CLIENT_SECRET']}".encode()
handed = Path(os.environ["TOLLGATE_HANDED"])


def post(path, body, headers):
    with urllib.request.urlopen(urllib.request.Request(door + path, body, headers), timeout=60) as answer:
        return json.load(answer)


def exchanged(params, key):
    """A token for one child, and nothing else."""
    grant = {"type": "job_trigger", "actions": ["106-Trigger"], "jobs": [child], "params": params}
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token": handed.read_text().strip(),
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "authorization_details": json.dumps([grant]),
        "uses": "once", "lifetime_s": "60", "idempotency_key": key,
    }  # fmt: skip
    basic = "Basic " + base64.b64encode(credential).decode()
    return post("/oauth/token", urllib.parse.urlencode(form).encode(), {"authorization": basic})["access_token"]


def start(region, run_id):
    token = exchanged({"region": region}, f"{run_id}/{region}")
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json", "prefer": "wait=20"}
    told = post(f"/v1/triggers/{child}", b"{}", headers)  # its receipt, if that is there in time
    return told.get("outcome", "sent"), told.get("run_id") or told["trigger_id"]


consumer = Consumer({
    "bootstrap.servers": bootstrap, "group.id": prefix + "worker.children", "isolation.level": "read_committed",
    "enable.auto.commit": False, "auto.offset.reset": "earliest",
})  # fmt: skip
consumer.subscribe([prefix + "jobs"])
heard_at = time.monotonic()
while time.monotonic() - heard_at < quiet_s:
    message = consumer.poll(0.5)
    if message is None or message.error():
        continue
    heard_at = time.monotonic()
    job = json.loads(message.value())
    for region in job["params"].get("regions", []) if job["job"] == parent else []:
        try:
            print(*start(region, job["run_id"]), region, flush=True)
        except urllib.error.HTTPError as refused:
            if refused.code in (429, 503):  # not now: whoever takes over is given the job again
                raise
            print("refused", json.load(refused).get("reason"), region, flush=True)
    consumer.commit(message, asynchronous=False)
consumer.close()
