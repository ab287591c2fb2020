"""One behaviour for every store: whole writes, one winner, fresh reads."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

from pipeline import bucket as bucket_module
from pipeline import store as store_module
from pipeline.errors import UsageError
from pipeline.places import SHARDS, AlreadyExistsError
from pipeline.store import ObjectStore

WRITERS = 8


def race(store: ObjectStore, key: str, writer: int, barrier: Any) -> bool:
    barrier.wait(60)
    try:
        store.create(key, f"writer {writer}".encode() * 1000)
    except AlreadyExistsError:
        return False
    return True


_barrier: Barrier


def _join_race(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _race_in_process(store: ObjectStore, writer: int) -> bool:
    return race(store, "commits/aa/one.json", writer, _barrier)


def test_put_then_read(store: ObjectStore, tmp_path: Path) -> None:
    store.put("a/b/one.txt", b"first")
    assert store.read("a/b/one.txt") == b"first"
    source = tmp_path / "source.bin"
    source.write_bytes(b"second, from a file")
    store.put("a/b/one.txt", source)
    assert store.read("a/b/one.txt") == b"second, from a file"
    assert store.size("a/b/one.txt") == 19
    store.put("_SUCCESS", b"")
    assert store.read("_SUCCESS") == b""


def test_missing_objects(store: ObjectStore) -> None:
    assert not store.exists("a/missing")
    assert not store.exists("a")
    for call in (store.read, store.size, store.checksum):
        with pytest.raises(FileNotFoundError, match="a/missing"):
            call("a/missing")
    store.delete("a/missing")
    assert list(store.list()) == []
    assert list(store.list("a")) == []
    store.put("a/one", b"1")
    assert not store.exists("a"), "a folder is no object"


def test_create_refuses_a_taken_key(store: ObjectStore) -> None:
    store.create("commits/aa/one.json", b'{"by": 1}')
    with pytest.raises(AlreadyExistsError):
        store.create("commits/aa/one.json", b'{"by": 2}')
    assert store.read("commits/aa/one.json") == b'{"by": 1}'
    store.delete("commits/aa/one.json")
    store.create("commits/aa/one.json", b'{"by": 3}')
    with pytest.raises(ValueError, match="empty"):
        store.create("commits/aa/two.json", b"")


def test_threads_race_and_one_wins(store: ObjectStore) -> None:
    barrier = threading.Barrier(WRITERS)
    with ThreadPoolExecutor(WRITERS) as threads:
        won = list(
            threads.map(lambda n: race(store, "commits/aa/one.json", n, barrier), range(WRITERS))
        )
    assert sum(won) == 1
    assert store.read("commits/aa/one.json") == f"writer {won.index(True)}".encode() * 1000
    assert list(store.list()) == ["commits/aa/one.json"]


@pytest.mark.parametrize(("store", "writers"), [("file", WRITERS), ("s3", 2)], indirect=["store"])
def test_processes_race_and_one_wins(store: ObjectStore, writers: int) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(writers)
    with context.Pool(writers, _join_race, (barrier,)) as pool:
        won = pool.starmap(_race_in_process, [(store, n) for n in range(writers)], chunksize=1)
    assert sum(won) == 1
    assert store.read("commits/aa/one.json") == f"writer {won.index(True)}".encode() * 1000


def test_reads_and_listings_are_fresh(store: ObjectStore) -> None:
    other = pickle.loads(pickle.dumps(store))
    assert not other.exists("a/one")
    assert list(other.list("a")) == []
    store.put("a/one", b"1")
    assert other.exists("a/one")
    assert list(other.list("a")) == ["a/one"]
    other.put("a/one", b"longer")
    assert (store.read("a/one"), store.size("a/one")) == (b"longer", 6)
    other.delete("a/one")
    assert not store.exists("a/one")
    assert list(store.list("a")) == []


def test_list_is_recursive_and_stays_in_its_folder(store: ObjectStore) -> None:
    keys = ["run.json", "clips/aa/x/1.mp4", "clips/ab/y/2.mp4", "clips2/aa/z.mp4"]
    for key in keys:
        store.put(key, b"x")
    assert sorted(store.list()) == sorted(keys)
    assert sorted(store.list("clips")) == keys[1:3]
    assert list(store.list("clips/aa")) == ["clips/aa/x/1.mp4"]
    assert list(store.list("clips/a")) == []


def test_list_shards(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {f"commits/{shard}/{shard}.json" for shard in SHARDS[::16]}
    for key in keys:
        store.put(key, b"x")
    assert set(store.list_shards("commits")) == keys
    places = store._places
    if isinstance(places, bucket_module.Bucket):  # as if the folder took more than one page
        whole = places._list_page
        calls: list[str] = []

        def list_page(prefix: str, token: str | None) -> Any:
            calls.append(prefix)
            names, _ = whole(prefix, None)
            return (names[:1], "more") if prefix == "commits" else (names, None)

        monkeypatch.setattr(places, "_list_page", list_page)
        found = list(store.list_shards("commits"))
        assert sorted(found) == sorted(keys)
        assert len(calls) == 1 + len(SHARDS)


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_long_listings_are_paged(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(7):
        store.put(f"a/{n}", b"x")
    files = store._places._files
    call = files.call_s3
    monkeypatch.setattr(files, "call_s3", lambda *args, **kwargs: call(*args, MaxKeys=3, **kwargs))
    assert list(store.list("a")) == [f"a/{n}" for n in range(7)]


def test_checksum_reads_in_chunks(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 1000)
    content = os.urandom(3500)
    store.put("clips/aa/one.mp4", content)
    assert store.checksum("clips/aa/one.mp4") == (hashlib.sha256(content).hexdigest(), 3500)
    with pytest.raises(FileNotFoundError):
        store.checksum("clips/aa/two.mp4")


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../out", "a/../../b", "a//b", "./a", "a/", "a\\..\\b"]
)
def test_keys_stay_inside(store: ObjectStore, key: str) -> None:
    for call in (store.read, store.exists, store.delete, store.locate, store.list_shards):
        with pytest.raises(ValueError, match="relative path"):
            call(key)
    for write in (store.put, store.create):
        with pytest.raises(ValueError, match="relative path"):
            write(key, b"x")


def test_locate(store: ObjectStore) -> None:
    assert store.locate("clips/aa/one.mp4") == f"{store.uri}/clips/aa/one.mp4"
    assert store.uri.startswith(("/", "memory://", "s3://"))


def test_probe_leaves_nothing(store: ObjectStore) -> None:
    store.probe()
    assert list(store.list()) == []
    store.put("one", b"1")
    store.probe(write=False)


def test_probe_finds_stores_without_exclusive_creates(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObjectStore, "create", ObjectStore.put)
    with pytest.raises(UsageError, match="not exclusive"):
        store.probe()
    assert list(store.list()) == []


def test_relative_paths_and_file_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = ObjectStore("out/demo")
    monkeypatch.chdir("/")
    store.put("a", b"1")
    assert (tmp_path / "out/demo/a").read_bytes() == b"1"
    for start in ("file://", "file:", "file://localhost"):
        assert ObjectStore(f"{start}{tmp_path}/out/demo").read("a") == b"1"
        assert ObjectStore(f"{start}{tmp_path}/%41 b").uri == f"{tmp_path}/%41 b"


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("file://render-7/data/out", "the host 'render-7'"),
        ("file://out/demo", "expected file:///FOLDER"),
        ("s3://bucket/out?versionId=3", "leave it out"),
        (os.fsdecode(b"/data/o\xffut"), "/data/o.udcffut': .* not UTF-8"),
        ("s3://bucket/o\udcffut", "not UTF-8"),
    ],
)
def test_uris_that_name_no_folder_to_write_are_refused(uri: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        ObjectStore(uri)


@pytest.mark.parametrize("odd", ["why?so", "#1 %41", "[x]*{y}", "tab\tü"])
@pytest.mark.parametrize("store", ["file", "s3"], indirect=True)
def test_readers_with_arrow_see_no_syntax_in_an_outputs_name(store: ObjectStore, odd: str) -> None:
    named = ObjectStore(f"{store.uri}/{odd}")
    table = pa.table({"clip_id": ["a", "b"]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    named.put("work/a.parquet", sink.getvalue().to_pybytes())
    path, files = pickle.loads(pickle.dumps(named.locate_for_arrow("work/a.parquet")))
    assert pq.read_table(path, filesystem=files) == table


@pytest.mark.parametrize(
    "uri",
    ["gs://bucket/a", "s3://", "http://host/a", "", " ", "file:", "file://", "file://localhost"],
)
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="s3://"):
        ObjectStore(uri)


def test_crash_in_mid_write_leaves_nothing_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(tmp_path)
    store.put("a/kept", b"old")

    def crash(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        for write, key in ((store.put, "a/kept"), (store.put, "a/new"), (store.create, "a/commit")):
            with pytest.raises(KeyboardInterrupt):
                write(key, b"content")
    assert store.read("a/kept") == b"old"
    assert list(store.list()) == ["a/kept"]


def test_killed_process_leaves_nothing_visible(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_die_in_write, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    store = ObjectStore(tmp_path)
    assert list(store.list()) == []
    assert [path.name[:5] for path in (tmp_path / "a").iterdir()] == [".tmp-"]
    store.create("a/commit", b"later")


def _die_in_write(root: Path) -> None:
    os.fsync = lambda _: os._exit(9)  # type: ignore[assignment]
    ObjectStore(root).create("a/commit", b"content")


def test_probe_explains_local_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in ("file", "file/below"):
        with pytest.raises(UsageError, match="a file is where a folder is needed"):
            ObjectStore(tmp_path / place).probe()

    def refuse(number: int, filename2: str | None = None) -> Any:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError(number, os.strerror(number), "x", None, filename2)

        return fail

    for name, number, match in (
        ("fsync", errno.ENOSPC, "no space left"),
        ("fsync", errno.EROFS, "read-only"),
        ("fsync", errno.EACCES, "no permission"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse(number))
            with pytest.raises(UsageError, match=match):
                ObjectStore(tmp_path).probe()
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse(errno.EPERM, "y"))
        with pytest.raises(UsageError, match="hard links"):
            ObjectStore(tmp_path).probe()


def test_probe_explains_missing_bucket(s3_server: str) -> None:
    with pytest.raises(UsageError, match="no such bucket"):
        ObjectStore("s3://no-such-bucket-here/a").probe()


def test_probe_explains_missing_credentials(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UsageError, match="no AWS credentials"):
        ObjectStore("s3://rushes/a").probe()


def test_probe_explains_wrong_endpoint(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="check the endpoint"):
        ObjectStore("s3://rushes/a").probe(write=False)


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_conflicting_conditional_writes_are_retried(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, replies = store._places._files, [409, 412]
    whole = files.pipe_file

    def pipe_file(*args: Any, **kwargs: Any) -> None:
        if not replies:
            whole(*args, **kwargs)
            return
        answer: Any = {"Error": {}, "ResponseMetadata": {"HTTPStatusCode": replies.pop(0)}}
        raise OSError("server") from ClientError(answer, "PutObject")

    monkeypatch.setattr(files, "pipe_file", pipe_file)
    monkeypatch.setattr(bucket_module, "CONFLICT_DELAY_S", 0.0)
    with pytest.raises(AlreadyExistsError):  # 412 without S3's own words, as some servers answer
        store.create("a/one", b"1")
    replies.append(409)
    store.create("a/one", b"1")
    assert list(store.list()) == ["a/one"]
