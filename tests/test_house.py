"""The house rules that no linter checks: every module says what it is, nothing is long, nothing knows the machine."""

import ast
import io
import pathlib
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "tf_rnnt_kd").rglob("*.py"))
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
# In pieces, so that this file passes its own test.
MACHINE_PATHS = ["/" + "work" + "/", "/" + "tmp/v", "/" + "root" + "/"]
WRITTEN = {".cfg", ".gin", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}


def documented_nodes(tree):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node) is not None]


def code_lines(source):
    """Numbers of the lines that hold code: not blank, no comment, no docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for t in tokens if t.type not in LAYOUT for n in range(t.start[0], t.end[0] + 1)}
    for node in documented_nodes(ast.parse(source)):
        lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def functions(source):
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def written_files():
    """What people wrote here: neither environments and caches, nor what runs leave behind."""
    for top in sorted(ROOT.iterdir()):
        if top.name in {"data", "runs", "build", "dist"} or (top.name.startswith(".") and top.name != ".ci"):
            continue
        files = sorted(top.rglob("*")) if top.is_dir() else [top]
        yield from (path for path in files if path.is_file() and path.suffix in WRITTEN)


def of_package(path):
    return str(path.relative_to(ROOT / "tf_rnnt_kd"))


def test_counting_lines_ignores_blanks_comments_and_docstrings():
    source = '"""Doc\n\nstring."""\n\n# Comment.\ndef f():\n    """Doc."""\n    x = """a\n\n    b"""  # two\n'
    assert code_lines(source) == {6, 8, 9, 10}


@pytest.mark.parametrize("path", PACKAGE, ids=of_package)
def test_module_has_docstring(path):
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), "say in one line what this module is"


@pytest.mark.parametrize("path", PACKAGE, ids=of_package)
def test_file_has_at_most_300_code_lines(path):
    assert len(code_lines(path.read_text())) <= 300


@pytest.mark.parametrize("path", PACKAGE, ids=of_package)
def test_functions_have_at_most_60_code_lines(path):
    source = path.read_text()
    lines = code_lines(source)
    counts = {f.name: len(lines.intersection(range(f.lineno, f.end_lineno + 1))) for f in functions(source)}
    assert {name: count for name, count in counts.items() if count > 60} == {}


def test_no_file_mentions_a_machine_path():
    texts = {str(path.relative_to(ROOT)): path.read_text(errors="replace") for path in written_files()}
    assert "setup.cfg" in texts and "tests/test_house.py" in texts
    assert {name: part for name, text in texts.items() for part in MACHINE_PATHS if part in text} == {}
