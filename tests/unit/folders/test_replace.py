"""Replacing a folder: whole or not at all, whenever the process is killed, and a user's own files stay."""

import errno
import functools
import os
import shutil
import signal
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.writing import check_file, write_text
from sparse_trainer.folders.exchange import exchange
from sparse_trainer.folders.own_files import RECORD_FILE
from sparse_trainer.folders.replace import check_target, new_folder
from sparse_trainer.plan.document import PLAN_FILE
from tests.fixtures.killed import ends_well, forked, killed_at

FIRST = {PLAN_FILE: "1", "config.json": "1", "model-00001-of-00002.safetensors": "1", "parts/a.json": "1"}
SECOND = {PLAN_FILE: "2", "config.json": "2", "model.safetensors": "2"}
STEP = 4
"""Every fourth call to the disk is enough for a test; all of them take a minute."""
OWN = {"notes.txt": "mine", "checkpoint-500/optimizer.pt": "days of work", "parts/b.json": "mine"}


@pytest.fixture(params=["in one step", "in two steps"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replace folders as Linux and macOS can, and as other file systems have to."""
    if request.param == "in two steps":
        monkeypatch.setattr("sparse_trainer.folders.replace.exchange", lambda one, other: False)
    return str(request.param)


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write files, with the folders they are in."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def save(target: Path, files: Mapping[str, str], *, overwrite: bool = True) -> None:
    """Save a folder of these files."""
    with new_folder(target, overwrite=overwrite) as draft:
        write(draft, files)


def texts(folder: Path) -> dict[str, str]:
    """Return all files below a folder, but for the record of them."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_text(encoding="utf-8") for name, path in found.items() if name != RECORD_FILE}


def names(folder: Path) -> set[str]:
    """Return what stands in a folder."""
    return {path.name for path in folder.iterdir()}


def test_this_machine_can_exchange_folders(tmp_path: Path) -> None:
    write(tmp_path, {"a/1": "1", "b/2": "2"})
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("its file system cannot")
    assert texts(tmp_path) == {"a/2": "2", "b/1": "1"}
    assert not exchange(tmp_path / "a", tmp_path / "nowhere")


def test_whenever_a_save_is_killed_the_folder_is_the_old_or_the_new_one(system: str, tmp_path: Path) -> None:
    old, new = {**FIRST, **OWN}, {**SECOND, **OWN}
    seen = []
    for point in range(0, 1000, STEP):
        root = tmp_path / str(point)
        save(root / "m", FIRST)
        write(root / "m", OWN)
        was_killed = killed_at(point, functools.partial(save, root / "m", SECOND))
        if system == "in one step":
            assert texts(root / "m") in (old, new), point
        check_target(root / "m")
        seen.append(texts(root / "m"))
        assert seen[-1] in (old, new), point
        assert names(root) == {"m"}, point
        save(root / "m", SECOND)
        assert texts(root / "m") == new
        if not was_killed:
            break
    assert len(seen) > 10
    assert seen == sorted(seen, key=[old, new].index)


def test_a_save_killed_between_two_renames_is_undone_by_whatever_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "m", FIRST)
    write(tmp_path / "m", OWN)
    monkeypatch.setattr("sparse_trainer.folders.replace.exchange", lambda one, other: False)
    rename = Path.rename

    def die_in_the_gap(self: Path, target: Path) -> Path:
        if self.name == "new" and not Path(target).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die_in_the_gap)
        assert not ends_well(forked(lambda: save(tmp_path / "m", SECOND)))
    assert not (tmp_path / "m").exists()
    with pytest.raises(CheckpointError, match="holds a result already"):
        check_target(tmp_path / "m", overwrite=False)
    assert texts(tmp_path / "m") == {**FIRST, **OWN}
    assert names(tmp_path) == {"m"}


def test_a_first_save_that_is_killed_leaves_nothing_or_all(tmp_path: Path) -> None:
    for point in range(0, 1000, STEP):
        root = tmp_path / str(point)
        root.mkdir()
        was_killed = killed_at(point, functools.partial(save, root / "m", FIRST))
        assert not (root / "m").exists() or texts(root / "m") == FIRST
        check_target(root / "m")
        assert names(root) <= {"m"}
        if not was_killed:
            break


