import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import tensorflow as tf

from tests.nst.test_plan import generation, make_plan, soft
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.nst import jobs
from tf_rnnt_kd.nst.jobs import choose_at_once, find_job, list_jobs, run_jobs, width
from tf_rnnt_kd.preemption import MARKER, leaving_resumable
from tf_rnnt_kd.progress import BAR_POSITION


def family(**changes):
    """A teacher, two students of it, and a student of the first."""
    members = generation("teacher"), soft("a"), soft("b"), soft("c", "a")
    return make_plan(*members, **changes)


def names(found):
    return [job.name for job in found]


def test_jobs_are_teachers_first_with_seeds_in_turn():
    assert names(list_jobs(make_plan(seeds=(0, 1)))) == ["0/teacher", "1/teacher", "0/student", "1/student"]


def test_a_job_is_found_by_its_name():
    plan = family(seeds=(0, 7))
    assert find_job(plan, "7/c").seed == 7 and find_job(plan, "7/c").generation.name == "c"
    with pytest.raises(UserError, match="the plan has no generation '7/d': there are 0/teacher, 7/teacher, 0/a"):
        find_job(plan, "7/d")


def test_the_width_is_that_of_the_widest_level_times_the_seeds():
    assert width(make_plan(generation("teacher"))) == 1
    assert width(family()) == 2
    assert width(family(seeds=(0, 1, 2))) == 6


