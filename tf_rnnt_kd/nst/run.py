"""A plan, carried out: prepare, and for each generation train, label for its students, evaluate, export; then report.

    WORK_DIR/records/                  tokenizer and one record set a corpus
    WORK_DIR/language/NAME/            language models
    WORK_DIR/seed-S/GENERATION/        checkpoints, tensorboard, the trained model, results.json, labels/, decodings/,
                                       savedmodel/; of a cascade also second_pass/results.json
    WORK_DIR/results.json, report.txt

Every stage leaves a file that says that it is finished, written last, and is skipped when it is there. The same command
goes on wherever it was stopped, and does nothing when nothing is left to do.
"""

import contextlib
import fcntl
import functools
import json
import os
import time
from collections.abc import Callable, Iterator

import soundfile
import tensorflow as tf

from tf_rnnt_kd.data.records import RecordSet, open_records
from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.decode import evaluate_checkpoint, evaluate_records, make_decoder
from tf_rnnt_kd.evaluation.report import System, format_differences, format_table, read_run, write_report
from tf_rnnt_kd.evaluation.results import score_set, write_json, write_text
from tf_rnnt_kd.evaluation.wer import count_errors, mark_errors
from tf_rnnt_kd.features.log_mel import SAMPLE_RATE
from tf_rnnt_kd.labelling.records import label_folder
from tf_rnnt_kd.models.saving import save_model
from tf_rnnt_kd.nst.jobs import Children, Job, list_jobs, run_jobs
from tf_rnnt_kd.nst.language import decode_tests, decoding_folder, make_language_model
from tf_rnnt_kd.nst.plan import Generation, LabelSet, Plan
from tf_rnnt_kd.nst.preparation import Prepared, prepare
from tf_rnnt_kd.serving.recognizer import Recognizer, in_chunks
from tf_rnnt_kd.serving.saved_model import export_checkpoint
from tf_rnnt_kd.training.loop import train
from tf_rnnt_kd.training.profiling import Steps
from tf_rnnt_kd.training.strategy import is_chief, of_chief
from tf_rnnt_kd.training.watching import BEST_BY, Evaluation, Example, Shown

_CHUNK = 10_240  # samples fed to a streaming export at once, 640 ms
_EXAMPLES = 6  # development utterances that TensorBoard shows


def run_plan(
    plan: Plan,
    work_dir: str,
    strategy: Callable[[], tf.distribute.Strategy],
    children: Children | None,
    *,
    profile: Steps | None = None,
    skip_bad: int = 0,
) -> str:
    """The whole plan; returns the report.

    Args:
      plan: what to do.
      work_dir: where; `configuration.begin` has bound it to the plan's configuration.
      strategy: makes the strategy when the first model is trained in this process.
      children: how to run generations side by side in processes of their own; None for one after the other in this one.
      profile: steps of each training here to trace; children are told by their command.
      skip_bad: of `prepare`.
    """
    _prepare(plan, work_dir, skip_bad)
    jobs = [job for job in list_jobs(plan) if not is_finished(plan, job, work_dir)]
    if children is not None:
        run_jobs(jobs, children.command, children.at_once)
    else:
        for job in jobs:
            run_job(plan, job, work_dir, strategy(), profile=profile)
    return report(plan, work_dir) + _demonstrate(plan, work_dir)


def run_together(
    plan: Plan,
    work_dir: str,
    begin: Callable[..., None],
    strategy: tf.distribute.Strategy,
    *,
    profile: Steps | None = None,
    skip_bad: int = 0,
) -> str | None:
    """The whole plan by several workers that share `work_dir`: all train, the chief does everything else.

    Args:
      plan: what to do.
      work_dir: on storage that all workers reach by this path.
      begin: `configuration.begin` for this folder and this worker's configuration, which has to be the chief's.
      strategy: over the workers.
      profile: steps of each training to trace, in the chief.
      skip_bad: of `prepare`.

    Returns:
      The report, in the chief.
    """
    chief = is_chief(strategy)
    if chief:
        begin()
        _prepare(plan, work_dir, skip_bad)
    of_chief(strategy, 0)
    if not chief:
        begin(must_be_equal=True)
    for job in list_jobs(plan):
        if not of_chief(strategy, is_finished(plan, job, work_dir)):
            run_job(plan, job, work_dir, strategy, profile=profile)
    text = report(plan, work_dir) + _demonstrate(plan, work_dir) if chief else None
    of_chief(strategy, 0)  # a worker that left early would look like one that had failed
    return text


def _prepare(plan: Plan, work_dir: str, skip_bad: int) -> None:
    prepare(plan, os.path.join(work_dir, "records"), skip_bad=skip_bad)
    for spec in plan.language_models:
        with _sole_user(os.path.join(work_dir, "language", spec.name)):
            make_language_model(plan, spec, work_dir)


