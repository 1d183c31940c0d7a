"""The store: equal keys mean equal content, and a reader sees a whole artifact or none, whatever is killed or full."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dunwu.disk import LockHeld, disk_errors, exclusive_lock, plain, write_atomically
from dunwu.store import Artifact, Store, resolve_folder, resolve_model
from dunwu.types import DunwuError, UsageError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; its wait status (a signal number if it was killed)."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  (a forked child must not return into pytest)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def kill_before_call(number: int) -> None:
    """SIGKILL this process just before its `number`-th call that makes something durable or visible."""
    calls = 0
    for name in ("fsync", "rename", "replace", "unlink", "mkdir"):
        real = getattr(os, name)

        def hooked(*args: object, _real: Callable[..., object] = real, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return _real(*args, **kwargs)

        setattr(os, name, hooked)


def make(store: Store, key: str, text: str = "content") -> Artifact:
    with store.building(key) as work:
        (work / "checkpoint-3").write_text("private")
        (work / "scratch").mkdir(exist_ok=True)
        (work / "scratch" / "x").write_text("private")
        (work / "model").mkdir(exist_ok=True)
        (work / "model" / "weights.bin").write_text(text)
        (work / "note.txt").write_text("hello")
        return store.commit(key, work, {"words": 2})


def test_key_depends_on_everything_that_makes_the_content(store: Store) -> None:
    base = ("train", {"lr": 0.1, "betas": (0.9, 0.95)}, ("a", "b"), "1")
    assert store.key(*base) == store.key("train", {"betas": [0.9, 0.95], "lr": 0.1}, ["a", "b"])
    others = [
        ("tune", base[1], base[2], "1"),
        ("train", {"lr": 0.2, "betas": (0.9, 0.95)}, base[2], "1"),
        ("train", base[1], ("b", "a"), "1"),
        ("train", base[1], ("a",), "1"),
        ("train", base[1], base[2], "2"),
    ]
    assert len({store.key(*base), *(store.key(*other) for other in others)}) == 6


def test_an_artifact_has_its_files_without_the_builders_private_ones(store: Store) -> None:
    made = make(store, "k")
    assert store.find("k") == made
    assert made.meta == {"words": 2}
    assert sorted(p.relative_to(made.path).as_posix() for p in made.path.rglob("*") if p.is_file()) == [
        "COMPLETE",
        "manifest.json",
        "model/weights.bin",
        "note.txt",
    ]
    assert not (store.home / "work" / "k").exists()


def test_killed_at_every_step_of_a_build_nothing_half_made_is_seen_and_no_work_is_lost(tmp_path: Path) -> None:
    for number in range(1, 200):
        store = Store(tmp_path / str(number))

        def work(number: int = number, store: Store = store) -> None:
            with store.building("k") as folder:
                (folder / "checkpoint").write_text("step 41")
                (folder / "out.txt").write_text("made")
                kill_before_call(number)
                store.commit("k", folder, {"n": 1})

        status = in_child(work)
        found = store.find("k")
        if found is None:
            assert status == signal.SIGKILL
            with store.building("k") as folder:
                assert (folder / "checkpoint").read_text() == "step 41"  # the next try resumes from there
                assert (folder / "out.txt").read_text() == "made"
                found = store.commit("k", folder, {"n": 1})
        assert found.meta == {"n": 1}
        assert (found.path / "out.txt").read_text() == "made"
        assert store.find("k") == found
        assert sorted(file.name for file in found.path.iterdir()) == ["COMPLETE", "manifest.json", "out.txt"]
        if status == 0:
            break
    assert 5 < number < 199, "the sweep must end because a build was not killed (Python 3.10 hides some calls)"


def test_killed_while_building_leaves_the_work_folder(store: Store) -> None:
    def work() -> None:
        with store.building("k") as folder:
            (folder / "part").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == signal.SIGKILL
    assert store.find("k") is None
    with store.building("k") as folder:  # the kernel freed the dead builder's lock
        assert (folder / "part").read_text() == "half"


def _truncate(path: Path) -> None:
    (path / "note.txt").write_text("hell")


def _flip(path: Path) -> None:
    (path / "note.txt").write_text("hellO")


def _lose(path: Path) -> None:
    (path / "model" / "weights.bin").unlink()


def _forge(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (_truncate, "note.txt has 4 bytes instead of 5"),
        (_flip, "note.txt has a wrong checksum"),
        (_lose, "model/weights.bin is missing"),
        (_forge, "manifest.json has changed"),
    ],
)
def test_a_damaged_artifact_is_named_set_aside_and_rebuilt(
    store: Store, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], None], named: str
) -> None:
    harm(make(store, "k").path)
    assert store.find("k") is None
    error = capsys.readouterr().err
    assert "artifact k is damaged" in error
    assert named in error
    assert error.count("\n") == 1
    assert (store.home / "damaged" / "k.1" / "manifest.json").exists()
    assert store.find("k") is None, "a second look finds nothing and says nothing"
    assert capsys.readouterr().err == ""
    assert store.find(make(store, "k").key) is not None


def test_one_builder_at_a_time_the_other_waits_and_finds_the_artifact(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    ready, go = os.pipe()

    def work() -> None:
        with store.building("k") as folder:
            os.write(go, b"x")
            time.sleep(0.4)
            (folder / "out").write_text("theirs")
            store.commit("k", folder, {})

    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    os.read(ready, 1)
    with store.building("k"):
        found = store.find("k")
    os.waitpid(child, 0)
    assert found is not None
    assert (found.path / "out").read_text() == "theirs"
    assert f"held by process {child}; waiting" in capsys.readouterr().err


def test_a_lock_that_may_not_wait_names_its_holder(tmp_path: Path) -> None:
    with (
        exclusive_lock(tmp_path / "lock"),
        pytest.raises(LockHeld, match=f"the thing is in use by process {os.getpid()}"),
        exclusive_lock(tmp_path / "lock", what="the thing", wait=False),
    ):
        pass


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "no space left .*another disk"), (errno.EACCES, "no permission .*DUNWU_HOME")]
)
def test_full_disk_and_missing_permission_are_one_line_with_a_cure(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with store.building("k") as work:
        (work / "out").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(DunwuError, match=said), store.building("k") as work:
            store.commit("k", work, {})
    assert store.find("k") is None
    with store.building("k") as work:  # nothing was lost
        assert (work / "out").read_text() == "x"
        store.commit("k", work, {})
    assert store.find("k") is not None


def test_other_os_errors_pass_unchanged() -> None:
    with pytest.raises(FileNotFoundError), disk_errors():
        raise FileNotFoundError(errno.ENOENT, "gone", "x")


def test_gc_keeps_what_is_named_or_being_built(store: Store) -> None:
    make(store, "kept")
    make(store, "old")
    _flip(make(store, "bad").path)
    store.find("bad")
    with store.building("abandoned") as work:
        (work / "half").write_text("12345")
    with store.building("busy"):
        removed, freed = store.gc({"kept"})
    assert removed == 3
    assert freed > 5
    assert store.find("kept") is not None
    assert store.find("old") is None
    assert [path.name for path in (store.home / "work").iterdir()] == ["busy"]
    assert list((store.home / "damaged").iterdir()) == []


def test_roots_that_are_gone_are_forgotten(store: Store, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    store.add_root(tmp_path / "run")
    store.add_root(tmp_path / "never")
    assert store.roots() == [tmp_path / "run"]
    assert len(list((store.home / "roots").iterdir())) == 1


def test_write_atomically_leaves_the_old_text_if_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "f", "old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        write_atomically(tmp_path / "f", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "old")]


def test_what_a_killed_save_file_left_does_not_become_part_of_the_artifact(store: Store) -> None:
    import resource  # not on Windows

    with store.building("weights") as work:

        def killed_in_the_middle() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
            save_file({"a": np.zeros(1 << 20, np.float32)}, work / "w")

        assert in_child(killed_in_the_middle) & 0x7F == signal.SIGXFSZ
        assert len(list(work.iterdir())) == 1  # the file under a name of safetensors' own
        (work / "w").write_bytes(b"whole")
        artifact = store.commit("weights", work, {})
    assert sorted(file.name for file in artifact.path.iterdir()) == ["COMPLETE", "manifest.json", "w"]


def test_plain_refuses_what_json_cannot_say() -> None:
    with pytest.raises(TypeError, match="complex"):
        plain({"x": 1j})


def _stage(run: Path, name: str, key: str, status: str = "done") -> None:
    (run / "stages").mkdir(parents=True, exist_ok=True)
    (run / "stages" / f"{name}.json").write_text(json.dumps({"key": key, "status": status}))


def test_a_model_is_a_folder_its_model_subfolder_or_a_runs_stage(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert resolve_model(str(folder), store) == folder
    with store.building("k") as work:
        (work / "model").mkdir()
        (work / "model" / "config.json").write_text("{}")
        made = store.commit("k", work, {})
    _stage(tmp_path / "run", "r1-zero", "k")
    assert resolve_model(f"{tmp_path}/run:r1-zero", store) == made.path / "model"
    assert resolve_folder(f"{tmp_path}/run:r1-zero", store) == made.path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere", "no such folder"),
        ("file", "is a file"),
        ("empty", "config.json is missing, it holds nothing"),
        ("other", "it holds a.txt, b.txt"),
        ("run:zero", "no stage 'zero' in .*its stages are base, gone"),
        ("other:zero", "other is no run folder"),
        ("run:gone", "the files of .*run:gone are gone .*rebuilds"),
        ("run:base", "run:base is failed"),
    ],
)
def test_a_wrong_model_is_told_what_is_there(store: Store, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("")
    (tmp_path / "other" / "b.txt").write_text("")
    _stage(tmp_path / "run", "gone", "nokey")
    _stage(tmp_path / "run", "base", "nokey2", "failed")
    with pytest.raises(UsageError, match=said) as caught:
        resolve_model(str(tmp_path / text), store)
    assert "\n" not in str(caught.value)