def test_how_many_run_at_once_depends_on_machine_and_plan(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert [choose_at_once(family(), wanted, "auto") for wanted in (0, 1, 3)] == [2, 1, 3]
    assert choose_at_once(family(seeds=(0, 1, 2)), 0, "one_device") == 4
    assert choose_at_once(family(), 0, "mirrored") == 1
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    assert choose_at_once(family(), 0, "auto") == 1
    assert choose_at_once(family(), 0, "multiworker") == choose_at_once(family(), 1, "multiworker") == 1
    with pytest.raises(UserError, match="--jobs 2 with --strategy multiworker"):
        choose_at_once(family(), 2, "multiworker")
    with pytest.raises(UserError, match="--jobs -1 is negative"):
        choose_at_once(family(), -1, "auto")


def test_threads_are_shared_among_the_processes(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", calls.append)
    monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", lambda n: None)
    for at_once in (1, 2, 16):
        jobs.limit_threads(at_once)
    assert calls == [4, 1]


def python(code, *arguments):
    return [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]


RECORD = """
    import os, sys, time
    folder, name, seconds = sys.argv[1], sys.argv[2].replace("/", "-"), float(sys.argv[3])
    note = lambda what: open(os.path.join(folder, "log"), "a").write(f"{what} {name} {os.environ['TF_RNNT_KD_BAR']}\\n")
    note("start")
    time.sleep(seconds)
    note("end")
"""


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_student_starts_when_its_own_teacher_has_ended(work_dir, at_once):
    run_jobs(list_jobs(family(seeds=(0, 1))), lambda job: python(RECORD, work_dir, job.name, 0.15), at_once)
    log = [line.split() for line in (work_dir / "log").read_text().splitlines()]
    order = {(what, name): i for i, (what, name, _) in enumerate(log)}
    assert len(log) == 16
    for seed in (0, 1):
        for teacher, student in (("teacher", "a"), ("teacher", "b"), ("a", "c")):
            assert order["end", f"{seed}-{teacher}"] < order["start", f"{seed}-{student}"]
    running = [sum(1 if what == "start" else -1 for what, *_ in log[: i + 1]) for i in range(len(log))]
    assert min(at_once, 2) <= max(running) <= at_once
    assert {int(slot) for *_, slot in log} <= set(range(at_once))


def test_jobs_whose_teacher_is_finished_start_at_once(work_dir):
    left = [job for job in list_jobs(family()) if job.generation.name == "c"]
    run_jobs(left, lambda job: python(RECORD, work_dir, job.name, 0.0), 2)
    assert (work_dir / "log").read_text().startswith("start 0-c")


def test_nothing_to_do_is_done():
    run_jobs([], lambda job: ["false"], 2)


def test_a_failing_child_stops_the_others_and_its_code_is_kept(work_dir):
    code = """
        import os, sys, time
        open(os.path.join(sys.argv[1], sys.argv[2]), "w").write(str(os.getpid()))
        while sys.argv[2] == "b" and not os.path.exists(os.path.join(sys.argv[1], "a")): time.sleep(0.02)
        sys.exit(7) if sys.argv[2] == "b" else None
        time.sleep(60 if sys.argv[2] == "a" else 0)
    """
    start = time.monotonic()
    with pytest.raises(SystemExit) as failed:
        run_jobs(list_jobs(family()), lambda job: python(code, work_dir, job.generation.name), 2)
    assert failed.value.code == 7 and time.monotonic() - start < 30
    assert not (work_dir / "c").exists()
    assert_ends(int((work_dir / "a").read_text()))


@pytest.mark.parametrize("signalled", ["parent", "child"])
def test_on_sigterm_all_children_save_and_the_parent_ends_as_if_done(work_dir, signalled):
    child = """
        import os, signal, sys, time
        from tf_rnnt_kd.preemption import deferred, leaving_resumable
        folder, name, others = sys.argv[1], sys.argv[2].replace("/", "-"), ("0-a", "0-b")
        with leaving_resumable(folder, is_child=True), deferred() as is_preempted:
            while name in others and not is_preempted():
                open(os.path.join(folder, name), "w").close()
                if name == "0-b" and all(os.path.exists(os.path.join(folder, other)) for other in others):
                    os.kill(os.getppid() if sys.argv[3] == "parent" else os.getpid(), signal.SIGTERM)
                time.sleep(0.02)
            open(os.path.join(folder, "saved-" + name), "w").close()
    """
    with pytest.raises(SystemExit) as end, leaving_resumable(str(work_dir), is_child=False):
        run_jobs(list_jobs(family()), lambda job: python(child, work_dir, job.name, signalled), 2)
    assert end.value.code == 0 and (work_dir / MARKER).exists()
    assert sorted(path.name for path in work_dir.glob("saved-*")) == ["saved-0-a", "saved-0-b", "saved-0-teacher"]


def test_a_child_knows_that_it_is_one(monkeypatch):
    monkeypatch.delenv("TF_RNNT_KD_PARENT", raising=False)
    assert not jobs.is_child()
    monkeypatch.setenv("TF_RNNT_KD_PARENT", "1")
    assert jobs.is_child()


def assert_ends(pid, seconds=10.0):
    """Waits until a process is gone; a zombie counts as gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")


PARENT = """
    import subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=sys.argv[2] and {**__import__("os").environ,
        "TF_RNNT_KD_PARENT": str(__import__("os").getpid())})
    print(child.pid, flush=True)
    child.wait()
"""
CHILD = """
import sys, time
from tf_rnnt_kd.nst.jobs import end_with_parent
end_with_parent()
print("watching", flush=True)
time.sleep(120)
"""


@pytest.mark.slow
def test_a_child_ends_when_its_parent_is_killed():
    parent = subprocess.Popen(python(PARENT, CHILD, "yes"), stdout=subprocess.PIPE, text=True)
    try:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "watching\n"
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert_ends(child)
    finally:
        parent.kill()
        parent.stdout.close()


def test_a_process_without_parent_watches_nothing(monkeypatch):
    monkeypatch.delenv("TF_RNNT_KD_PARENT", raising=False)
    monkeypatch.setattr(jobs.threading, "Thread", lambda **_: pytest.fail("no thread is wanted"))
    jobs.end_with_parent()


def test_a_childs_bar_has_a_line_of_its_own():
    assert BAR_POSITION == "TF_RNNT_KD_BAR"
