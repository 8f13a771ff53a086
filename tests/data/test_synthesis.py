import collections
import concurrent.futures
import ctypes
import hashlib
import importlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from tf_rnnt_kd.data import synthesis
from tf_rnnt_kd.data.synthesis import DIGITS, VOICES, generate_digits, generate_sentences, unspoken_sentences
from tf_rnnt_kd.errors import UserError

pytest.importorskip("espeakng_loader", reason="needs the extra [synthesis]")

SENTENCES = [
    "Printing, in the only sense with which we are at present concerned,",
    "differs from most if not from all the arts and crafts",
    "being comparatively modern.",
    "For although the Chinese took impressions from wood blocks",
    "the wood-cutters of the Netherlands, by a similar process",
    "were the immediate predecessors of the true printed book",
    "and Mr. Gutenberg's Bible came in the middle of it",
    "the invention of movable metal letters",
    "may justly be considered as the invention of the art",
    "and it is worth mention in passing that",
]


def digits(split="train", count=12, voices=4, snr_db=(5.0, 30.0), seed=3, **changes):
    return generate_digits(split=split, num_utterances=count, num_voices=voices, snr_db=snr_db, seed=seed, **changes)


def sentences(path, split="train", count=6, voices=4, snr_db=(5.0, 30.0), seed=3, max_words=6):
    return generate_sentences(
        str(path), split=split, num_utterances=count, num_voices=voices, snr_db=snr_db, seed=seed, max_words=max_words
    )


def digest(utterance):
    return hashlib.sha256(utterance.load().tobytes()).hexdigest()


@pytest.fixture
def text_file(work_dir):
    path = work_dir / "sentences.txt"
    path.write_text("".join(f"LJ001-{i:04d}\t{line}\n" for i, line in enumerate(SENTENCES)))
    return path


# -- what is said, by whom --


def test_digit_strings_are_upper_case_words_of_the_wanted_length():
    lengths = collections.Counter()
    for utterance in digits(count=300):
        words = utterance.text.split()
        assert set(words) <= set(DIGITS) and utterance.text == " ".join(words)
        lengths[len(words)] += 1
    assert sorted(lengths) == [3, 4, 5, 6, 7]
    assert {len(u.text.split()) for u in digits(count=30, min_digits=2, max_digits=2)} == {2}


def test_ids_are_unique_and_sorted():
    ids = [utterance.id for utterance in digits(count=50)]
    assert ids == sorted(set(ids))
    assert ids[7] == "digits-train-3-000007"


def test_the_source_is_all_that_decides_the_samples():
    sources = [utterance.source for utterance in digits(count=9)]
    assert sources == [utterance.source for utterance in digits(count=9)] and len(set(sources)) == 9
    for changed in (digits(count=9, seed=4), digits(count=9, snr_db=(5.0, 29.0))):
        assert not set(sources) & {utterance.source for utterance in changed}


def test_splits_share_no_voices():
    assert {split: len(voices) for split, voices in VOICES.items()} == {"test": 6, "dev": 4, "train": 71}
    assert len({voice for voices in VOICES.values() for voice in voices}) == 81
    for split, voices in VOICES.items():
        assert {utterance.speaker for utterance in digits(split, 200, 4)} == set(voices[:4])


def test_splits_share_no_digit_strings():
    texts = {split: {u.text for u in digits(split, 400, 4, min_digits=3, max_digits=4)} for split in VOICES}
    assert all(len(found) > 50 for found in texts.values())
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["dev"] and not texts["dev"] & texts["test"]


def test_many_voices_include_the_few():
    few, many = ({u.speaker for u in digits(count=400, voices=n)} for n in (8, 40))
    assert len(few) == 8 and len(many) == 40 and few < many


def test_another_seed_gives_other_strings():
    assert [u.text for u in digits(seed=1)] != [u.text for u in digits(seed=2)]


def test_a_longer_list_begins_like_a_shorter_one():
    assert [(u.id, u.speaker, u.text) for u in digits(count=9)[:4]] == [
        (u.id, u.speaker, u.text) for u in digits(count=4)
    ]


def test_sentences_are_cut_and_normalised(text_file):
    found = {utterance.text for utterance in sentences(text_file, count=30)}
    assert "PRINTING IN THE ONLY SENSE WITH" in found
    assert "AND MISTER GUTENBERG'S BIBLE CAME IN" in found
    assert len(found) == 8  # each sentence of the training block


def test_splits_take_contiguous_blocks_of_sentences(text_file):
    texts = {split: {u.text for u in sentences(text_file, split, 30)} for split in VOICES}
    assert texts["dev"] == {"MAY JUSTLY BE CONSIDERED AS THE"}
    assert texts["test"] == {"AND IT IS WORTH MENTION IN"}
    assert not texts["train"] & (texts["dev"] | texts["test"])


