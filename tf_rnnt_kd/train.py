"""`python -m tf_rnnt_kd.train --config configs/quickstart.gin`: carries out a plan, or goes on with it."""

import functools
import os
import shlex
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
_SKIP_BAD = flags.DEFINE_integer("skip_bad", 0, "Files of bad audio to leave out of the corpora.", lower_bound=0)
_NO_DATA = flags.DEFINE_bool("no_data", False, "Do not look at the data: what is prepared is taken as it is.")
_TRUST_CONFIG = flags.DEFINE_bool(
    "trust_config", False, "Let the config import modules from outside of tf_rnnt_kd, which runs them; once a run."
)
_PROFILE = flags.DEFINE_string("profile", None, "FIRST,LAST: steps of each training to trace for TensorBoard.")
_ONLY = flags.DEFINE_string("only", None, "SEED/GENERATION: this one alone; plan prepared, teacher finished.")


def main(argv):
    """Loads the plan, looks for whatever would stop it, and runs it."""
    del argv
    from tf_rnnt_kd import config
    from tf_rnnt_kd.nst import jobs, run
    from tf_rnnt_kd.preemption import leaving_resumable
    from tf_rnnt_kd.training.profiling import parse_steps
    from tf_rnnt_kd.training.strategy import check_name

    check_name(_STRATEGY.value)
    profile = parse_steps(_PROFILE.value)
    work_dir = _WORK_DIR.value or os.path.join("runs", os.path.splitext(os.path.basename(_CONFIG.value))[0])
    trusted = None if _TRUST_CONFIG.value else config.trusted_by(work_dir)
    plan, text = config.load_plan(_CONFIG.value, _PARAM.value, trusted=trusted)
    options = {"remake": _REMAKE.value, "skip_bad": _SKIP_BAD.value, "look": not _NO_DATA.value, "profile": profile}
    start = run.Start(plan, work_dir, text, **options)
    if _STRATEGY.value == "multiworker" and _ONLY.value:
        raise UserError("--only with --strategy multiworker: workers carry out whole plans, leave it out")
    at_once = jobs.choose_at_once(plan, _JOBS.value, _STRATEGY.value)
    jobs.limit_threads(at_once)
    jobs.keep_memory()
    if _DRY_RUN.value:
        print(_describe(start))
        return
    if not _ONLY.value and _STRATEGY.value != "multiworker":  # workers meet before anything is computed
        _check(start)
    with leaving_resumable(work_dir, is_child=jobs.is_child()):
        _run(start, at_once)


def _describe(start):
    from tf_rnnt_kd.nst import outline

    _check(start, looks_at_all=True)
    return outline.describe(start.plan, start.prepared)


def _check(start, looks_at_all=False):
    """Raises UserError with all that would stop the plan here, before anything is written."""
    from tf_rnnt_kd.nst import checks, configuration, run
    from tf_rnnt_kd.training.strategy import count_replicas

    mistakes, replicas = [], count_replicas(_STRATEGY.value, _TPU.value)
    if not start.plan.generations:
        mistakes.append("the plan has no generation, so there is nothing to train: give it one, or `prepare` its data")
    is_allowed = functools.partial(configuration.check, allow_change=_ALLOW_CONFIG_CHANGE.value)
    for check in (
        functools.partial(is_allowed, start.work_dir, start.config),
        functools.partial(run.check_fits, start),
    ):
        try:
            check()
        except UserError as error:
            mistakes += error.mistakes
    look = None if _NO_DATA.value else checks.read_list if looks_at_all else checks.peek
    mistakes += checks.find_mistakes(start.plan, start.prepared, replicas, look=look)
    if mistakes:
        raise UserError.of(_CONFIG.value, mistakes)


def _run(start, at_once):
    from tf_rnnt_kd.nst import configuration, jobs, run
    from tf_rnnt_kd.preemption import go_on
    from tf_rnnt_kd.training.strategy import end_with_others, make_strategy

    def begin(**how):
        how["is_finished"] = functools.partial(run.is_complete, start)
        configuration.begin(start.work_dir, start.config, allow_change=_ALLOW_CONFIG_CHANGE.value, **how)
        if not jobs.is_child():
            go_on(start.work_dir)

    def check_and_begin(**how):
        _check(start)
        begin(**how)

    if _STRATEGY.value == "multiworker":
        with end_with_others():
            table = run.run_together(start, check_and_begin, make_strategy(_STRATEGY.value))
            _show(table, start.work_dir)
        return
    begin()
    if _ONLY.value:
        jobs.end_with_parent()
        job, strategy = jobs.find_job(start.plan, _ONLY.value), make_strategy(_STRATEGY.value, _TPU.value)
        run.run_job(start, job, strategy)
        return
    children = jobs.Children(
        lambda job: [sys.executable, "-m", "tf_rnnt_kd.train", *sys.argv[1:], f"--only={job.name}"], at_once
    )
    table = run.run_plan(start, lambda: make_strategy(_STRATEGY.value, _TPU.value), children if at_once > 1 else None)
    _show(table, start.work_dir)


def _show(table, work_dir):
    if table is not None:
        where = f"results     {work_dir}/results.json\nTensorBoard tensorboard --logdir {shlex.quote(work_dir)}"
        print(f"\n{table}\n\n{where}")


if __name__ == "__main__":
    run_command(main)
