import os

import pytest

from tf_rnnt_kd.config import load_plan
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.nst.configuration import begin, find_changes
from tf_rnnt_kd.preemption import MARKER

CONFIG = """from tests import toy

# Macros:
# ==============================================================================
EVERY = 50
STEPS = 4

# Parameters for Training:
# ==============================================================================
Training.report_every = %EVERY
Training.evaluate_every = 100
teacher/Training.steps = %STEPS
Training.buckets = \\
    (1.0, 2.0,
     3.0)
Plan.name = 'toy'
Plan.comparisons = [('a', 'b')]
"""


def changed(*replacements, before=CONFIG):
    now = before
    for old, new in replacements:
        assert old in now
        now = now.replace(old, new)
    return find_changes(before, now)


def test_a_parameter_that_changes_the_result_is_found_with_both_values():
    assert changed(("STEPS = 4", "STEPS = 5")) == {"STEPS": ("4", "5")}
    assert changed(("     3.0)", "     4.0)")) == {"Training.buckets": ("(1.0, 2.0, 3.0)", "(1.0, 2.0, 4.0)")}
    assert changed(("steps = %STEPS", "steps = 4")) == {"teacher/Training.steps": ("%STEPS", "4")}
    assert changed(("STEPS = 4\n", ""), ("%STEPS", "4")) == {
        "STEPS": ("4", "(nothing)"),
        "teacher/Training.steps": ("%STEPS", "4"),
    }
    assert changed(("from tests import toy", "from tests import tiny")).keys() == {
        "from tests import toy",
        "from tests import tiny",
    }


@pytest.mark.parametrize(
    "replacement",
    [
        ("EVERY = 50", "EVERY = 7"),
        ("report_every = %EVERY", "report_every = 7"),
        ("report_every = %EVERY", "checkpoint_every = %EVERY"),
        ("evaluate_every = 100", "evaluate_every = 7"),
        ("evaluate_every = 100", "keep_checkpoints = 7"),
        ("evaluate_every = 100", "input_servers = ('host:7',)"),
        ("'toy'", "'another'"),
        ("[('a', 'b')]", "[]"),
        ("# Macros", "# Other words"),
        ("(1.0, 2.0,\n     3.0)", "(1.0, 2.0, 3.0)"),
    ],
)
def test_what_leaves_the_result_as_it_is_may_change(replacement):
    assert changed(replacement) == {}


def test_a_macro_counts_as_soon_as_one_of_its_readers_does():
    before = CONFIG + "Training.warmup = %EVERY\n"
    assert changed(("EVERY = 50", "EVERY = 7"), before=before) == {"EVERY": ("50", "7")}


def test_when_to_evaluate_counts_where_the_best_weights_are_handed_on():
    before = CONFIG + "Training.handed_on = 'best'\n"
    name = "Training.evaluate_every"
    assert changed(("evaluate_every = 100", "evaluate_every = 7"), before=before) == {name: ("100", "7")}
    assert changed(("'best'", "'last'"), before=before) == {"Training.handed_on": ("'best'", "'last'")}


def test_a_folder_begun_with_another_configuration_is_refused_by_name(work_dir):
    folder = str(work_dir / "run")
    begin(folder, CONFIG)
    begin(folder, CONFIG)
    (work_dir / "run" / "records").mkdir()
    words = r"begun with another configuration \(STEPS = 4 there, STEPS = 5 now\): .* --allow_config_change"
    with pytest.raises(UserError, match=words):
        begin(folder, CONFIG.replace("STEPS = 4", "STEPS = 5"))
    assert (
        sorted(os.listdir(folder)) == ["config.gin", "records"]
        and (work_dir / "run" / "config.gin").read_text() == CONFIG
    )


def test_a_folder_in_which_nothing_was_made_takes_another_configuration(work_dir, capsys):
    mended = CONFIG.replace("STEPS = 4", "STEPS = 5")
    begin(str(work_dir), CONFIG)
    (work_dir / MARKER).write_text("stopped")
    begin(str(work_dir), mended)
    assert (work_dir / "config.gin").read_text() == mended and capsys.readouterr().out == ""
    with pytest.raises(UserError, match="differs from this worker's"):
        begin(str(work_dir), CONFIG, must_be_equal=True)


def test_another_run_file_is_named_by_its_values_and_not_by_its_imports():
    changes = changed(("from tests import toy", "from tests import tiny"), ("STEPS = 4", "STEPS = 5"))
    assert list(changes)[0] == "STEPS" and len(changes) == 3