def test_a_repeated_sentence_stays_in_one_split(work_dir):
    path = work_dir / "repeated.txt"
    path.write_text("\n".join(SENTENCES + SENTENCES))
    texts = [{u.text for u in sentences(path, split, 40)} for split in VOICES]
    assert sum(map(len, texts)) == len(set.union(*texts)) == len(SENTENCES)


def test_plain_lines_are_sentences_and_lines_with_digits_are_left_out(work_dir):
    path = work_dir / "plain.txt"
    path.write_text("\n".join(["born in 1809", "one two", "", "...", "three four"] * 2))
    assert {u.text for u in sentences(path, count=10)} == {"ONE TWO", "THREE FOUR"}


@pytest.mark.parametrize("count", [1, 5, 7])
def test_the_unspoken_sentences_are_the_others_of_the_split_and_whole(text_file, count):
    spoken = {utterance.text for utterance in sentences(text_file, count=count)}
    unspoken = unspoken_sentences(str(text_file), split="train", num_utterances=count, seed=3, max_words=6)
    cut = {" ".join(words.split()[:6]) for words in unspoken}
    assert not spoken & cut and spoken | cut == {u.text for u in sentences(text_file, count=30)}
    assert any(len(words.split()) > 6 for words in unspoken) or count == 7


def test_sentences_that_are_all_spoken_leave_none(text_file):
    with pytest.raises(UserError, match="all 8 sentences of 'train' in .* are spoken: give more, or speak fewer"):
        unspoken_sentences(str(text_file), split="train", num_utterances=8, seed=3, max_words=6)


def test_few_sentences_come_again_by_other_voices(text_file):
    found = sentences(text_file, count=16)
    assert collections.Counter(u.text for u in found).most_common(1)[0][1] == 2
    assert len({(u.text, u.load.args[0]) for u in found}) == 16


# -- the same samples, always --


def test_samples_do_not_depend_on_what_was_spoken_before():
    """espeak-ng carries state from utterance to utterance, and would give each order its own samples."""
    utterances = digits(count=24, voices=71) + digits("test", 6, 6) + digits("dev", 4, 4)
    expected = [digest(utterance) for utterance in utterances]
    for seed in range(2):
        for i in np.random.default_rng(seed).permutation(len(utterances)):
            assert digest(utterances[i]) == expected[i], utterances[i].speaker


@pytest.mark.slow
def test_every_voice_gives_the_same_samples_in_any_order_and_process(work_dir):
    code = (
        "import sys, numpy as np; from tests.data.test_synthesis import *\n"
        "rng = np.random.default_rng(int(sys.argv[1])); voices = sorted(v for vs in VOICES.values() for v in vs)\n"
        "found = {}\n"
        "for i in rng.permutation(len(voices)):\n"
        "    synthesis._speak('nine ' * rng.integers(1, 4), voices[rng.integers(81)], 200, 60)\n"
        "    junk = [bytes(rng.integers(256, size=rng.integers(1, 100000), dtype=np.uint8)) for _ in range(3)]\n"
        "    for text in 'zero one two three four', 'five six seven eight nine':\n"
        "        samples, _ = synthesis._speak(text, voices[i], 170, 45)\n"
        "        found[voices[i], text] = hashlib.sha256(samples.tobytes()).hexdigest()\n"
        "print(sorted(found.items()))\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code, seed], capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2", "3")
    ]
    pairs = [re.findall(r"\('([^']*)', '([^']*)'\), '([0-9a-f]{64})'", run) for run in runs]
    assert len(pairs[0]) == 2 * 81
    assert [a for a, b, c in zip(*pairs, strict=True) if not a == b == c] == []


def test_threads_do_not_disturb_each_other():
    utterances = digits(count=12, voices=12)
    expected = [digest(utterance) for utterance in utterances]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(digest, utterances)) == expected


def test_utterances_can_be_sent_to_other_processes():
    (utterance,) = digits(count=1)
    assert digest(pickle.loads(pickle.dumps(utterance))) == digest(utterance)


def test_sentences_are_reproducible(text_file):
    assert [digest(u) for u in sentences(text_file, count=3)] == [digest(u) for u in sentences(text_file, count=3)]


def test_the_library_is_gone_after_each_utterance():
    digits(count=1)[0].load()
    assert not synthesis._is_loaded(synthesis._espeak_files()[0])


def test_a_library_held_by_others_is_refused():
    path = synthesis._espeak_files()[0]
    held = ctypes.CDLL(path)
    try:
        with pytest.raises(UserError, match="other code in this process holds espeak-ng, so speech would vary: use a"):
            digits(count=1)[0].load()
    finally:
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(held._handle))
    digits(count=1)[0].load()


# -- how it sounds --


def test_samples_are_mono_int16_of_a_plausible_length():
    for utterance in digits(count=6):
        samples = utterance.load()
        assert samples.dtype == np.int16 and samples.ndim == 1
        num_words = len(utterance.text.split())
        assert 0.15 * num_words < len(samples) / 16000 < 0.8 * num_words + 1.0


