"""`python -m tf_rnnt_kd.train --config configs/quickstart.gin`: carries out a plan, or goes on with it."""

import functools
import os
import sys

from absl import flags

from tf_rnnt_kd.errors import UserError, run_command

_CONFIG = flags.DEFINE_string("config", None, "Gin file of the plan.", required=True)
_WORK_DIR = flags.DEFINE_string("work_dir", None, "Folder of the run; by default runs/<name of the config>.")
_PARAM = flags.DEFINE_multi_string("param", [], "Overrides a macro or binding of the config: NAME=value.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan with sizes, steps and storage; train nothing.")
_STRATEGY = flags.DEFINE_string("strategy", "auto", "auto, tpu, mirrored, multiworker or one_device.")
_TPU = flags.DEFINE_string("tpu", None, "Name of the TPU; 'local' on a TPU VM.")
_JOBS = flags.DEFINE_integer("jobs", 0, "Generations trained side by side; 0: one a core without accelerator, else 1.")
_ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Go on with a run that was begun with another configuration; what is finished stays."
)
_REMAKE = flags.DEFINE_bool("remake", False, "Make again what was made from data, labels or a teacher that changed.")
_PROFILE = flags.DEFINE_string("profile", None, "FIRST,LAST: steps of each training to trace for TensorBoard.")
_SKIP_BAD = flags.DEFINE_integer("skip_bad", 0, "Files of bad audio to leave out of the corpora.", lower_bound=0)
_ONLY = flags.DEFINE_string("only", None, "SEED/GENERATION: this one alone; plan prepared, teacher finished.")


def main(argv):
    """Loads the plan and runs it."""
    del argv
    from tf_rnnt_kd import config
    from tf_rnnt_kd.nst import jobs, outline
    from tf_rnnt_kd.nst.preparation import Prepared
    from tf_rnnt_kd.preemption import leaving_resumable
    from tf_rnnt_kd.training.profiling import parse_steps
    from tf_rnnt_kd.training.strategy import check_name

    check_name(_STRATEGY.value)
    profile = parse_steps(_PROFILE.value)
    plan, text = config.load_plan(_CONFIG.value, _PARAM.value)
    work_dir = _WORK_DIR.value or os.path.join("runs", os.path.splitext(os.path.basename(_CONFIG.value))[0])
    if _DRY_RUN.value:
        print(outline.describe(plan, Prepared(os.path.join(work_dir, "records"))))
        return
    if _STRATEGY.value == "multiworker" and _ONLY.value:
        raise UserError("--only with --strategy multiworker: workers carry out whole plans, leave it out")
    with leaving_resumable(work_dir, is_child=jobs.is_child()):
        _run(plan, text, work_dir, profile)


def _run(plan, text, work_dir, profile):
    from tf_rnnt_kd.nst import configuration, jobs, run
    from tf_rnnt_kd.training.strategy import end_with_others, make_strategy

    at_once = jobs.choose_at_once(plan, _JOBS.value, _STRATEGY.value)
    jobs.limit_threads(at_once)
    jobs.keep_memory()
    options = {"remake": _REMAKE.value, "skip_bad": _SKIP_BAD.value, "profile": profile}
    start = run.Start(plan, work_dir, text, **options)
    begin = functools.partial(
        configuration.begin,
        work_dir,
        text,
        allow_change=_ALLOW_CONFIG_CHANGE.value,
        is_finished=lambda: run.is_complete(start),
    )
    if _STRATEGY.value == "multiworker":
        with end_with_others():
            table = run.run_together(start, begin, make_strategy(_STRATEGY.value))
            _show(table, work_dir)
        return
    begin()
    if _ONLY.value:
        jobs.end_with_parent()
        job, strategy = jobs.find_job(plan, _ONLY.value), make_strategy(_STRATEGY.value, _TPU.value)
        run.run_job(start, job, strategy)
        return
    children = jobs.Children(
        lambda job: [sys.executable, "-m", "tf_rnnt_kd.train", *sys.argv[1:], f"--only={job.name}"], at_once
    )
    table = run.run_plan(start, lambda: make_strategy(_STRATEGY.value, _TPU.value), children if at_once > 1 else None)
    _show(table, work_dir)


def _show(table, work_dir):
    if table is not None:
        print(f"\n{table}\n\nresults     {work_dir}/results.json\nTensorBoard tensorboard --logdir {work_dir}")


if __name__ == "__main__":
    run_command(main)
