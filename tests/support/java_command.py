"""Prints what it takes to run one of Kafka's own tools, as one line of JSON: the path of java and the class path."""

import json

from app.local.kafka import java_and_class_path

if __name__ == "__main__":
    java, class_path = java_and_class_path()
    print(json.dumps({"java": str(java), "class_path": class_path}))