def test_levels_vary_and_never_clip():
    peaks = np.array([np.abs(u.load().astype(np.int32)).max() for u in digits(count=30, voices=10)])
    assert peaks.max() < 32767 * 10 ** (-1 / 20) + 1
    assert peaks.min() >= 32767 * 10 ** (-20 / 20) - 1
    assert peaks.max() > 2 * peaks.min()


@pytest.mark.parametrize("noise", ["white", "pink", "babble"])
@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_noise_has_the_wanted_level(noise, snr_db, monkeypatch):
    rng = np.random.default_rng(0)
    speech = (rng.uniform(-1, 1, 22050 * 2) * 8000).astype(np.int16)
    monkeypatch.setattr(synthesis, "_speak", lambda *_: (speech, 22050))
    script = synthesis._Script("ONE", "m1", 170, 50, snr_db, noise, -3.0, (1.0, 1.0), (5,))
    samples = synthesis._perform(script).astype(np.float64)
    assert len(samples) == 4 * 16000
    noise_power = np.mean(np.square(np.concatenate([samples[:15000], samples[-15000:]])))
    both_power = np.mean(np.square(samples[17000:47000]))
    tolerance = 2.0 if noise == "babble" else 0.5  # babble is louder at one time than at another
    np.testing.assert_allclose(10 * np.log10(both_power / noise_power - 1), snr_db, atol=tolerance)


def test_noises_have_their_colours():
    rng = np.random.default_rng(0)
    balance = {}
    for name, make in synthesis._NOISE_MAKERS.items():
        power = np.abs(np.fft.rfft(make(rng, 40000))) ** 2
        hertz = np.fft.rfftfreq(40000, 1 / 16000)
        balance[name] = power[(hertz > 100) & (hertz < 1000)].sum() / power[hertz > 1000].sum()
    assert balance["white"] < 0.2 < balance["pink"] < 2 < balance["babble"]


def test_rate_and_pitch_are_heard():
    slow, _ = synthesis._speak("one two three", "m1", 130, 50)
    fast, _ = synthesis._speak("one two three", "m1", 210, 50)
    high, _ = synthesis._speak("one two three", "m1", 130, 70)
    assert len(fast) < 0.85 * len(slow)
    assert not np.array_equal(high, slow)


# -- what is refused --


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "validation"}, "split is 'validation': none of test, dev, train"),
        ({"split": "test", "voices": 7}, "split 'test' has 6 voices, not 7: ask for 1 to 6"),
        ({"voices": 0}, "num_voices is 0: should be greater than or equal to 1"),
    ],
)
def test_impossible_wishes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        digits(**changes)


def test_a_split_without_strings_is_refused(monkeypatch):
    monkeypatch.setattr(synthesis, "_split_of", lambda string: "train")
    with pytest.raises(UserError, match="split 'dev' has no strings of 1 to 2 digits: allow longer ones"):
        digits("dev", min_digits=1, max_digits=2)


def test_without_espeak_the_extra_is_named(monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name == "espeakng_loader":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    synthesis._espeak_loader.cache_clear()
    try:
        with pytest.raises(UserError, match=re.escape("needs espeak-ng: pip install tf_rnnt_kd[synthesis]")):
            digits()
    finally:
        synthesis._espeak_loader.cache_clear()


def test_an_unknown_voice_is_named():
    with pytest.raises(UserError, match="this espeak-ng has no voice 'nobody': install espeakng-loader as in"):
        synthesis._speak("one", "nobody", 170, 50)


def test_missing_data_is_named(monkeypatch, work_dir):
    path, _ = synthesis._espeak_files()
    (work_dir / "voices" / "!v").mkdir(parents=True)
    for voice in VOICES["train"]:
        (work_dir / "voices" / "!v" / voice).touch()
    monkeypatch.setattr(synthesis, "_espeak_files", lambda: (path, str(work_dir)))
    with pytest.raises(UserError, match=f"espeak-ng cannot read its data in {work_dir}: install espeakng-loader again"):
        digits(count=1)[0].load()


def test_silence_from_espeak_is_an_error():
    with pytest.raises(RuntimeError, match="espeak-ng did not say '' by 'm1': status 0"):
        synthesis._speak("", "m1", 170, 50)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_an_unreadable_file_is_named(work_dir, content):
    path = work_dir / "text"
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read sentences from {path}: .*; give a UTF-8 text file"):
        sentences(path)


def test_a_file_too_short_for_the_split_is_named(work_dir):
    path = work_dir / "short.txt"
    path.write_text("one line\nin 1900\n")
    with pytest.raises(UserError, match=f"{path} has 1 sentences without digits, none for 'test': give more of them"):
        sentences(path, "test")
