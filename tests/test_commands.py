"""Starts that come to nothing: what is said, with which exit code, and that nothing is touched."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from tf_rnnt_kd.__main__ import list_commands

ROOT = pathlib.Path(__file__).parents[1]


def run(module, *arguments):
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_package_itself_lists_the_commands():
    words = list_commands()
    files = [path for path in (ROOT / "tf_rnnt_kd").glob("*.py") if "\n    run_command(main)" in path.read_text()]
    assert len(files) >= 7 and all(f"python -m tf_rnnt_kd.{path.stem} " in words for path in files)
    assert words.count("\n") == len(files) + 1
    done = run("tf_rnnt_kd")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{words}\n", "")


def test_a_command_without_its_config_says_so():
    done = run("tf_rnnt_kd.train")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --config is missing: give it (--help lists the options)\n"


@pytest.fixture
def begun(work_dir):
    """A run folder in which something was made and which was stopped, and its files."""
    config = """
    from tf_rnnt_kd.config import load_plan
    import sys
    open(sys.argv[1], "w").write(load_plan("configs/quickstart.gin")[1])
    """
    folder = work_dir / "run"
    (folder / "seed-0").mkdir(parents=True)
    (folder / "resumable").write_text("stopped\n")
    code = "\n".join(line.strip() for line in config.splitlines())
    subprocess.run([sys.executable, "-c", code, str(folder / "config.gin")], cwd=ROOT, check=True, capture_output=True)
    return folder


def files(folder):
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_a_start_that_is_refused_changes_nothing_in_the_run_folder(begun):
    before = files(begun)
    for option in (
        "--param=STUDENT_STEPS=7",
        "--param=conformer.ConformerEncoder.num_heads=5",
        "--param=loop.Training.l2=-1",
    ):
        done = run("tf_rnnt_kd.train", "--config=configs/quickstart.gin", f"--work_dir={begun}", option)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: "), done.stderr
        assert files(begun) == before


def test_a_dry_run_finds_what_a_run_would_refuse_all_at_once(begun):
    options = [f"--work_dir={begun}", "--dry_run", "--param=STUDENT_STEPS=7", "--param=loop.Training.accumulation=7"]
    before = files(begun)
    done = run("tf_rnnt_kd.train", "--config=configs/quickstart.gin", *options)
    lines = done.stderr.splitlines()
    assert (
        done.returncode == 2
        and done.stdout == ""
        and lines[0].startswith("error: 4 mistakes in configs/quickstart.gin:")
    )
    assert "was begun with another configuration (STUDENT_STEPS = 1200 there, STUDENT_STEPS = 7 now; " in done.stderr
    assert sum("7 micro-batches can't share evenly" in line for line in lines) == 3 and files(begun) == before


def test_a_config_that_runs_code_from_outside_has_to_be_trusted_once(work_dir):
    config, folder = work_dir / "mine.gin", work_dir / "run"
    config.write_text(f"include {str(ROOT / 'tests' / 'toy_chain.gin')!r}\n")
    options = [f"--config={config}", f"--work_dir={folder}", "--dry_run", "--no_data"]
    done = run("tf_rnnt_kd.train", *options)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "imports tests.toy, which runs code" in done.stderr
    done = run("tf_rnnt_kd.train", *options, "--trust_config")
    assert done.returncode == 0 and "plan toy chain: 3 generations" in done.stdout and not folder.exists()
    folder.mkdir()
    shutil.copy(ROOT / "tests" / "toy_chain.gin", folder / "config.gin")
    assert run("tf_rnnt_kd.train", *options).returncode == 0
    done = run("tf_rnnt_kd.prepare", f"--config={config}", f"--output={work_dir / 'records'}")
    assert done.returncode == 2 and "--trust_config" in done.stderr and not (work_dir / "records").exists()
