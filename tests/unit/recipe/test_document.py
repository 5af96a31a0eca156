"""Reading a recipe: whatever is wrong with it is one line that names file, line, key and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.errors import RecipeError
from compress.recipe import Recipe, load
from compress.recipe.data import Table
from compress.recipe.serving import RefreshSection
from compress.recipe.training import DistillSection, FinetuneSection

Accept = Callable[..., Recipe]
Reject = Callable[..., str]

KINDS = "adopt, build, distill, export, features, finetune, profile, prune, quantize, refresh, retrieve, tokenize"
LOSSES = "attention, bce, gbce, hidden, kl, lambda_loss, margin_mse, mse, ranknet, relations, relaxed_ranking"
LOSSES += ", sampled_softmax, softmax"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name:", "nmae:", "1: nmae: unknown key; did you mean name? (and 1 more)"),
        ("stages:", "stges:", "4: stges: unknown key; did you mean stages? (and 1 more)"),
        ("seed: 0", "sead: 0", "2: sead: unknown key; did you mean seed?"),
        ("source:", "sorce:", "3: data.sorce: unknown key; did you mean source?"),
        ("path:", "pth:", "3: data.pth: unknown key; did you mean path? (and 1 more)"),
        ("user:", "usr:", "3: data.columns.usr: unknown key; did you mean user?"),
        ("kind: finetune", "knid: finetune", "6: stages.teacher.knid: unknown key; did you mean kind?"),
        ("hidden_size", "hiden_size", "7: stages.teacher.model.hiden_size: unknown key; did you mean hidden_size?"),
        (
            "patience",
            "patiense",
            "8: stages.teacher.early_stopping.patiense: unknown key; did you mean patience? (and 1 more)",
        ),
        ("negatives", "negative", "9: stages.teacher.loss.negative: unknown key; did you mean negatives?"),
        ("    teacher:", "    techer:", "12: stages.student.techer: unknown key; did you mean teacher? (and 1 more)"),
        ("temperature", "temprature", "15: stages.student.losses.0.temprature: unknown key; did you mean temperature?"),
        (
            "layers: {1",
            "layer: {1",
            "16: stages.student.losses.1.layer: unknown key; did you mean layers? (and 1 more)",
        ),
        ("epochs", "epoch", "17: stages.control.epoch: unknown key; did you mean epochs?"),
        ("input:", "inptu:", "18: stages.int8.inptu: unknown key; did you mean input? (and 1 more)"),
        ("inputs:", "inputs_:", "19: stages.served.inputs_: unknown key; did you mean inputs? (and 1 more)"),
        ("export:", "exprt:", "20: measure.exprt: unknown key; did you mean export? (and 1 more)"),
        ("quality", "qualty", "22: gate.qualty: unknown key; did you mean quality?"),
        (
            "min_speedup",
            "minspeedup",
            "23: gate.latency.minspeedup: unknown key; did you mean min_speedup? (and 1 more)",
        ),
    ],
)
def test_an_unknown_key_names_line_and_nearest_key(reject_change: Reject, old: str, new: str, said: str) -> None:
    assert reject_change(old, new) == f"recipe.yaml:{said}"


def test_an_unknown_key_unlike_any_other_lists_the_known_ones(reject: Reject, base: str) -> None:
    said = reject(base + "zzz: 1\n")
    assert said == "recipe.yaml:24: zzz: unknown key; known keys: candidates, data, gate, measure, name, seed, stages"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: small\n", "", "1: name: the key is missing"),
        (
            "source: csv, ",
            "",
            "3: data: source is missing; one of csv, ml-100k, ml-latest-small, online-retail-ii, parquet, synthetic",
        ),
        (", path: ratings.csv", "", "3: data.path: the key is missing"),
        ("    kind: finetune\n", "", f"5: stages.teacher: kind is missing; one of {KINDS}"),
        (
            "family: bert4rec, ",
            "",
            "7: stages.teacher.model: family is missing; one of bert4rec, cross_encoder, hybrid, two_tower",
        ),
        ("patience: 3", "", "8: stages.teacher.early_stopping.patience: the key is missing"),
        ("    teacher: teacher\n", "", "10: stages.student.teacher: the key is missing"),
        ("kind: kl, ", "", f"15: stages.student.losses.0: kind is missing; one of {LOSSES}"),
        (", layers: {1: 2}", "", "16: stages.student.losses.1.layers: the key is missing"),
        ("min_low: 0.9", "", "22: gate.quality.min_low: the key is missing"),
    ],
)
def test_a_missing_key_names_where_it_belongs(reject_change: Reject, old: str, new: str, said: str) -> None:
    assert reject_change(old, new) == f"recipe.yaml:{said}"


@pytest.mark.parametrize(
    ("old", "new", "where", "came"),
    [
        ("name: small", "name: a/b", "1: name", "'a/b'"),
        ("name: small", "name: [a]", "1: name", "['a']"),
        ("seed: 0", "seed: x", "2: seed", "'x'"),
        ("{source: csv, path: ratings.csv, columns: {user: who}}", "5", "3: data", "5"),
        ("path: ratings.csv", "path: 5", "3: data.path", "5"),
        ("path: ratings.csv", "path: a.csv, separator: ab", "3: data.separator", "'ab'"),
        ("path: ratings.csv", "path: a.csv, separator: é", "3: data.separator", "'é'"),
        ("path: ratings.csv", "path: a.csv, min_interactions: 0", "3: data.min_interactions", "0"),
        ("  teacher:", "  ../teacher:", "5: stages.../teacher", "'../teacher'"),
        ("hidden_size: 8", "hidden_size: wide", "7: stages.teacher.model.hidden_size", "'wide'"),
        ("hidden_size: 8", "dropout: 1.5", "7: stages.teacher.model.dropout", "1.5"),
        ("epochs: 3", "adam_betas: [0.9, 1.0]", "17: stages.control.adam_betas.1", "1.0"),
        ("patience: 3", "patience: 0", "8: stages.teacher.early_stopping.patience", "0"),
        ("temperature: 2", "temperature: -2", "15: stages.student.losses.0.temperature", "-2"),
        ("temperature: 2", "weight: .nan", "15: stages.student.losses.0.weight", "nan"),
        ("{1: 2}", "{one: 2}", "16: stages.student.losses.1.layers.one", "'one'"),
        ("{1: 2}", "{1: two}", "16: stages.student.losses.1.layers.1", "'two'"),
        ("{1: 2}", "{}", "16: stages.student.losses.1.layers", "{}"),
        ("epochs: 3", "epochs: 0", "17: stages.control.epochs", "0"),
        ("epochs: 3", "epochs: 2.5", "17: stages.control.epochs", "2.5"),
        ("epochs: 3", "learning_rate: .inf", "17: stages.control.learning_rate", "inf"),
        ("[student, int8]", "[]", "20: measure.candidates", "[]"),
        ("[student, int8]", "[int8, int8]", "20: measure.candidates", "['int8', 'int8']"),
        ("min_low: 0.9", "min_low: 90", "22: gate.quality.min_low", "90"),
        ("min_speedup: {1", "min_speedup: {a", "23: gate.latency.min_speedup.a", "'a'"),
    ],
)
def test_a_wrong_value_says_where_and_what_came(
    reject_change: Reject, old: str, new: str, where: str, came: str
) -> None:
    said = reject_change(old, new)
    assert said.startswith(f"recipe.yaml:{where}: ")
    assert re.search(rf"; got {re.escape(came)}( \(and 1 more\))?$", said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: small", "name: my model", "1: name: letters, digits, _ . and -, a letter or digit first, at most 64;"),
        ("  teacher:", "  my teacher:", "5: stages.my teacher: letters, digits, _ . and -, a letter or digit first,"),
        ("{source: csv, path: ratings.csv, columns: {user: who}}", "csv", "3: data: write it as {source: csv}; got"),
        ("columns: {user: who}", "columns: who", "3: data.columns: a mapping of user, item, timestamp, rating, "),
        ("hidden_size: 8", "hidden_size: wide", "7: stages.teacher.model.hidden_size: a whole number; got 'wide'"),
        ("temperature: 2", "temperature: warm", "15: stages.student.losses.0.temperature: a number; got 'warm'"),
        ("{1: 2}", "[1, 2]", "16: stages.student.losses.1.layers: a mapping, student layer: teacher layer; got [1, 2]"),
        ("{1: 2}", "{}", "16: stages.student.losses.1.layers: at least one; got {}"),
        ("epochs: 3", "epochs: 2.5", "17: stages.control.epochs: a whole number; got 2.5"),
        ("[student, int8]", "student", "20: measure.candidates: a list; got 'student'"),
        ("bert4rec", "bert5rec", "'hybrid'; did you mean bert4rec?"),
        ("kind: kl", "kind: klx", "'relations'; did you mean kl?"),
        ("teacher: teacher\n", "teacher: [teacher, teacher]\n", "stages.student.teacher: each once; got ['teacher', "),
        (
            "{min_speedup: {1: 2}}",
            "{min_speedup: 10}",
            "23: gate.latency.min_speedup: a mapping, batch size: ratio, e.g. {1",
        ),
    ],
)
def test_a_wrong_value_says_what_belongs_there(reject_change: Reject, old: str, new: str, said: str) -> None:
    assert said in reject_change(old, new)


def test_a_wrong_value_is_cut_to_what_a_line_can_hold(reject_change: Reject) -> None:
    said = reject_change("epochs: 3", f"epochs: {'very ' * 1000}long")
    assert said.endswith("...")
    assert len(said) < 250


@pytest.mark.parametrize(
    ("old", "new", "where", "allowed"),
    [
        ("source: csv", "source: xls", "3: data: source: 'xls'", ["ml-100k", "csv", "parquet", "synthetic"]),
        ("kind: finetune", "kind: tune", "6: stages.teacher", ["'tune'", "finetune", "distill", "quantize", "export"]),
        ("kind: kl", "kind: mae", "15: stages.student.losses.0", ["'mae'", "softmax", "gbce", "kl", "mse", "hidden"]),
        ("kind: gbce", "kind: kl", "9: stages.teacher.loss", ["'kl'", "softmax", "sampled_softmax", "gbce"]),
        ("bert4rec", "bert5rec", "7: stages.teacher.model: family", ["'bert5rec'", "'bert4rec'", "'cross_encoder'"]),
        ("min_low: 0.9", "min_low: 0.9, metric: hr@3", "22: gate.quality.metric", ["ndcg@10", "recall@10", "mrr@10"]),
    ],
)
def test_a_bad_choice_lists_the_allowed_ones(
    reject_change: Reject, old: str, new: str, where: str, allowed: list[str]
) -> None:
    said = reject_change(old, new)
    line, _, rest = where.partition(":")
    assert said.startswith((f"recipe.yaml:{where}", f"recipe.yaml:{int(line) - 1}:{rest}"))  # kind's, or its stage's
    assert all(word in said for word in allowed)


def test_a_key_that_is_there_twice_is_no_silent_choice(reject_change: Reject) -> None:
    assert reject_change("epochs: 3", "epochs: 3, epochs: 4") == (
        "recipe.yaml:17: stages.control.epochs: the key is there twice"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: a recipe is a mapping that starts with name:"),
        ("# nothing\n", "1: a recipe is a mapping that starts with name:"),
        ("- name: x", "1: a recipe is a mapping that starts with name:"),
        ("name: a\nstages: [b", "2: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("name: a\n\tb: c", "2: not YAML: found character '\\t' that cannot start any token"),
        ("name: a\n---\nname: b", "2: not YAML: but found another document"),
        ("name: a\ndata: *nowhere", "2: not YAML: found undefined alias 'nowhere'"),
        ("name: a\n? [b]\n: c", "2: not YAML: found unhashable key"),
        ("name: a\nseed: 2020-13-45", "2: not YAML: '2020-13-45' is no timestamp"),
        ("name: a\nseed: !!bool perhaps", "2: not YAML: 'perhaps' is no bool"),
        ("name: a\nseed: !!int ''", "2: not YAML: '' is no int"),
        ("name: a\nb: '\x07'", "2: not YAML: '\\x07' is no printable character"),
    ],
)
def test_what_is_no_yaml_mapping_says_so_with_its_line(reject: Reject, text: str, said: str) -> None:
    assert reject(text) == f"recipe.yaml:{said}"


def test_code_in_a_recipe_is_refused_not_run(reject: Reject) -> None:
    assert "not YAML: could not determine a constructor" in reject("name: !!python/object/apply:os.getcwd []")


@pytest.mark.parametrize("text", ["a: &a {b: *a}", "a: &a [*a]", "a: " + "[" * 5000])
def test_a_document_without_a_bottom_is_an_error(reject: Reject, text: str) -> None:
    assert "nested too deep; does an alias stand inside its anchor?" in reject(text)


def test_aliases_of_aliases_cannot_fill_the_memory(reject: Reject) -> None:
    tenfold = [f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "it has more than 10000 keys" in reject("\n".join(["k0: &k0 [x]", *tenfold]))


def test_a_key_with_a_line_break_stays_on_one_line(reject: Reject, base: str) -> None:
    assert "recipe.yaml:24: 'a\\nb': unknown key" in reject(base + '"a\\nb": 1\n')


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_what_is_not_utf8_is_an_error(reject: Reject, base: str, encoding: str) -> None:
    assert "recipe.yaml: cannot be read as UTF-8 text" in reject(f"# caf\u00e9\n{base}".encode(encoding))


def test_a_byte_order_mark_is_no_harm(accept: Accept, base: str) -> None:
    assert accept("\ufeff" + base) == accept(base)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot be read .* directory"):
        load(tmp_path)


def test_a_recipe_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"x.yaml: no such recipe"):
        load(tmp_path / "x.yaml")


def test_data_paths_are_relative_to_the_recipe(tmp_path: Path, accept: Accept, base: str) -> None:
    absolute = accept(base.replace("ratings.csv", str(tmp_path / "elsewhere" / "r.csv")))
    for recipe, wanted in ((accept(base), "ratings.csv"), (absolute, "elsewhere/r.csv")):
        assert isinstance(recipe.data, Table)
        assert recipe.data.path == tmp_path / wanted


@pytest.mark.parametrize("path", ['"a\\0b"', '"/a\\0b"', '"\\ud800"'])
def test_a_data_path_that_no_file_can_have_is_an_error(reject_change: Reject, path: str) -> None:
    assert reject_change("ratings.csv", path).startswith("recipe.yaml:3: data.path: ")


REFRESH = "  tonight: {kind: refresh, input: int8, add: lists/new.csv, remove: /gone.csv}\nmeasure:"


def test_every_sections_paths_are_relative_to_the_recipe(tmp_path: Path, accept: Accept, base: str) -> None:
    tonight = accept(base.replace("measure:", REFRESH, 1)).stages["tonight"]
    assert isinstance(tonight, RefreshSection)
    assert (tonight.add, tonight.remove) == (tmp_path / "lists" / "new.csv", Path("/gone.csv"))


def test_a_stages_path_that_no_file_can_have_is_an_error(reject: Reject, base: str) -> None:
    said = reject(base.replace("measure:", REFRESH.replace("lists/new.csv", '"a\\0b"'), 1))
    assert said.startswith("recipe.yaml:20: stages.tonight.add: ")


def test_errors_below_a_merge_key_keep_their_whole_path(reject_change: Reject) -> None:
    said = reject_change("{kind: finetune, model: *student, epochs: 3}", "{<<: {kind: finetune, model: {famly: x}}}")
    assert said == "recipe.yaml:17: stages.control.model.famly: unknown key; did you mean family?"


def test_a_dot_in_a_stage_name_does_not_hide_its_line(reject_change: Reject) -> None:
    assert reject_change("int8: {kind: quantize, input: student}", "int8.v2: {kind: quantize, input: studnt}") == (
        "recipe.yaml:18: stages.int8.v2: 'studnt' is no earlier stage; earlier stages: teacher, student, control"
    )


def test_an_override_reaches_any_depth(accept: Accept, base: str) -> None:
    recipe = accept(
        base,
        "name=other",
        "stages.student.epochs=7",
        "stages.student.model.dropout=0.25",
        "gate.latency.min_speedup.1=3",
    )
    student, gate = recipe.stages["student"], recipe.gate
    assert isinstance(student, DistillSection)
    assert gate
    assert gate.latency
    assert (recipe.name, student.epochs, student.model.dropout) == ("other", 7, 0.25)
    assert gate.latency.min_speedup == {1: 3}


def test_an_override_takes_lists_and_mappings_whole(accept: Accept, base: str) -> None:
    recipe = accept(base, "seed=[3, 4]", "measure.candidates=[student]", "stages.student.losses=[{kind: kl}]")
    student, measure = recipe.stages["student"], recipe.measure
    assert isinstance(student, DistillSection)
    assert measure
    assert (recipe.seeds, measure.candidates, [loss.kind for loss in student.losses]) == ((3, 4), ("student",), ["kl"])


def test_an_override_creates_what_is_not_there(accept: Accept, base: str) -> None:
    recipe = accept(base, "gate.size.min_ratio=8", "stages.extra={kind: quantize, input: teacher}")
    assert recipe.gate
    assert recipe.gate.size
    assert (recipe.gate.size.min_ratio, recipe.stages["extra"].inputs()) == (8, ("teacher",))


def test_an_override_with_nothing_after_the_sign_is_null(accept: Accept, base: str) -> None:
    assert accept(base, "gate=").gate is None


def test_an_override_equals_the_edited_recipe(accept: Accept, base: str) -> None:
    assert accept(base, "stages.control.epochs=9") == accept(base.replace("epochs: 3", "epochs: 9"))


def test_an_override_leaves_other_aliases_of_its_target_alone(accept: Accept, base: str) -> None:
    recipe = accept(base, "stages.student.model.hidden_size=16")
    student, control = recipe.stages["student"], recipe.stages["control"]
    assert isinstance(student, DistillSection)
    assert isinstance(control, FinetuneSection)
    assert (student.model.hidden_size, control.model.hidden_size) == (16, 4)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "--set seed: write it as path.to.key=value"),
        ("=3", "--set =3: write it as path.to.key=value"),
        ("", "--set : write it as path.to.key=value"),
        ("seed=[1", "--set seed=[1: '[1' is no YAML value"),
        ("seed=2020-13-45", "--set seed=2020-13-45: '2020-13-45' is no YAML value"),
        ("seed=!!bool x", "--set seed=!!bool x: '!!bool x' is no YAML value"),
        ("seed.x=1", "--set seed.x=1: seed is no mapping in this recipe"),
        ("name.x.y=1", "--set name.x.y=1: name is no mapping in this recipe"),
        (
            "stages.student.losses.0.weight=1",
            "--set stages.student.losses.0.weight=1: stages.student.losses is a list: set it whole in this recipe",
        ),
        (
            "stages.control.epochs=0",
            "--set stages.control.epochs=0: stages.control.epochs: Input should be greater than or equal to 1; got 0",
        ),
        (
            "stages.student.model.dropuot=0",
            "--set stages.student.model.dropuot=0: stages.student.model.dropuot: unknown key; did you mean dropout?",
        ),
        (
            "stages.new.kind=finetune",
            "--set stages.new.kind=finetune: stages.new: model or start: a fresh model, or an earlier stage's; "
            "name one of them",
        ),
        (
            "stages.studnt.epochs=3",
            "--set stages.studnt.epochs=3: stages.studnt: kind is missing; did you mean stages.student?",
        ),
        ("sede=1", "--set sede=1: sede: unknown key; did you mean seed?"),
    ],
)
def test_a_bad_override_is_one_line(reject: Reject, base: str, override: str, said: str) -> None:
    assert reject(base, override) == said


def test_an_override_nested_too_deep_is_one_line(reject: Reject, base: str) -> None:
    assert reject(base, "seed=" + "[" * 5000).endswith("is no YAML value")
