"""A plan, carried out: prepare, and for each generation train, label for its students, evaluate, export; then report.

    WORK_DIR/records/                  tokenizer and one record set a corpus
    WORK_DIR/language/NAME/            language models
    WORK_DIR/seed-S/GENERATION/        checkpoints, tensorboard, the trained model, results.json, labels/, decodings/,
                                       savedmodel/, config.gin; of a cascade also second_pass/results.json
    WORK_DIR/seed-S/GENERATION.stale-N what was trained on something else, before a start with --remake
    WORK_DIR/results.json, report.txt

Every stage leaves a file that says that it is finished, written last, and is skipped when it is there and fits what it
was made from (see `lineage`). The same command goes on wherever it was stopped, and does nothing when all is done.
"""

import contextlib
import dataclasses
import fcntl
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import soundfile
import tensorflow as tf
from pydantic import with_config
from typing_extensions import TypedDict

from tf_rnnt_kd.data.records import RecordSet, open_records
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.decode import evaluate_checkpoint, evaluate_records, make_decoder
from tf_rnnt_kd.evaluation.report import format_differences, format_table, write_report
from tf_rnnt_kd.evaluation.results import score_set
from tf_rnnt_kd.evaluation.systems import System, read_run
from tf_rnnt_kd.evaluation.wer import count_errors, mark_errors
from tf_rnnt_kd.features.log_mel import SAMPLE_RATE
from tf_rnnt_kd.files import CLOSED, Amount, Positive, Sha256, dump_signed, read_signed, write_atomically, write_text
from tf_rnnt_kd.labelling.records import label_folder
from tf_rnnt_kd.lineage import begin, examine, find_changes, finish, read_lineage, stale_error
from tf_rnnt_kd.models.saving import save_model
from tf_rnnt_kd.nst import configuration
from tf_rnnt_kd.nst.artefacts import (
    Artefact,
    export_of,
    find_stale,
    generation_folder,
    hash_of,
    label_sets_wanted_from,
    labels_of,
    list_artefacts,
    model_inputs,
    model_of,
    parts_of_decoding,
    remove,
    remove_parent,
    results_of,
    set_aside,
)
from tf_rnnt_kd.nst.jobs import Children, Job, list_jobs, run_jobs
from tf_rnnt_kd.nst.language import compare_language_models, decode_tests, decoding_folder, make_language_model
from tf_rnnt_kd.nst.plan import Plan
from tf_rnnt_kd.nst.preparation import Prepared, compare, prepare
from tf_rnnt_kd.progress import say
from tf_rnnt_kd.serving.recognizer import Recognizer, in_chunks
from tf_rnnt_kd.serving.saved_model import export_checkpoint
from tf_rnnt_kd.training.loop import train
from tf_rnnt_kd.training.profiling import Steps
from tf_rnnt_kd.training.strategy import is_chief, of_chief
from tf_rnnt_kd.training.watching import BEST_BY, Evaluation, Example, Shown

_CHUNK = 10_240  # samples fed to a streaming export at once, 640 ms
_LOCK = ".lock"
_EXAMPLES = 6  # development utterances that TensorBoard shows


@dataclasses.dataclass(frozen=True)
class Start:
    """One start of a plan in its folder.

    Attributes:
      plan: what to do.
      work_dir: where; `configuration.begin` has bound it to the plan's configuration.
      config: the resolved configuration as text; each generation keeps that of its last training.
      remake: make again what was made from something else; without it that is an error.
      skip_bad: files of bad audio that may be left out of the corpora.
      look: compare the corpora with what is prepared; else that is taken as it is.
      profile: steps of each training here to trace; children are told by their command.
    """

    plan: Plan
    work_dir: str
    config: str = ""
    remake: bool = False
    skip_bad: int = 0
    look: bool = True
    profile: Steps | None = None

    @property
    def prepared(self) -> Prepared:
        """Tokenizer and records."""
        return Prepared(os.path.join(self.work_dir, "records"))

    def folder(self, job: Job) -> str:
        """Of a generation for one seed."""
        return generation_folder(self.work_dir, job.seed, job.generation.name)


