"""N-gram probabilities as the textbook has them: by counting anew, and by reading an ARPA file line by line."""

import math


def witten_bell(sentences, history, label, order, vocabulary_size):
    """P(label | history) from the sentences themselves; id 0 is both ends of a sentence."""
    if order == 0:
        return 1.0 / vocabulary_size
    history = tuple(history)[max(0, len(history) - order + 1) :]
    lower = witten_bell(sentences, history[1:], label, len(history), vocabulary_size)
    successors = []
    for sentence in sentences:
        padded = (0, *sentence, 0)
        for end in range(1, len(padded)):
            if len(history) <= end and padded[end - len(history) : end] == history:
                successors.append(padded[end])
    kinds = len(set(successors))
    if not successors:
        return lower
    return (successors.count(label) + kinds * lower) / (len(successors) + kinds)


def read_arpa(path):
    """{words: (log10 probability, log10 back-off)} of a file that is known to be sound."""
    table, order = {}, 0
    with open(path, encoding="utf-8") as file:
        for line in file:
            line = line.rstrip("\n")
            if line.endswith("-grams:"):
                order = int(line[1:-7])
            elif order and "\t" in line:
                prob, words, *backoff = line.split("\t")
                assert len(words.split(" ")) == order
                table[tuple(words.split(" "))] = float(prob), float(backoff[0]) if backoff else 0.0
    return table


def backed_off(table, history, word):
    """ln P(word | history): the longest n-gram that is listed, after the back-off weights of the histories above it."""
    order = max(map(len, table))
    history = tuple(history)[max(0, len(history) - order + 1) :]
    if (*history, word) in table:
        return table[(*history, word)][0] * math.log(10)
    weight = table.get(history, (0.0, 0.0))[1] * math.log(10)
    return weight + backed_off(table, history[1:], word)
