#!/usr/bin/env python
"""Starts a job with any Kafka client: one record, nothing of Tollgate's.

TOLLGATE_TOKEN=... python emit.py localhost:9092 reports/nightly '{"region": "eu"}'
"""

import os
import sys

from confluent_kafka import Producer

if len(sys.argv) != 4 or "TOLLGATE_TOKEN" not in os.environ:
    sys.exit("usage, with TOLLGATE_TOKEN in the environment: emit.py BOOTSTRAP JOB PARAMS (a JSON object)")
bootstrap, job, params = sys.argv[1:4]
topic = os.environ.get("TOLLGATE_PREFIX", "tollgate.") + "triggers"


def delivered(error, message):
    if error is not None:
        sys.exit(f"not sent: {error}")
    print(f"{message.partition()}-{message.offset()}")  # the trigger's id, by which its receipt is found


producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True})
headers = {"authorization": "Bearer " + os.environ["TOLLGATE_TOKEN"], "tollgate-job": job}
producer.produce(topic, value=params, headers=headers, on_delivery=delivered)
producer.flush()