def run_job(
    plan: Plan, job: Job, work_dir: str, strategy: tf.distribute.Strategy, *, profile: Steps | None = None
) -> None:
    """Everything about one generation; each finished part is skipped. Other workers than the chief train only."""
    generation, seed = job
    prepared = Prepared(os.path.join(work_dir, "records"))
    folder = generation_folder(work_dir, seed, generation.name)
    chief = is_chief(strategy)
    with _sole_user(folder) if chief else contextlib.nullcontext():
        if not of_chief(strategy, os.path.exists(os.path.join(folder, "model.json"))):
            _train(plan, generation, seed, work_dir, prepared, strategy, profile)
        if not chief:
            return
        for label_set in _wanted_from(plan, generation):
            _label(label_set, folder, prepared)
        for row in generation.rows:
            results = os.path.join(folder, row.folder, "results.json")
            if not os.path.exists(results):
                tests = [os.path.join(prepared.folder, name) for name in plan.tests]
                evaluate_checkpoint(folder, tests, results, second_pass=row.second_pass)
        for decoding in generation.decodings:
            decode_tests(plan, decoding, folder, work_dir)
        if generation.export and not os.path.exists(os.path.join(folder, "savedmodel")):
            export_checkpoint(folder, os.path.join(folder, "savedmodel"))


def is_finished(plan: Plan, job: Job, work_dir: str) -> bool:
    """Whether `run_job` has nothing left to do."""
    generation, seed = job
    folder = generation_folder(work_dir, seed, generation.name)
    needed = ["model.json", *(["savedmodel"] if generation.export else [])]
    needed += [os.path.join(row.folder, "results.json") for row in generation.rows]
    needed += [os.path.join("labels", s.name, "manifest.json") for s in _wanted_from(plan, generation)]
    needed += [os.path.join(decoding_folder(folder, d), "results.json") for d in generation.decodings]
    return all(os.path.exists(os.path.join(folder, name)) for name in needed)


def generation_folder(work_dir: str, seed: int, name: str) -> str:
    """Where a generation lives."""
    return os.path.join(work_dir, f"seed-{seed}", name)


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
    if not os.path.exists(shown):
        record = next(Prepared(os.path.join(work_dir, "records")).records(plan.tests[0]).read())
        soundfile.write(audio, record.samples, SAMPLE_RATE)
        recognizer, samples = Recognizer(saved_model), record.samples.astype("float32") / 32768.0
        if recognizer.streaming:
            *_, heard = recognizer.stream(in_chunks(samples, _CHUNK))
        else:
            heard = recognizer.transcribe(samples)
        write_text(shown, f"spoken      {record.text}\nheard       {heard.text}\n")
    with open(shown, encoding="utf-8") as file:
        return f"\n\nSavedModel  {saved_model}\ntranscribed {audio}\n{file.read().rstrip()}"


def _train(plan, generation, seed, work_dir, prepared, strategy, profile):
    folder = generation_folder(work_dir, seed, generation.name)
    tokenizer = prepared.tokenizer()
    pseudo_labelled = [_open_labels(plan, s, work_dir, seed, tokenizer.hash) for s in plan.label_sets(generation)]
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
        evaluators=[_development_evaluator(tokenizer, development)],
        shown=Shown(list(development.read(0, _EXAMPLES)), tokenizer.pieces),
        profile=profile,
    )
    if not is_chief(strategy):
        return
    cost = {"steps": trained.steps, "seconds": round(trained.seconds, 1)}
    write_json(os.path.join(folder, "training.json"), cost)
    save_model(trained.model, tokenizer, folder)


def _read_run(folder, cost):
    return read_run(folder, steps=cost["steps"], minutes=cost["seconds"] / 60)


def _read_cost(folder):
    with open(os.path.join(folder, "training.json"), encoding="utf-8") as file:
        return json.load(file)


def _development_evaluator(tokenizer, records: RecordSet):
    """A function from the model to its development WER and some hypotheses; traces its decoder once."""
    decoders = {}

    def evaluate(model):
        decode = decoders.setdefault(id(model), make_decoder(model))
        found = list(evaluate_records(model, tokenizer, records, decode=decode))
        scored = score_set(found)
        wer = 100.0 * scored.errors.sum() / max(scored.words.sum(), 1)
        return Evaluation({BEST_BY: wer}, [_example(transcription) for transcription in found[:_EXAMPLES]])

    return evaluate


def _example(transcription):
    name, reference, hypothesis, _ = transcription
    return Example(name, count_errors(reference, hypothesis).wer, *mark_errors(reference, hypothesis))


def _wanted_from(plan: Plan, teacher: Generation) -> list[LabelSet]:
    """What the students of a generation need from it, each set once."""
    students = [g for g in plan.generations if g.teacher == teacher.name]
    return list(dict.fromkeys(s for student in students for s in plan.label_sets(student)))


def _label(label_set: LabelSet, folder: str, prepared: Prepared) -> None:
    target = os.path.join(folder, "labels", label_set.name)
    if os.path.exists(os.path.join(target, "manifest.json")):
        return
    source = os.path.join(prepared.folder, label_set.corpus)
    stored = {"codec": label_set.codec, "dtype": label_set.dtype, "features": label_set.features}
    label_folder(folder, source, target, **stored)


def _open_labels(plan, label_set, work_dir, seed, tokenizer_hash):
    folder = os.path.join(generation_folder(work_dir, seed, label_set.teacher), "labels", label_set.name)
    return open_records(folder, tokenizer_hash=tokenizer_hash)


def _display(plan, generation, seed):
    return generation.name if len(plan.seeds) == 1 else f"{generation.name} (seed {seed})"


@contextlib.contextmanager
def _sole_user(folder: str) -> Iterator[None]:
    """Holds the lock of a generation or language model; a process killed a moment ago may take a little to let go."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "w", encoding="utf-8") as file:
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
