"""Apache Kafka's jars: named by the lock file beside this module, checked by SHA-256 at every start, kept in a cache.

A jar enters the cache only after its digest was checked, by one rename; so a process that dies while
fetching, or two that fetch at once, leave nothing half-written behind.
"""

from __future__ import annotations

import hashlib
import os
import queue
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.local.errors import LocalKafkaError
from app.local.fetching import Watch, watch_fetching

LOCK_FILE: Final = Path(__file__).with_name("kafka.lock.toml")
KAFKA_VERSION: Final = "4.2.1"
CACHE_SETTING: Final = "TOLLGATE_LOCAL__CACHE_DIR"  # as app/config.py names it; tests and tools read no settings

FETCH_THREADS: Final = 6
FETCH_ATTEMPTS: Final = 3
FETCH_TIMEOUT_S: Final = 30


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock file."""

    group: str
    artifact: str
    version: str
    classifier: str
    sha256: str

    @property
    def file_name(self) -> str:
        suffix = f"-{self.classifier}" if self.classifier else ""
        return f"{self.artifact}-{self.version}{suffix}.jar"

    @property
    def path(self) -> Path:
        """Where it lies in a cache: Maven's layout, which jgo writes too."""
        return Path(*self.group.split("."), self.artifact, self.version, self.file_name)


def default_cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The setting, else the XDG cache directory; a machine without a home gets one for its user under /tmp."""
    if chosen := environ.get(CACHE_SETTING):
        return Path(chosen)
    if xdg := environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "tollgate"
    if home := environ.get("HOME"):
        return Path(home) / ".cache" / "tollgate"
    return Path(tempfile.gettempdir()) / f"tollgate-cache-{os.getuid()}"


def read_lock(path: Path = LOCK_FILE) -> tuple[Jar, ...]:
    locked = tomllib.loads(path.read_text(encoding="utf-8"))["dependencies"]
    return tuple(
        Jar(
            group=entry["groupId"],
            artifact=entry["artifactId"],
            version=entry["version"],
            classifier=entry.get("classifier", ""),
            sha256=entry["sha256"],
        )
        for entry in locked
    )


def class_path(
    cache_dir: Path | None = None, *, lock: Path = LOCK_FILE, say: Callable[[str], None] | None = None
) -> str:
    """Java's class path of every locked jar, fetching what the cache lacks or holds in a wrong form."""
    store = (cache_dir or default_cache_dir()) / "jars"
    jars = read_lock(lock)
    with ThreadPoolExecutor(FETCH_THREADS) as threads:
        good = threads.map(lambda jar: _is_good(store / jar.path, jar), jars)
    missing = [jar for jar, is_good in zip(jars, good, strict=True) if not is_good]
    if missing:
        _fetch_all(missing, store, say)
    return os.pathsep.join(str(store / jar.path) for jar in jars)


def _is_good(path: Path, jar: Jar) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except OSError:
        return False


def _fetch_all(missing: Sequence[Jar], store: Path, say: Callable[[str], None] | None) -> None:
    try:
        store.mkdir(parents=True, exist_ok=True)
        with (
            # On the same file system as the cache, so that a rename is enough to publish a jar.
            tempfile.TemporaryDirectory(dir=store, prefix=".fetching-", ignore_cleanup_errors=True) as staging,
            watch_fetching(f"Apache Kafka {KAFKA_VERSION}", len(missing), store, say) as watch,
        ):
            fetch = _fetcher(Path(staging), watch)
            _each_in_threads(lambda jar: _fetch(jar, fetch, store, watch), missing)
    except OSError as error:
        raise LocalKafkaError(
            f"The cache of Kafka's jars at {store} cannot be written ({error.strerror or error}): "
            f"set {CACHE_SETTING} to a directory of yours."
        ) from error


def _each_in_threads(work: Callable[[Jar], None], jars: Sequence[Jar]) -> None:
    """Raises the first error at once.

    Daemon threads, unlike an executor's: who is told to stop must not wait for a registry that does not answer.
    """
    waiting: queue.SimpleQueue[Jar] = queue.SimpleQueue()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for jar in jars:
        waiting.put(jar)

    def run() -> None:
        while True:
            try:
                work(waiting.get_nowait())
            except queue.Empty:
                return
            except BaseException as error:
                ended.put(error)
            else:
                ended.put(None)

    for _ in range(FETCH_THREADS):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in jars:
            error = ended.get()
            if error is not None:
                raise error
    finally:
        while not waiting.empty():
            with suppress(queue.Empty):
                waiting.get_nowait()


def _fetcher(staging: Path, watch: Watch) -> Callable[[Jar], Path]:
    """Jgo knows the registry and its layout; it gets no say in what is accepted."""
    from jgo.maven import MavenContext, PythonResolver  # brings an HTTP client along: only when something is missing

    @contextmanager
    def on_bytes(_file_name: str, _size_bytes: int) -> Iterator[Callable[[int], None]]:
        yield watch.got_bytes

    progress: Callable[[str, int], AbstractContextManager[Callable[[int], None]]] = on_bytes
    context = MavenContext(
        resolver=PythonResolver(progress_callback=progress), repo_cache=staging, timeout=FETCH_TIMEOUT_S
    )
    guard = threading.Lock()

    def fetch(jar: Jar) -> Path:
        with guard:  # building the names touches the shared context
            artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact(jar.classifier, "jar")
        return Path(artifact.resolve())

    return fetch


def _fetch(jar: Jar, fetch: Callable[[Jar], Path], store: Path, watch: Watch) -> None:
    reason = ""
    for _ in range(FETCH_ATTEMPTS):
        try:
            fetched = fetch(jar)
        except OSError as error:
            if not type(error).__module__.startswith("requests"):
                raise  # the cache's own trouble, not the network's
            reason = f"the registry did not answer ({type(error).__name__})"
            continue
        except RuntimeError as error:  # jgo's word for what the registry does not have
            reason = _first_line(error)
            continue
        if not _is_good(fetched, jar):
            reason = "what came has another SHA-256 than the lock file names"
            fetched.unlink()
            continue
        target = store / jar.path
        target.parent.mkdir(parents=True, exist_ok=True)
        fetched.replace(target)
        watch.got_jar()
        return
    raise LocalKafkaError(
        f"Fetching {jar.file_name} for the local Kafka failed: {reason}. "
        "It is fetched once, from the Maven registry: check the network, or name a running Kafka by --bootstrap."
    )


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()
    return (text[0] if text else type(error).__name__)[:200].rstrip(".")