def test_processes_that_save_at_the_same_time_leave_one_whole_folder(system: str, tmp_path: Path) -> None:
    save(tmp_path / "m", FIRST)
    write(tmp_path / "m", OWN)

    def many(files: Mapping[str, str]) -> Callable[[], None]:
        def work() -> None:
            for _ in range(15):
                save(tmp_path / "m", files)

        return work

    children = [forked(many(files)) for files in (FIRST, SECOND, FIRST)]
    fates = [ends_well(child) for child in children]
    assert all(fates)
    assert texts(tmp_path / "m") in ({**FIRST, **OWN}, {**SECOND, **OWN})
    assert names(tmp_path) == {"m"}


def test_the_draft_of_a_living_process_is_not_swept(tmp_path: Path) -> None:
    with new_folder(tmp_path / "m", overwrite=True) as draft:
        write(draft, FIRST)
        save(tmp_path / "m", SECOND)
        assert texts(draft) == FIRST
    assert texts(tmp_path / "m") == FIRST
    assert names(tmp_path) == {"m"}


def test_folders_that_only_look_like_drafts_stay(tmp_path: Path) -> None:
    theirs = {
        ".m.1a2b3c4d/thesis.tex": "1",
        ".m.old/new/x": "1",
        ".m.1a2b3c4e": "1",
        ".n.1a2b3c4d/new/x": "1",
    }
    write(tmp_path, theirs)
    (tmp_path / ".m.1a2b3c4f").symlink_to(tmp_path / ".m.old")
    save(tmp_path / "m", FIRST)
    save(tmp_path / "m", SECOND)
    assert theirs.items() <= texts(tmp_path).items()
    assert (tmp_path / ".m.1a2b3c4f").is_symlink()


def test_what_was_saved_before_goes_and_what_was_not_stays(system: str, tmp_path: Path) -> None:
    target = tmp_path / "m"
    save(target, {**FIRST, "modeling_pruned.py": "1", "report.json": "1"})
    write(target, {**OWN, "scores.csv": "mine", ".git/HEAD": "ref", ".git/objects/aa/bb": "blob"})
    (target / "empty").mkdir()
    (target / "data").symlink_to("../elsewhere")
    (target / "checkpoint-500").chmod(0o750)
    target.chmod(0o770)
    inode = (target / "notes.txt").stat().st_ino
    save(target, SECOND)
    assert texts(target) == {
        **SECOND,
        **OWN,
        "scores.csv": "mine",
        ".git/HEAD": "ref",
        ".git/objects/aa/bb": "blob",
    }
    assert (target / "empty").is_dir()
    assert os.readlink(target / "data") == "../elsewhere"
    assert stat.S_IMODE((target / "checkpoint-500").stat().st_mode) == 0o750
    assert stat.S_IMODE(target.stat().st_mode) == 0o770
    assert (target / "notes.txt").stat().st_ino == inode
    save(target, FIRST)
    assert texts(target) == {
        **FIRST,
        **OWN,
        "scores.csv": "mine",
        ".git/HEAD": "ref",
        ".git/objects/aa/bb": "blob",
    }
    assert names(tmp_path) == {"m"}


def test_a_file_whose_name_is_taken_is_kept_beside_the_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "m"
    save(target, FIRST)
    write(target, {"report.json": "mine", "same.json": "1", "table/rows.csv": "mine"})
    (target / "link.json").symlink_to("report.json")
    for _ in range(2):
        save(target, {**SECOND, "report.json": "2", "same.json": "1", "link.json": "2", "table": "2"})
    assert texts(target) == {
        **SECOND,
        "report.json": "2",
        "report.json.kept": "mine",
        "same.json": "1",
        "link.json": "2",
        "link.json.kept": "2",
        "table": "2",
        "table.kept/rows.csv": "mine",
    }
    assert "report.json is kept as report.json.kept" in caplog.text


@pytest.mark.parametrize("record", [None, "", "[]", '{"files": 3}', '{"files": [3]}', "\0"])
def test_a_folder_without_a_record_loses_its_model_files_only(record: str | None, tmp_path: Path) -> None:
    """Earlier versions wrote no record; and files get damaged."""
    target = tmp_path / "m"
    write(
        target,
        {
            **FIRST,
            **OWN,
            "modeling_pruned.py": "1",
            "model.safetensors.index.json": "1",
            "model.onnx": "mine",
        },
    )
    if record is not None:
        write(target, {RECORD_FILE: record})
    save(target, SECOND)
    assert texts(target) == {**SECOND, **OWN, "parts/a.json": "1", "model.onnx": "mine"}


