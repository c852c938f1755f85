"""What a run says about its training, ours or another trainer's, and what the command line says over it."""

from __future__ import annotations

import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from analyses.layouts.layout import Layout
from analyses.runs.pair_files import group_pairs, read_pairs
from analyses.runs.recipes import Told, decay_kind_of, recipe_of
from analyses.runs.run import Run
from analyses.studies.trajectory import follow
from analyses.subjects.subject import subject_of
from analyses.training.trainer import TrainingPlan
from manifold.errors import CheckpointError, InputError, RhoscopeError
from tests.analyses.commands.test_checkpoint_commands import rhoscope

N, Q = 5, 8
WEIGHTS = ["--group", "Z5", *(part for name in "abc" for part in ("--tensor", f"w_{name}=w_{name}"))]
LAYOUT = Layout("Z5", "w_a", "w_c", "w_b")


def network(seed: int, scale: float = 0.3) -> dict:
    rng = torch.Generator().manual_seed(seed)
    return {f"w_{name}": scale * torch.randn(N, Q, generator=rng, dtype=torch.float64) for name in "abc"}


@pytest.fixture
def folder(tmp_path):
    """A stranger's run."""
    path = tmp_path / "run"
    path.mkdir()
    for step in (10, 20):
        torch.save(network(step), path / f"step_{step}.pt")
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        code, out, err = rhoscope(monkeypatch, capsys, *arguments, *WEIGHTS, "--json", "--quiet")
        assert code in (0, 3), err
        return json.loads(out)

    return run


def write(folder, document) -> None:
    (folder / "run.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        *((name, "decoupled") for name in (
            "adamw", "AdamW", "ADAMW", "torch.optim.AdamW", "adamw_torch", "adamw_torch_fused",
            "Adam-W", "<class 'torch.optim.adamw.AdamW'>", "AdamW (lr=0.1)", "optax.adamw", "FusedAdamW",
            "adamw_bnb_8bit", "paged_adamw_32bit", "Lion", "SGDW",
        )),
        *((name, "l2") for name in (
            "adam", "Adam", "torch.optim.Adam", "SGD", "torch.optim.sgd.SGD", "RMSprop", "AdamOptimizer",
            "flow", "<class 'torch.optim.adam.Adam'>", "Adam(lr=0.1, weight_decay=1)",
            "fused_adam", "adam_torch",
        )),
        *((name, None) for name in ("", "shampoo", "my.Optimizer", None, 3, ["adam"], {}, {"lr": 0.1})),
        ({"name": "AdamW"}, "decoupled"),
        ({"_target_": "torch.optim.AdamW", "lr": 1}, "decoupled"),
        ({"type": "Adam", "decoupled_weight_decay": True}, "decoupled"),
        ({"type": "sgd"}, "l2"),
    ],
)  # fmt: skip
def test_optimisers_in_every_spelling(optimizer, kind):
    assert decay_kind_of(optimizer) == kind


@pytest.mark.parametrize(
    ("config", "decay", "said"),
    [
        ({}, 0.0, "none is told"),
        ({"optimizer": "Adam", "weight_decay": 0}, 0.0, "weight decay: none"),
        ({"optimizer": "SGD", "weight_decay": 0.01}, 0.01, "L2, 0.01 of run.json, is in"),
        ({"optimizer": "torch.optim.AdamW", "weight_decay": 1.0}, 0.0, "1 of run.json is not in"),
        ({"optimizer": {"name": "adam", "weight_decay": "1e-2"}}, 0.01, "L2, 0.01 of run.json, is in"),
        ({"Optimizer": "ADAM", "weight-decay": 0.5}, 0.5, "L2, 0.5"),
        ({"weight_decay": 0.01}, 0.0, "is not included, because no optimiser is told"),
        ({"optim": "shampoo", "wd": 0.01}, 0.0, "is not included, because no optimiser is told"),
        ({"optimizer": "sgd", "weight_decay": 0.1, "wd": 0.2}, 0.0, "two weight decays (0.1, 0.2)"),
        *(({"optimizer": "sgd", "weight_decay": bad}, 0.0, "ignored: weight_decay") for bad in (
            "auto", [0.1, 0.2], -1, True, math.nan, math.inf, 10**400, {"a": 1}, "x" * 1000,
        )),
    ],
)  # fmt: skip
def test_which_decay_is_included_is_said(config, decay, said):
    recipe = recipe_of(config, N)
    assert recipe.weight_decay == decay
    notes = " ".join(recipe.notes)
    assert said in notes
    assert sum(note.startswith("weight decay: ") for note in recipe.notes) == 1
    assert max(map(len, recipe.notes)) < 400