@with_config(CLOSED)
class Cost(TypedDict):
    """`training.json`: what a finished training took; `seconds` over all starts."""

    steps: Positive
    seconds: Amount
    sha256: Sha256


def run_plan(start: Start, strategy: Callable[[], tf.distribute.Strategy], children: Children | None) -> str:
    """The whole plan; returns the report.

    Args:
      start: what to do, and where.
      strategy: makes the strategy when the first model is trained in this process.
      children: how to run generations side by side in processes of their own; None for one after the other in this one.

    Raises:
      UserError: something in the folder was made from what is no longer there.
    """
    _prepare(start)
    jobs = [job for job in list_jobs(start.plan) if not is_finished(start, job)]
    if children is not None:
        run_jobs(jobs, children.command, children.at_once)
    else:
        for job in jobs:
            run_job(start, job, strategy())
    return _conclude(start)


def run_together(start: Start, bind: Callable[..., None], strategy: tf.distribute.Strategy) -> str | None:
    """The whole plan by several workers that share the folder: all train, the chief does everything else.

    Args:
      start: what to do; the folder is on storage that all workers reach by this path.
      bind: `configuration.begin` for this folder and this worker's configuration, which has to be the chief's.
      strategy: over the workers.

    Returns:
      The report, in the chief.
    """
    chief = is_chief(strategy)
    if chief:
        bind()
        _prepare(start)
    of_chief(strategy, 0)
    if not chief:
        bind(must_be_equal=True)
    for job in list_jobs(start.plan):
        if not of_chief(strategy, chief and is_finished(start, job)):
            run_job(start, job, strategy)
    text = _conclude(start) if chief else None
    of_chief(strategy, 0)  # a worker that left early would look like one that had failed
    return text


def check_fits(start: Start) -> None:
    """Raises UserError, unless it is to be made again, where something was made from what is no longer there."""
    problems = compare(start.plan, start.prepared, start.skip_bad) if start.look else {}
    if start.look and not problems:
        problems |= compare_language_models(start.plan, start.work_dir)
    problems |= _find_stale(start)
    if problems and not start.remake:
        raise stale_error(problems)


def _find_stale(start: Start) -> dict[str, list[str]]:
    return find_stale(a for job in list_jobs(start.plan) for a in list_artefacts(start.plan, job, start.work_dir))


def _prepare(start: Start) -> None:
    options = {"remake": start.remake, "skip_bad": start.skip_bad, "look": start.look}
    prepare(start.plan, start.prepared.folder, **options)
    for spec in start.plan.language_models:
        with _sole_user(os.path.join(start.work_dir, "language", spec.name)):
            make_language_model(start.plan, spec, start.work_dir, remake=start.remake, look=start.look)
    problems = _find_stale(start)
    if problems and not start.remake:
        raise stale_error(problems)


def _conclude(start: Start) -> str:
    return report(start.plan, start.work_dir) + _demonstrate(start.plan, start.work_dir)


def run_job(start: Start, job: Job, strategy: tf.distribute.Strategy) -> None:
    """Everything about one generation; each finished part is skipped. Other workers than the chief train only."""
    chief = is_chief(strategy)
    with _sole_user(start.folder(job)) if chief else contextlib.nullcontext():
        if not of_chief(strategy, chief and _has_model(start, job)):
            _train(start, job, strategy)
        if chief:
            _label(start, job)
            _evaluate(start, job)
            export = export_of(start.folder(job))
            if job.generation.export and not _has(start, export):
                export_checkpoint(start.folder(job), export.path)


def _label(start: Start, job: Job) -> None:
    folder = start.folder(job)
    for label_set in label_sets_wanted_from(start.plan, job.generation.name):
        labels, audio = labels_of(folder, label_set), start.prepared.path(label_set.corpus)
        if not _has(start, labels):
            stored = {"codec": label_set.codec, "dtype": label_set.dtype, "features": label_set.features}
            label_folder(folder, audio, labels.path, **stored)