def test_a_change_that_is_allowed_is_said_and_the_configurations_before_are_kept(work_dir, capsys):
    other, third = CONFIG.replace("STEPS = 4", "STEPS = 5"), CONFIG.replace("STEPS = 4", "STEPS = 6")
    (work_dir / "seed-0").mkdir()
    for config in (CONFIG, other, other, third):
        begin(str(work_dir), config, allow_change=True)
    assert capsys.readouterr().out == "  STEPS = 5 from here on, 4 before\n  STEPS = 6 from here on, 5 before\n"
    assert [path.read_text() for path in sorted(work_dir.glob("*.gin"))] == [CONFIG, other, third]


def test_a_worker_has_the_configuration_of_the_chief_to_the_letter(work_dir):
    begin(str(work_dir), CONFIG)
    begin(str(work_dir), CONFIG, must_be_equal=True)
    with pytest.raises(UserError, match=r"config\.gin differs from this worker's configuration"):
        begin(str(work_dir), CONFIG.replace("EVERY = 50", "EVERY = 7"), allow_change=True, must_be_equal=True)


def test_a_change_without_effect_is_written_down_in_silence(work_dir, capsys):
    begin(str(work_dir), CONFIG)
    begin(str(work_dir), CONFIG.replace("EVERY = 50", "EVERY = 7"))
    assert os.listdir(work_dir) == ["config.gin"] and "EVERY = 7" in (work_dir / "config.gin").read_text()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("loop.Training.report_every=7", {}),
        ("plan.Plan.comparisons=[]", {}),
        ("TEACHER_STEPS=7", {"TEACHER_STEPS"}),
        ("soft/objective.Objective.temperature=2.0", {"soft/tf_rnnt_kd.training.objective.Objective.temperature"}),
        ("plan.Plan.seeds=(4, 5)", {"plan.Plan.seeds"}),
    ],
)
def test_the_text_that_gin_writes_is_read(param, changes):
    before, now = (load_plan("configs/quickstart.gin", params)[1] for params in ([], [param]))
    assert before != now
    found = find_changes(before, now)
    assert {name.rsplit(".", 1)[-1] for name in found} == {name.rsplit(".", 1)[-1] for name in changes}


def trained(folder, config):
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    (folder / "config.gin").write_text(config)


def test_a_finished_generation_keeps_the_configuration_that_made_it(work_dir, capsys):
    trained(work_dir / "seed-0/teacher", CONFIG)
    changed = CONFIG.replace("STEPS = 4", "STEPS = 5")
    begin(str(work_dir), CONFIG)
    begin(str(work_dir), changed, allow_change=True)
    assert "seed-0/teacher is finished and keeps its own" in capsys.readouterr().out
    assert (work_dir / "seed-0/teacher/config.gin").read_text() == CONFIG
    note = "#! seed-0/teacher was made by another configuration: seed-0/teacher/config.gin\n"
    assert (work_dir / "config.gin").read_text() == note + changed
    begin(str(work_dir), changed, must_be_equal=True)
    trained(work_dir / "seed-1/teacher", changed)
    begin(str(work_dir), changed)
    assert (work_dir / "config.gin").read_text() == note + changed


def test_where_all_is_finished_the_configuration_stays(work_dir, capsys):
    trained(work_dir / "seed-0/teacher", CONFIG)
    begin(str(work_dir), CONFIG)
    changed = CONFIG.replace("STEPS = 4", "STEPS = 5")
    begin(str(work_dir), changed, allow_change=True, is_finished=lambda: True)
    assert (work_dir / "config.gin").read_text() == CONFIG and not (work_dir / "config-1.gin").exists()
    said = capsys.readouterr().out
    assert "STEPS" in said and "from here on" not in said and "stays as it is" in said


def test_all_differences_are_named_at_once(work_dir):
    begin(str(work_dir), CONFIG)
    (work_dir / "records").mkdir()
    other = CONFIG.replace("STEPS = 4", "STEPS = 5").replace("     3.0)", "     4.0)")
    with pytest.raises(UserError, match=r"STEPS = 4 there, STEPS = 5 now; Training.buckets = .*4.0\) now"):
        begin(str(work_dir), other)


def test_of_many_changes_the_first_are_shown(work_dir):
    before = "".join(f"a.B.c{i} = 1\n" for i in range(15))
    begin(str(work_dir), before)
    (work_dir / "something").touch()
    with pytest.raises(UserError, match=r"a\.B\.c9 = 1 there, a\.B\.c9 = 2 now; and 5 more\)"):
        begin(str(work_dir), before.replace("= 1", "= 2"))
    (work_dir / "config.gin").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"config\.gin is damaged: it is no UTF-8 text"):
        begin(str(work_dir), before)