@pytest.mark.parametrize(
    "held_out", [0.3, "test.csv", [[0, 1], [99, 3]], [25], [-1], [0, 0], [1.0], [True], {}]
)
def test_held_out_of_another_form_is_ignored(held_out):
    recipe = recipe_of({"held_out": held_out}, N)
    assert recipe.held_out is None
    assert "held_out" in recipe.notes[-1]
    assert recipe_of({"held_out": [3, 1]}, N).held_out.tolist() == [1, 3]
    assert "all pairs" in " ".join(recipe_of({"frac_train": 0.3}, N).notes)


def test_fields_of_others_mean_nothing_here():
    recipe = recipe_of({"labels": 113, "centred": "no"}, N)
    assert (recipe.labels, recipe.centred) == (None, False)
    assert "centred" in recipe.notes[-1]
    own = recipe_of({"schema_version": 1, "group": "Z5", "labels": 3, "centred": True}, N)
    assert (own.labels, own.centred) == (3, True)


def test_our_own_configuration_is_understood_whole():
    plan = TrainingPlan("Z5", width=Q, optimizer="adam", weight_decay=0.1, train_fraction=0.6, labels=4)
    recipe = recipe_of({"schema_version": 1, **plan.config()}, N)
    assert recipe.weight_decay == 0.1
    assert np.array_equal(recipe.held_out, plan.held_out)
    assert (recipe.centred, recipe.labels) == (True, 4)
    assert len(recipe.notes) == 1


