"""For any input file, `--plan` prints a plan or messages that name the file, in bounded time and without traceback."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import run
from harness.study.checks import MAX_CELLS
from harness.study.nodes.limits import MAX_DEPTH, MAX_INT, MAX_KEY, MAX_TEXT
from harness.study.nodes.yaml_reader import MAX_FILE_BYTES
from tests import hostile
from tests.small_study import PRESET, STUDY, write_study

STUDIES = Path(__file__).parent.parent / "studies"
NUM_MUTATED, CHUNKS = 2_000, 8
LIMIT_S = 60
"""Time limit per study in seconds: the slowest takes less than one on a free core; a machine may be busy."""
ONE_ARM = """\
question: q
extends: presets/small.yaml
arms: {mlp: {projector: mlp}, base: {projector: mlp}}
objectives: {giou: maximize}
baseline: base
"""


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Plans a study before any limit counts: the first plan imports torch, which a slow disk can draw out."""
    folder = tmp_path_factory.mktemp("imported")
    assert run.main([str(write_study(folder)), "--plan", "--out", str(folder / "none")]) == 0


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """Limits each test to `LIMIT_S`; a test that runs many studies resets the alarm for each."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def plan(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the output of `--plan`; problems are on stderr, each with its file."""
    folder = path.parent
    code = run.main([str(path), "--plan", "--out", str(folder / "none"), *arguments])
    printed = capsys.readouterr()
    assert code in {0, 2}
    if code == 2:
        assert printed.out == ""
        assert printed.err.strip()
        is_extended = any(hostile.OTHER_FILE.encode() in each.read_bytes() for each in folder.rglob("*.yaml"))
        named = (str(folder), "--set", *([hostile.OTHER_FILE] if is_extended else []))
        assert all(line.startswith(named) for line in printed.err.strip().splitlines())
    return code, printed.out + printed.err


