"""The language models of a plan, and the decodings that use them.

WORK_DIR/language/NAME/                            of a network what training.checkpoints and models.saving write,
                                                   of n-grams ngrams.arpa
WORK_DIR/seed-S/GENERATION/decodings/NAME/         trials.json on development, results.json of the tests
"""

import functools
import os
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.evaluation.decode import evaluate_checkpoint
from tf_rnnt_kd.evaluation.results import RESULTS
from tf_rnnt_kd.evaluation.tuning import tune_weights
from tf_rnnt_kd.files import sha256_of_file
from tf_rnnt_kd.lineage import begin, find_changes, fingerprint, finish, read_lineage
from tf_rnnt_kd.models.saving import find_hash, save_model
from tf_rnnt_kd.nst.plan import Decoding, LanguageModelSpec, Plan
from tf_rnnt_kd.nst.preparation import Prepared, transcripts
from tf_rnnt_kd.progress import say
from tf_rnnt_kd.text.arpa import write_arpa
from tf_rnnt_kd.text.ngrams import estimate_ngrams, log_prob
from tf_rnnt_kd.text.tokenizer import Tokenizer
from tf_rnnt_kd.training.language_model import train_language_model


def language_model_path(plan: Plan, name: str, work_dir: str) -> str:
    """Where a decoding's language model is: one of the plan's, or what the decoding itself names."""
    spec = next((spec for spec in plan.language_models if spec.name == name), None)
    if spec is None:
        return name
    folder = os.path.join(work_dir, "language", name)
    return os.path.join(folder, "ngrams.arpa") if spec.order else folder


def make_language_model(
    plan: Plan, spec: LanguageModelSpec, work_dir: str, *, remake: bool = False, look: bool = True
) -> None:
    """Trains or estimates a language model, if it is not finished.

    Args:
      plan: that has it.
      spec: what it is.
      work_dir: of the run.
      remake: make it again where it was made from other text or another tokenizer.
      look: read its text and compare; else a finished one is taken as it is.

    Raises:
      UserError: what is there was made from other text or another tokenizer.
    """
    path, folder = language_model_path(plan, spec.name, work_dir), _folder(spec, work_dir)
    is_finished = os.path.exists(path if spec.order else os.path.join(path, "model.json"))
    if is_finished and not look:
        return
    tokenizer, text = Prepared(os.path.join(work_dir, "records")).tokenizer(), _text(plan, spec)
    inputs, found = _inputs(plan, spec, tokenizer, text), read_lineage(folder)
    if remake and found and find_changes(found.inputs, inputs):
        shutil.rmtree(folder)
        is_finished = False
    begin(folder, "language model", inputs, {"tokenizer": tokenizer.folder})
    if is_finished:
        return
    sentences = _encode(tokenizer, text, spec.name)
    development = _encode(tokenizer, transcripts(plan.corpus(plan.development)), plan.development)
    if spec.order:
        _estimate(spec, sentences, development, tokenizer, path)
        finish(folder, sha256_of_file(path))
        return
    factory = functools.partial(spec.model, tokenizer.vocabulary_size)
    at = {"folder": folder, "seed": plan.seeds[0]}
    model = train_language_model(spec.name, factory, spec.training, sentences, development, **at)
    save_model(model, tokenizer, folder)
    finish(folder, find_hash(folder))


def compare_language_models(plan: Plan, work_dir: str) -> dict[str, list[str]]:
    """What of the language models was made from other text or another tokenizer: folder -> what changed."""
    changes = {}
    for spec in plan.language_models:
        folder = _folder(spec, work_dir)
        found = read_lineage(folder)
        if found is not None:
            tokenizer = Prepared(os.path.join(work_dir, "records")).tokenizer()
            changes[folder] = find_changes(found.inputs, _inputs(plan, spec, tokenizer, _text(plan, spec)))
    return {folder: found for folder, found in changes.items() if found}


def _folder(spec: LanguageModelSpec, work_dir: str) -> str:
    return os.path.join(work_dir, "language", spec.name)


def _text(plan: Plan, spec: LanguageModelSpec) -> list[str]:
    text = [line for name in spec.corpora for line in transcripts(plan.corpus(name))]
    return [*text, *(spec.sentences() if spec.sentences else [])]


def _inputs(plan: Plan, spec: LanguageModelSpec, tokenizer: Tokenizer, text: Sequence[str]) -> dict[str, Any]:
    return {"tokenizer": tokenizer.hash, "text": fingerprint(text), "order": spec.order, "seed": plan.seeds[0]}


def _encode(tokenizer: Tokenizer, lines: Sequence[str], name: str) -> list[np.ndarray]:
    if not lines:
        raise UserError(f"language model {name!r} has no sentence to learn: check its text")
    return [np.array(tokenizer.encode(line), np.int32) for line in lines]


def _estimate(spec, sentences, development, tokenizer, path):
    ngrams = estimate_ngrams(sentences, spec.order, tokenizer.vocabulary_size)
    count = sum(len(sentence) + 1 for sentence in development)
    found = np.exp(-sum(log_prob(ngrams, sentence) for sentence in development) / count)
    sizes = ", ".join(f"{len(table)}" for table in ngrams)
    say(f"  {spec.name}: {len(sentences)} sentences, {sizes} n-grams, perplexity {found:.3f} a label")
    write_arpa(path, ngrams, tokenizer.pieces)


def decoding_folder(folder: str, decoding: Decoding) -> str:
    """Where the results of a decoding lie, below the folder of its generation."""
    return os.path.join(folder, "decodings", decoding.name)


def decode_tests(plan: Plan, decoding: Decoding, folder: str, work_dir: str) -> None:
    """Chooses the weights on the development set, then decodes the tests, if that is not finished."""
    target = decoding_folder(folder, decoding)
    results = os.path.join(target, RESULTS)
    if os.path.exists(results):
        return
    os.makedirs(target, exist_ok=True)
    records = functools.partial(os.path.join, work_dir, "records")
    name = decoding.language_model
    search = {"beam": decoding.beam, "language_model": name and language_model_path(plan, name, work_dir)}
    search["normaliser"] = plan.normaliser
    trials = os.path.join(target, "trials.json")
    weights = tune_weights(folder, records(plan.development), decoding.candidates, trials=trials, **search)
    evaluate_checkpoint(folder, [records(name) for name in plan.tests], results, weights=weights, **search)