def test_the_user_has_the_last_word():
    adamw = {"optimizer": "AdamW", "weight_decay": 0.5}
    assert recipe_of(adamw, N, Told(decay_kind="l2")).weight_decay == 0.5
    assert recipe_of(adamw, N, Told(weight_decay=0.2)).weight_decay == 0.2
    assert recipe_of(adamw, N, Told(0.2, "decoupled")).weight_decay == 0.0
    assert "0.2 as given is not in" in recipe_of(adamw, N, Told(0.2, "decoupled")).notes[0]
    with pytest.raises(InputError, match="decay kind"):
        recipe_of({}, N, Told(decay_kind="l2"))
    for bad in (Told, lambda **k: Told(**k)):
        with pytest.raises(InputError):
            bad(weight_decay=math.nan)
    with pytest.raises(InputError):
        Told(decay_kind="L3")


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["adam", "AdamW"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(
    ["optimizer", "weight_decay", "wd", "held_out", "centred", "labels", "layout", "group", "loss", "lr",
     "steps", "save_every", "schema_version", "train_fraction", "seed", "versions", "schedule", "width",
     "tied"]
)  # fmt: skip
_OWN = TrainingPlan("Z5", width=Q, optimizer="sgd", steps=20).config() | {
    "schema_version": 1,
    "save_every": 10,
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.dictionaries(_KEYS | st.text(max_size=6), _JSON, max_size=6) | _JSON,
    st.booleans(),
)
def test_any_json_is_an_answer_or_one_line(tmp_path_factory, document, over_own):
    """Studies of a run with any run.json, foreign or ours with fields changed: never another exception."""
    folder = tmp_path_factory.mktemp("any")
    for step in (10, 20):
        torch.save(network(step), folder / f"step_{step}.pt")
    if over_own and isinstance(document, dict):
        document = _OWN | document
    write(folder, document)
    try:
        run = Run.open(folder)
        assert run.steps == (10, 20)
        _ = run.layout
        study = follow(run, LAYOUT, steps=[20])
        assert sum(note.startswith("weight decay: ") for note in json.loads(study.summary)["notes"]) == 1
    except RhoscopeError as error:
        line = str(error)
    else:
        line = "done"
    assert line.isprintable()


@pytest.mark.parametrize(
    "document", [{"optimizer": "AdamW", "weight_decay": 1.0}, {"weight_decay": "auto"}, {}]
)
def test_a_strangers_decay_changes_no_count(folder, command, document):
    bare = command("analyze", folder)
    write(folder, document)
    found = command("analyze", folder)
    assert found["dof"] == bare["dof"]
    assert found["task"]["weight_decay"] == 0.0
    for name in ("analyze", "crossings"):
        notes = command(name, folder)["notes"]
        assert sum(note.startswith("weight decay: ") for note in notes) == 1


def test_decay_from_the_command_line(folder, command):
    found = command("analyze", folder, "--weight-decay", 0.1)
    assert found["task"]["weight_decay"] == 0.1
    assert found["objective"] > found["loss"]
    write(folder, {"optimizer": "adamw", "weight_decay": 0.1})
    assert (
        command("analyze", folder, "--decay-kind", "l2")["spectrum"]["largest"]
        == found["spectrum"]["largest"]
    )
    none = command("analyze", folder, "--weight-decay", 0.1, "--decay-kind", "decoupled")
    assert none["objective"] == none["loss"]
    study = command("crossings", folder, "--weight-decay", 0.1)
    assert study["objective"][-1] == pytest.approx(found["objective"], rel=1e-12)
    assert study["negative"][-1] == found["spectrum"]["negative"]


def test_a_checkpoint_alone_takes_the_options_too(folder, command):
    found = command("analyze", folder / "step_20.pt", "--weight-decay", 0.1)
    assert found["task"]["weight_decay"] == 0.1


class TestPairs:
    PAIRS = ((0, 1), (4, 4), (2, 3), (1, 0))

    def test_loss_and_spectrum_are_over_the_given_pairs(self, folder, command, tmp_path):
        """Against the mean of the squared errors over these pairs, written out."""
        file = tmp_path / "train.csv"
        file.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in self.PAIRS))
        found = command("analyze", folder, "--train-pairs", file, "--loss", "mse")
        w = network(20)
        losses = []
        for x, y in self.PAIRS:
            outputs = w["w_c"] @ (w["w_a"][x] + w["w_b"][y]).square()
            outputs[(x + y) % N] -= 1
            losses.append(float(outputs.square().sum()))
        assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-12)
        assert found["task"]["pairs"] == "train"
        study = command("crossings", folder, "--train-pairs", file, "--loss", "mse")
        assert study["loss"][-1] == pytest.approx(found["loss"], rel=1e-12)
        assert study["negative"][-1] == found["spectrum"]["negative"]
        held = sorted(set(range(N * N)) - {x * N + y for x, y in self.PAIRS})
        write(folder, {"held_out": held})
        assert command("analyze", folder, "--loss", "mse")["loss"] == pytest.approx(found["loss"], rel=1e-12)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.txt", "0 1\n4\t4\n# comment\n\n2;3\n1, 0\n"),
            ("a.csv", "\ufeffx,y\r\n0,1\r\n4,4\r\n2,3\r\n1,0\r\n"),
            ("a.json", "[[0, 1], [4, 4], [2, 3], [1, 0]]"),
        ],
    )
    def test_formats(self, tmp_path, name, text):
        (tmp_path / name).write_text(text, "utf-8")
        assert read_pairs(tmp_path / name).tolist() == [list(pair) for pair in self.PAIRS]
        np.save(tmp_path / "a.npy", np.array(self.PAIRS))
        assert np.array_equal(read_pairs(tmp_path / "a.npy"), read_pairs(tmp_path / name))

    @pytest.mark.parametrize(
        ("name", "text", "what"),
        [
            ("a.txt", "", "no pair"),
            ("a.txt", "0 1\n2\n", "line 2"),
            ("a.txt", "0 1 2\n", "line 1"),
            ("a.txt", "0 -1\n", "line 1"),
            ("a.txt", "0 1.5\n", "line 1"),
            ("a.txt", "x y\nx y\n", "line 2"),
            ("a.json", "[[0, 1], [2]]", "entry 1"),
            ("a.json", '{"a": 1}', "list of pairs"),
            ("a.json", "[" * 100_000, "no list"),
            ("a.npy", "x", "no list"),
            ("missing", None, "cannot be read"),
        ],
    )
    def test_bad_files_are_one_line(self, tmp_path, name, text, what):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=what) as caught:
            read_pairs(tmp_path / name)
        assert str(caught.value).isprintable()

    def test_rows_stand_for_elements(self):
        order = (2, 0, 1)  # row 0 is element 2
        found = group_pairs(np.array([[0, 1], [2, 2]]), 3, order)
        assert found.tolist() == [[1, 1], [2, 0]]

    @pytest.mark.parametrize(("pairs", "what"), [([[0, 5]], "outside 0 to 4"), ([[1, 2], [1, 2]], "twice")])
    def test_pairs_that_make_no_sense(self, pairs, what):
        with pytest.raises(InputError, match=what):
            group_pairs(np.array(pairs), N)

    def test_two_answers_contradict_each_other(self, folder, monkeypatch, capsys, tmp_path):
        (tmp_path / "pairs").write_text("0 1\n")
        code, out, err = rhoscope(
            monkeypatch, capsys, "analyze", folder, *WEIGHTS, "--pairs", "all", "--train-pairs",
            tmp_path / "pairs", "--quiet",
        )  # fmt: skip
        assert (code, out) == (2, "")
        assert "contradict" in err


def test_a_run_json_that_is_not_there_for_us_to_read(folder):
    for text in ("[]", "{", '{"schema_version": 999}'):
        (folder / "run.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"run\.json"):
            Run.open(folder)
    write(folder, {"schema_version": 7, "model": "mlp"})  # another program's version
    assert Run.open(folder).steps == (10, 20)


def test_subjects_take_the_pairs_of_their_run(folder, tmp_path):
    (tmp_path / "pairs").write_text("0 1\n1 1\n")
    run = Run.open(folder)
    run.told = Told(pairs=read_pairs(tmp_path / "pairs"))
    assert subject_of(run.read(20), LAYOUT, run).pairs.tolist() == [[0, 1], [1, 1]]