def messages(folder: Path, capsys: pytest.CaptureFixture[str], text: str, *arguments: str) -> str:
    """The messages for a study that is refused."""
    path = write_study(folder)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    code, printed = plan(path, capsys, *arguments)
    assert code == 2, printed
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_mutated_study_is_planned_or_refused_with_the_file_named(chunk, tmp_path, capsys):
    chance = random.Random(chunk)
    studies = [hostile.plain(path.read_text()) for path in sorted(STUDIES.glob("*.yaml"))]
    presets = {path.stem: hostile.plain(path.read_text()) for path in sorted((STUDIES / "presets").glob("*.yaml"))}
    (tmp_path / "presets").mkdir()
    for _ in range(NUM_MUTATED // CHUNKS):
        signal.alarm(LIMIT_S)
        study = chance.choice(studies)
        name = Path(study["extends"]).stem
        of_preset = chance.random() < 0.3
        preset = hostile.mutated(presets[name], chance) if of_preset else presets[name]
        (tmp_path / "presets" / f"{name}.yaml").write_text(hostile.written(preset), encoding="utf-8")
        path = tmp_path / "study.yaml"
        text = hostile.written(study if of_preset else hostile.mutated(study, chance))
        path.write_text(text, encoding="utf-8")
        plan(path, capsys)


def alias_bomb(width: int = 9, depth: int = 9) -> str:
    """A few lines of YAML whose aliases expand to width ** depth values."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    return "\n".join([*lines, *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth))])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (STUDY + alias_bomb(), "too large for a study: more than 50,000 values, counting each alias"),
        (STUDY + "x: [" + "0, " * 3_000_000 + "0]", f"a study may have at most {MAX_FILE_BYTES:,}"),
        (ONE_ARM + f"seeds: {list(range(100_000))}", "more than 50,000 values"),
        (ONE_ARM + f"seeds: {list(range(MAX_CELLS))}", f"has {2 * MAX_CELLS:,} cells"),
        (STUDY.replace("[1, 3]", f"{[*range(2240)]}").replace("[1, 2]", f"{[*range(2240)]}"), "has 10,035,204 cells"),
        (STUDY.replace("  space:", "  sampler: tpe\n  trials: 1000000000\n  space:"), "has 2,000,000,004 cells"),
        ("a: " + "[" * 500 + "]" * 500, f"mappings and lists are nested more than {MAX_DEPTH} deep"),
        ("{a: " * 100_000, f"nested more than {MAX_DEPTH} deep"),
        ("- " * 400_000, f"nested more than {MAX_DEPTH} deep"),
        (STUDY + "".join(f"k{i}: 1\n" for i in range(10_000)), "has more problems; fix these first"),
        (STUDY.replace("Which one", "x" * (MAX_TEXT + 1)), f"at most {MAX_TEXT:,} are allowed"),
        (STUDY + "k" * (MAX_KEY + 1) + ": 1", f"at most {MAX_KEY} are allowed"),
        (STUDY + "a: &a [*a]", "an alias is inside the value that it repeats"),
        ("&a {question: *a}", "an alias is inside the value that it repeats"),
        (STUDY.replace("Which one is best?", "2020-01-01"), "small.yaml:1: question: found the date 2020-01-01; "),
        (STUDY.replace("Which one is best?", "2020-13-45"), "the date 2020-13-45; no setting is a date; quote it"),
        (STUDY.replace("[0, 1]", "[!!int abc]"), f"seeds.0: found abc; must be an integer of at most {MAX_INT:,}"),
        (STUDY.replace("[0, 1]", "[!!int '']"), "must be an integer"),
        (STUDY.replace("[0, 1]", f"[{'7' * 5000}]"), "(5,000 characters); must be an integer"),
        (STUDY.replace("count: 9", f"count: {2**63}"), "small.yaml:4: base.superpixels.count: found 922"),
        (STUDY.replace("tokens: 4", f"tokens: {2**63}"), "arms.pooling.projector.tokens: found 922"),
        (PRESET.replace("steps: 10", f"steps: {2**63}"), "training.steps: found 922"),
        (STUDY.replace("[0, 1]", "[!!bool maybe]"), "found 'maybe', which is not a valid bool"),
        (STUDY.replace("sspe: {}", "sspe: !!null x"), "arms.sspe: found 'x', which is not a valid null; re"),
        (STUDY.replace("[0, 1]", "!!set {0, 1}"), "the tag set is not supported"),
        (STUDY.replace("[0, 1]", "!!python/object:os.system {}"), "python/object:os.system is not supported"),
        (STUDY.replace("[0, 1]", "!!binary aGk="), "the tag binary is not supported"),
        (STUDY.replace("sspe: {}", "sspe: {<<: {seeds: 1}}"), "merge keys (<<) are not supported"),
        (STUDY.replace("sspe: {}", "1: {}"), "the key 1 is not a string; quote it"),
        (STUDY.replace("sspe: {}", "null: {}"), "the key null is not a string"),
        (STUDY.replace("sspe: {}", "2020-01-01: {}"), "the key 2020-01-01 is not a string"),
        (STUDY.replace("sspe: {}", "? [a]\n  : {}"), "a key is a mapping or a list"),
        (STUDY.replace("giou: maximize", "giou: []"), "objectives.giou: found a list"),
        (STUDY.replace("name: grid", "name: {a: 1}"), "base.superpixels.name: found a mapping; must be a name"),
        (STUDY.replace("Which one is best?", r'"\e[31m"'), "question: contains the control character U+001B"),
        (STUDY.replace("Which one is best?", r'"\0"'), "contains the control character U+0000"),
        (STUDY.replace("Which one is best?", r'"\ud800"'), "contains the control character U+D800"),
        (STUDY.replace("Which one is best?", r'"\UFFFFFFFF"'), "not valid YAML"),
        (STUDY + "\x00", "the character U+0000 is not allowed"),
        (STUDY + "---\n" + STUDY, "but found another document"),
        (STUDY.replace("presets/small.yaml", "x" * 300), "extends: there is no file"),
        (STUDY.replace("presets/small.yaml", "'~nobody/x'"), "extends: there is no file"),
        (STUDY.replace("presets/small.yaml", "."), "extends: there is no file"),
        (STUDY.replace("sspe: {}", f"{'a' * 101}: {{}}"), "at most 100 characters"),
        ("", "contains nothing"),
        ("&a [*a]", "an alias is inside"),
    ],
)  # fmt: skip
def test_a_hostile_text_is_refused_with_a_message_in_time(text, expected, tmp_path, capsys):
    assert expected in messages(tmp_path, capsys, text)


TEXTS = [
    *(STUDY.replace("Which one is best?", value) for value in hostile.NASTY),
    *(STUDY.replace("[0, 1]", value) for value in hostile.NASTY),
    *(STUDY.replace("sspe: {}", f"sspe: {value}") for value in hostile.NASTY),
    *(STUDY + f"\n{key}: 1\n" for key in hostile.KEYS),
    *("null", "abc", "[1]", "---", "...", "%YAML 9.9\n---\n{}", "%TAG ! tag:x,2000:\n---\n!a b", "!<> a", "a:\n\t- b"),
    *("? " * 300_000, ": " * 300_000, "'" * 900_001, "&a " * 300_000, "*a " * 300_000, "!!x " * 200_000, " " * 900_000),
    *("#\n" * 400_000, "a: |\n" + "  x\n" * 200_000, "a: '" + "x" * 900_000 + "'", "{a: [1, 2}", "a: 1\n- b", "\x7f"),
]


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_no_text_ends_in_a_traceback(number, tmp_path, capsys):
    path = write_study(tmp_path)
    path.write_text(TEXTS[number], encoding="utf-8")
    plan(path, capsys)


@pytest.mark.parametrize("text", [f"\ufeff{STUDY}", STUDY.replace("\n", "\r\n"), f"%YAML 1.2\n---\n{STUDY}...\n"])
def test_byte_order_marks_line_endings_and_directives_are_accepted(text, tmp_path, capsys):
    path = write_study(tmp_path)
    path.write_bytes(text.encode())
    assert plan(path, capsys)[0] == 0


@pytest.mark.parametrize(
    "more",
    [
        f"seeds: {list(range(10_000))}",
        "seeds: [0]\nsearch: {arms: [mlp], space: {training.steps: "
        f"{list(range(1, 101))}, training.batch_images: {list(range(1, 101))}}}}}",
    ],
    ids=["seeds", "grid"],
)  # fmt: skip
def test_ten_thousand_cells_are_planned(more, tmp_path, capsys):
    signal.alarm(120)  # seconds on a free core, but the machine may be busy
    path = write_study(tmp_path, ONE_ARM + more)
    code, printed = plan(path, capsys)
    assert code == 0
    assert "10,000" in printed
    assert printed.count("\n") < 250


def test_markup_in_a_study_is_printed_literally(tmp_path, capsys):
    question = "Does [/bold] or [seg] or :skull: vanish?"
    path = write_study(tmp_path, STUDY.replace("Which one is best?", f'"{question}"'))
    out = tmp_path / "[/red]"
    assert run.main([str(path), "--plan", "--out", str(out)]) == 0
    assert question in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "\0", "x" * 300, "~nobody/x", "file/inside", "file"])
def test_an_impossible_output_folder_is_refused(name, tmp_path, capsys):
    path = write_study(tmp_path)
    (tmp_path / "file").write_text("")
    code = run.main([str(path), "--plan", "--out", str(tmp_path / name)])
    printed = capsys.readouterr()
    is_fine = name in {"", "~nobody/x"}
    assert code == (0 if is_fine else 2)
    assert is_fine or ("choose another with --out" in printed.err and str(tmp_path) in printed.err)


@pytest.mark.parametrize(
    "override",
    ["", "=", "a=", "training.steps", ".=1", "a" * 100_000 + "=1", ".".join(["training"] * 3_000) + "=1",
     "training.steps=" + "[" * 500, "training.steps=" + "9" * 5_000, "training.steps=2020-01-01", "extends=\0",
     "extends=" + "x" * 5_000, "extends=~nobody/x", "training.steps=&a [*a]", "question=" + "y" * 100_000,
     "arms." + "a" * 5_000 + ".data=1", "seeds=" + str(list(range(60_000))), "training={a: {b: [}}"],
    ids=lambda override: override[:20],
)  # fmt: skip
def test_an_invalid_override_is_refused(override, tmp_path, capsys):
    code, printed = plan(write_study(tmp_path), capsys, "--set", override)
    assert code == 2
    assert max(map(len, printed.splitlines())) < 1_000


def test_a_path_that_is_not_a_text_file_is_refused(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "utf16").write_bytes(STUDY.encode("utf-16"))
    unreadable = {"\0": "the control character U+0000", "x" * 300: "cannot be loaded", ".": "it is a folder"}
    kinds = {"pipe": "not a regular file", "binary": "is not UTF-8", "utf16": "is not UTF-8"}
    for name, expected in {**unreadable, **kinds}.items():
        code, printed = plan(tmp_path / name, capsys)
        assert code == 2
        assert expected in printed
