"""A plan in words and numbers, before anything is trained."""

import math
from collections.abc import Callable

import keras

from tf_rnnt_kd.errors import UserError
from tf_rnnt_kd.losses.joint_tiles import tile_nodes
from tf_rnnt_kd.models.transducer import Transducer
from tf_rnnt_kd.nst.plan import Corpus, Decoding, Generation, LabelSet, LanguageModelSpec, Plan
from tf_rnnt_kd.nst.preparation import Prepared
from tf_rnnt_kd.training.memory import StepShape, step_bytes

_CHARACTERS = 29  # vocabulary assumed where only the corpus can tell: A-Z, apostrophe, space, blank
_LABELS_PER_SECOND = 4.0  # word pieces of read speech, for the size of stored targets
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_SOUND_BYTES = {None: 32_000, "uint8": 8_000, "uint16": 16_000}  # a second of audio, or of features in its place


def describe(plan: Plan, prepared: Prepared) -> str:
    """Builds every model of the plan, without its weights; returns sizes, steps and storage as text.

    What is not prepared is not looked for either: its sizes are those that the plan says.
    """
    known, vocabulary_size = prepared.has("tokenizer"), vocabulary_of(plan, prepared)
    lines = [f"plan {plan.name}: {len(plan.generations)} generations, {len(plan.seeds)} seed(s)", "", "corpora"]
    lines += [f"  {corpus.name}: {_describe_corpus(plan, corpus, prepared)}" for corpus in plan.corpora]
    guessed = "" if known or plan.tokenizer.vocabulary_size else "about "
    lines.append(f"tokenizer: {plan.tokenizer.kind}, {guessed}{vocabulary_size} tokens with blank")
    lines += [_describe_language_model(spec, vocabulary_size) for spec in plan.language_models]
    for generation in plan.generations:
        model = build_student(generation, vocabulary_size)
        lines += ["", generation.name, *(f"  {line}" for line in _describe(plan, generation, model))]
    return "\n".join(lines)


def vocabulary_of(plan: Plan, prepared: Prepared | None = None) -> int:
    """V, blank included: that of the tokenizer if it is there, else as far as the plan alone says it."""
    if prepared is not None and prepared.has("tokenizer"):
        return prepared.tokenizer().vocabulary_size
    return plan.tokenizer.vocabulary_size or _CHARACTERS


def build_student(generation: Generation, vocabulary_size: int) -> Transducer:
    """A generation's model as `build_network` builds it.

    Raises:
      UserError: it can't be built.
    """
    keras.config.set_dtype_policy(generation.training.precision)
    return build_network(generation.model, vocabulary_size)


def build_network(factory: Callable[[int], keras.Model], vocabulary_size: int) -> keras.Model:
    """A model to look at: its layers and shapes are there, its weights are not, so that the largest takes a second.

    Raises:
      UserError: it can't be built.
    """
    policy = keras.config.dtype_policy()
    try:
        with keras.StatelessScope():
            keras.config.set_dtype_policy(policy)
            try:
                return factory(vocabulary_size)
            finally:
                keras.backend.clear_session()  # or leaving the scope would make the weights
    except UserError:
        raise
    except Exception as error:  # layers raise whatever comes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"its model can't be built: {reason}") from error
    finally:
        keras.config.set_dtype_policy(policy)


def _describe_corpus(plan: Plan, corpus: Corpus, prepared: Prepared) -> str:
    kind = "transcribed" if corpus.labelled else "audio only"
    if prepared.has(corpus.name):
        records = prepared.records(corpus.name)
        return f"{kind}, {records.num_utterances} utterances, {records.seconds / 3600:.2f} h, prepared"
    if corpus.hours is None:
        return f"{kind}, size known when prepared"
    return f"{kind}, {corpus.hours:g} h, {_sound(corpus.hours, plan.stored_features(corpus))}"


def _describe_language_model(spec: LanguageModelSpec, vocabulary_size: int) -> str:
    if spec.order:
        return f"language model {spec.name}: {spec.order}-grams"
    model, training = build_network(spec.model, vocabulary_size), spec.training
    return (
        f"language model {spec.name}: {model.count_params() / 1e6:.1f} M parameters, {training.steps} steps of at most "
        f"{training.batch_labels} labels"
    )