def _evaluate(start: Start, job: Job) -> None:
    folder = start.folder(job)
    for row in job.generation.rows:
        if not _has(start, results := results_of(os.path.join(folder, row.folder))):
            tests = [start.prepared.path(name) for name in start.plan.tests]
            options = {"second_pass": row.second_pass, "normaliser": start.plan.normaliser}
            evaluate_checkpoint(folder, tests, results.path, **options)
    for decoding in job.generation.decodings:
        parts = parts_of_decoding(decoding_folder(folder, decoding))
        if not all([_has(start, part, clear=remove_parent) for part in parts]):
            decode_tests(start.plan, decoding, folder, start.work_dir)


def _has(start: Start, artefact: Artefact, wanted: Mapping[str, Any] | None = None, clear=remove) -> bool:
    """Whether an artefact is finished; with --remake one that no longer fits is cleared away first.

    Args:
      start: of the plan.
      artefact: which.
      wanted: what an unfinished one has to be made from.
      clear: makes room for a new one.

    Raises:
      UserError: it no longer fits, and is not to be made again.
    """
    if not artefact.is_begun:
        return False
    changes = examine(artefact.path, hash_of)
    if wanted is not None and not artefact.is_finished:
        changes = find_changes(read_lineage(artefact.path).inputs, wanted)
    if changes and not start.remake:
        raise stale_error({artefact.path: changes})
    if changes:
        say(f"  {artefact.path} is made again: {'; '.join(changes)}")
        clear(artefact.path)
    return artefact.is_finished


def _has_model(start: Start, job: Job) -> bool:
    wanted, _ = model_inputs(start.plan, job, start.work_dir)
    return _has(start, model_of(start.folder(job)), wanted, functools.partial(set_aside, kept=_LOCK))


def is_finished(start: Start, job: Job) -> bool:
    """Whether `run_job` has nothing left to do."""
    artefacts = list_artefacts(start.plan, job, start.work_dir)
    return all(artefact.is_finished for artefact in artefacts) and not find_stale(artefacts)


def is_complete(start: Start) -> bool:
    """Whether every generation of the plan is finished."""
    return all(is_finished(start, job) for job in list_jobs(start.plan))


def report(plan: Plan, work_dir: str) -> str:
    """Writes `results.json` and `report.txt`; returns the text. The JSON holds no times: every run writes the same."""
    systems = []
    for generation in plan.generations:
        folders = [generation_folder(work_dir, seed, generation.name) for seed in plan.seeds]
        costs = [_read_cost(folder) for folder in folders]
        for row in generation.rows:
            runs = [_read_run(os.path.join(f, row.folder), c) for f, c in zip(folders, costs, strict=True)]
            systems.append(System(row.name, tuple(runs)))
        for decoding in generation.decodings:
            runs = [read_run(decoding_folder(folder, decoding)) for folder in folders]
            systems.append(System(generation.system(decoding), tuple(runs)))
    write_report(os.path.join(work_dir, "results.json"), systems, plan.comparisons)
    text = format_table(systems)
    if plan.comparisons:
        text += "\n\n" + format_differences(systems, plan.comparisons)
    write_text(os.path.join(work_dir, "report.txt"), text + "\n")
    return text


def _demonstrate(plan: Plan, work_dir: str) -> str:
    """Lets the last exported model transcribe one test utterance from a file; returns what there is to show."""
    exported = [generation for generation in plan.generations if generation.export]
    if not exported:
        return ""
    saved_model = os.path.join(generation_folder(work_dir, plan.seeds[0], exported[-1].name), "savedmodel")
    audio, shown = os.path.join(work_dir, "example.wav"), os.path.join(work_dir, "example.txt")
    records = Prepared(os.path.join(work_dir, "records")).records(plan.tests[0])
    inputs = {"export": hash_of(saved_model), "records": records.hash}
    found = read_lineage(shown)
    if found is None or find_changes(found.inputs, inputs) or not os.path.exists(shown):
        begin(shown, "example", inputs, {"export": saved_model, "records": records.folder}, anew=True)
        record = next(records.read())
        soundfile.write(audio, record.samples, SAMPLE_RATE)
        recognizer, samples = Recognizer(saved_model), record.samples.astype("float32") / 32768.0
        if recognizer.streaming:
            *_, heard = recognizer.stream(in_chunks(samples, _CHUNK))
        else:
            heard = recognizer.transcribe(samples)
        write_text(shown, f"spoken      {record.text}\nheard       {heard.text}\n")
        finish(shown, hash_of(shown))
    with open(shown, encoding="utf-8") as file:
        return f"\n\nSavedModel  {saved_model}\ntranscribed {audio}\n{file.read().rstrip()}"