def test_files_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "m", FIRST)
    write(tmp_path / "m", OWN)

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    save(tmp_path / "m", SECOND)
    assert texts(tmp_path / "m") == {**SECOND, **OWN}


def test_a_mounted_file_system_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m"
    save(target, FIRST)
    write(target, OWN)
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: Path(path).name == "checkpoint-500")
        for ask in (lambda: check_target(target), lambda: save(target, SECOND)):
            with pytest.raises(CheckpointError, match="checkpoint-500: is a place where another file system"):
                ask()

    def other_device(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", other_device)
    with pytest.raises(CheckpointError, match="another file system is mounted"):
        save(target, SECOND)
    assert texts(target) == {**FIRST, **OWN}
    assert names(tmp_path) == {"m"}


def test_a_folder_that_appears_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "m"

    def save_while(*, overwrite: bool, happens: Callable[[], object]) -> None:
        with new_folder(target, overwrite=overwrite) as draft:
            write(draft, FIRST)
            happens()

    with pytest.raises(CheckpointError, match="holds a result already"):
        save_while(overwrite=False, happens=lambda: write(target, SECOND))
    assert texts(target) == SECOND
    with pytest.raises(CheckpointError, match="not ours to replace"):
        save_while(overwrite=True, happens=(target / PLAN_FILE).unlink)
    assert names(tmp_path) == {"m"}


def test_a_folder_that_vanishes_in_the_meantime_is_made_again(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "m"
    save(target, FIRST)
    with new_folder(target, overwrite=True) as draft:
        write(draft, SECOND)
        shutil.rmtree(target)
    assert texts(target) == SECOND


@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()])
def test_an_interrupted_exchange_brings_the_old_folder_back(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "m", FIRST)
    monkeypatch.setattr("sparse_trainer.folders.replace.exchange", lambda one, other: False)
    rename = Path.rename

    def fail_into_the_gap(self: Path, target: Path) -> Path:
        if self.name == "new" and not Path(target).exists():
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_into_the_gap)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        save(tmp_path / "m", SECOND)
    assert texts(tmp_path / "m") == FIRST
    assert names(tmp_path) == {"m"}


PLACES: dict[str, Callable[[Path], str | Path]] = {
    "the parent is a file": lambda root: root / "file" / "m",
    "a parent above is a file": lambda root: root / "file" / "deep" / "m",
    "is a file": lambda root: root / "file",
    "too long": lambda root: root / ("x" * 250),
    "a parent is too long": lambda root: root / ("x" * 300) / "m",
    "a zero byte": lambda root: "a\0b",
    "a link to itself": lambda root: root / "loop",
    "below a link to itself": lambda root: root / "loop" / "m",
    "no letters": lambda root: "a\ud800",
    "below /proc": lambda root: "/proc/x/y",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_written_is_found_by_asking(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    target = PLACES[place](tmp_path)
    for ask in (lambda: check_target(target, overwrite=False), lambda: save(Path(target), FIRST)):
        with pytest.raises(CheckpointError) as caught:
            ask()
        assert caught.value.remedy
    assert names(tmp_path) == {"file", "loop"}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["os.mkdir", "os.fsync", "tempfile.mkstemp"])
def test_what_the_system_refuses_is_told_before_and_after(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(call, refuse)
    with pytest.raises(CheckpointError, match=f"out: cannot be written .{os.strerror(code)}.") as caught:
        check_target(tmp_path / "deep" / "out")
    assert ("Make room" in caught.value.remedy) == (code in (errno.ENOSPC, errno.EDQUOT))
    monkeypatch.undo()
    assert names(tmp_path) == set()


def test_a_disk_that_is_too_small_is_found_by_asking(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs 1000000000\.0 GB"):
        check_target(tmp_path / "m", need=10**18)
    assert names(tmp_path) == set()


def test_files_are_whole_too_and_their_errors_are_told(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_text(file, "old")
    for point in range(100):
        if not killed_at(point, lambda: write_text(file, "new")):
            break
        assert file.read_text() in ("old", "new")
    assert file.read_text() == "new"
    (tmp_path / "link").symlink_to(file)
    write_text(tmp_path / "link", "newer\r\n")
    assert (tmp_path / "link").is_symlink()
    assert file.read_bytes() == b"newer\r\n"
    for path in (file / "x", tmp_path, tmp_path / "none" / "x", tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(CheckpointError):
            check_file(path)
        with pytest.raises(CheckpointError):
            write_text(path, "x")