def _describe(plan: Plan, generation: Generation, model: Transducer) -> list[str]:
    training, objective = generation.training, generation.objective
    network = f"{model.count_params() / 1e6:.1f} M parameters, {_context(model.encoder)}{_cascade(model)}"
    yields = [
        f"{network}, {training.precision}",
        f"{training.steps} steps of about {training.buckets.batch_seconds:g} s of audio: "
        f"{training.steps * training.buckets.batch_seconds / 3600:.1f} h in all",
        _shapes(training.buckets),
        _memory(model, generation),
        f"loss: {objective.summary}",
        f"labelled: {', '.join(generation.labelled)}",
    ]
    if generation.teacher:
        share = 100 * training.labelled_fraction
        yields.append(
            f"pseudo-labelled by {generation.teacher}: {', '.join(generation.unlabelled)}; {share:g} % labelled"
        )
        yields += [_storage(plan, s, model) for s in plan.label_sets(generation)]
    yields += [_decoding(decoding) for decoding in generation.decodings]
    return yields


def _context(encoder) -> str:
    ahead = max((encoder.chunk, *encoder.training_chunks)) - 1
    return f"causal, {encoder.left_context} frames back, up to {ahead} ahead" if encoder.causal else "full context"


def _cascade(model: Transducer) -> str:
    if model.second_pass is None:
        return ""
    return f", then {model.second_pass_blocks} blocks ({model.second_pass.count_params() / 1e6:.1f} M) of full context"


def _decoding(decoding: Decoding) -> str:
    words = zip(("weight", "internal weight", "length bonus"), decoding.candidates, strict=True)
    chosen = [f"{name} of {', '.join(f'{v:g}' for v in values)}" for name, values in words if any(values)]
    return f"also decoded as {decoding.name}: " + "; ".join([f"beam {decoding.beam}", *chosen])


def _shapes(buckets) -> str:
    shapes = [f"{buckets.batch_size(k)} x {buckets.seconds[k]:g} s" for k in range(len(buckets.seconds))]
    return f"batches: {', '.join(shapes)}"


def _memory(model: Transducer, generation: Generation) -> str:
    buckets = generation.training.buckets

    def shape(bucket: int) -> StepShape:
        labels = math.ceil(_LABELS_PER_SECOND * buckets.seconds[bucket])
        return StepShape(
            buckets.batch_size(bucket) // generation.training.accumulation, buckets.num_frames(bucket), labels
        )

    sizes = [step_bytes(model, generation.objective, shape(k)) for k in range(len(buckets.seconds))]
    largest = sizes.index(max(sizes))
    tile = tile_nodes(*shape(largest), model.joint_width, model.vocabulary_size)
    where = f"{shape(largest).batch} x {buckets.seconds[largest]:g} s"
    return f"memory: about {_amount(sizes[largest])} for a step of {where} on one replica, tiles of {tile} nodes"


def _storage(plan: Plan, labels: LabelSet, model: Transducer) -> str:
    """Bytes of a label set: its audio or features and the targets, per hour and, where hours are known, in all."""
    tokens = _LABELS_PER_SECOND * 3600
    size = _BYTES[labels.dtype]
    per_hour = {
        None: 0.0,
        "factored": (25 * 3600 + tokens) * model.joint_width * size,
        # A lattice grows with the square of the length: here for utterances of 12 s.
        "lattice": 25 * 3600 * (_LABELS_PER_SECOND * 12 + 1) * model.vocabulary_size * size,
    }[labels.codec] + 3600 * _SOUND_BYTES[labels.features]
    hours = plan.corpus(labels.corpus).hours
    total = f", {_amount(hours * per_hour)} in all" if hours else ""
    return f"  {labels.name} ({labels.codec or 'transcripts'}, {labels.dtype}): {_amount(per_hour)} an hour{total}"


def _sound(hours, features):
    return f"{_amount(hours * 3600 * _SOUND_BYTES[features])} of records"


def _amount(size: float) -> str:
    """`2.5e9 -> 2.5 GB`."""
    power = min(4, max(0, int(math.log10(max(size, 1)) // 3)))
    return f"{size / 1000**power:.3g} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"