def _train(start: Start, job: Job, strategy: tf.distribute.Strategy) -> None:
    plan, generation, seed = start.plan, job.generation, job.seed
    folder, prepared, chief = start.folder(job), start.prepared, is_chief(strategy)
    tokenizer = prepared.tokenizer()
    label_sets = plan.label_sets(generation)
    if chief:
        begin(folder, "model", *model_inputs(plan, job, start.work_dir))
        write_text(os.path.join(folder, configuration.FILE), start.config)
    pseudo_labelled = [_open_labels(start, s, seed, tokenizer.hash) for s in label_sets]
    development = prepared.records(plan.development)
    trained = train(
        _display(plan, generation, seed),
        functools.partial(generation.model, tokenizer.vocabulary_size),
        generation.objective,
        generation.training,
        [prepared.records(name) for name in generation.labelled],
        pseudo_labelled,
        folder=folder,
        seed=seed,
        strategy=strategy,
        evaluators=[_development_evaluator(tokenizer, development, plan.normaliser)],
        shown=Shown(list(development.read(0, _EXAMPLES)), tokenizer.pieces),
        profile=start.profile,
    )
    if not chief:
        return
    cost = {"steps": trained.steps, "seconds": round(trained.seconds, 1)}
    write_atomically(os.path.join(folder, "training.json"), dump_signed(cost))
    save_model(trained.model, tokenizer, folder)
    finish(folder, hash_of(folder))


def _read_run(folder, cost):
    return read_run(folder, steps=cost["steps"], minutes=cost["seconds"] / 60)


def _read_cost(folder):
    return read_signed(os.path.join(folder, "training.json"), Cost, remedy="restore it, or train again")


def _development_evaluator(tokenizer, records: RecordSet, normaliser: str):
    """A function from the model to its development WER and some hypotheses; traces its decoder once."""
    decoders = {}

    def evaluate(model):
        decode = decoders.setdefault(id(model), make_decoder(model))
        found = list(evaluate_records(model, tokenizer, records, decode=decode))
        scored = score_set(found, normaliser)
        wer = 100.0 * scored.errors.sum() / max(scored.words.sum(), 1)
        return Evaluation({BEST_BY: wer}, [_example(transcription, normaliser) for transcription in found[:_EXAMPLES]])

    return evaluate


def _example(heard, normaliser):
    texts = heard.reference, heard.hypothesis
    return Example(heard.id, count_errors(*texts, normaliser).wer, *mark_errors(*texts, normaliser))


def _open_labels(start, label_set, seed, tokenizer_hash):
    folder = os.path.join(generation_folder(start.work_dir, seed, label_set.teacher), "labels", label_set.name)
    return open_records(folder, tokenizer_hash=tokenizer_hash)


def _display(plan, generation, seed):
    return generation.name if len(plan.seeds) == 1 else f"{generation.name} (seed {seed})"


@contextlib.contextmanager
def _sole_user(folder: str) -> Iterator[None]:
    """Holds the lock of a generation or language model; a process killed a moment ago may take a little to let go."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, _LOCK), "w", encoding="utf-8") as file:
        for attempt in range(50):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 49:
                    raise UserError(
                        f"another process works in {folder}: wait for it, or stop it, and start again"
                    ) from None
                time.sleep(0.2)
        yield
