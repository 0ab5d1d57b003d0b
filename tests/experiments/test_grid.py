"""A grid is refused with the line and the nearest valid word, before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.grid_file import read_grid
from experiments.plan import plan_runs, plan_stores
from ground.errors import InvalidInput
from student_train.protocol import ProtocolConfig
from student_train.train_config import TrainConfig

LINES = """\
name: good
dataset: digits
pairs:
  - {teacher: wrn40_2, student: resnet8}
methods:
  - kd
  - {label: "CKD, teacher's view", method: "ckd:pairs=all", training: {student_view: teacher}}
  - {losses: ["ce", "kd:temperature=2,weight=0.5"]}
n: {from: 100, to: 300, step: 100}
seeds: 2
choose: {lr: [0.1, 5e-2]}
training: {max_evals: 4, weight_decay: 1e-4}
store: {views: 2, budget: 700}
targets: [0.5]
test_images: 20
"""


@pytest.fixture
def read(tmp_path):
    def read(text: str):
        path = tmp_path / "grid.yaml"
        path.write_text(text)
        return read_grid(path)

    return read


def test_a_grid_says_what_its_file_says(read):
    grid = read(LINES)
    assert grid.name == "good"
    assert [(pair.teacher, pair.student, pair.weights) for pair in grid.pairs] == [("wrn_40_2", "resnet8", None)]
    assert [entry.label for entry in grid.methods] == ["kd", "CKD, teacher's view", "ce+kd:temperature=2,weight=0.5"]
    assert (grid.sizes, grid.seeds) == ((100, 200, 300), (0, 1))
    assert (grid.store.views, grid.store.budget, grid.targets, grid.test_images) == (2, 700, (0.5,), 20)
    assert grid.methods[0].configs("resnet8", seed=7) == [
        TrainConfig(student="resnet8", seed=7, lr=lr, weight_decay=1e-4, protocol=ProtocolConfig(max_evals=4))
        for lr in (0.1, 0.05)
    ]
    assert {config.student_view for config in grid.methods[1].configs("resnet8", 0)} == {"teacher"}
    assert grid.num_runs == len(plan_runs(grid, "fp32")) == 3 * 2 * 3 * 2


def test_the_recipe_around_the_loss_can_be_set_and_chosen_by_validation(read):
    training = "training: {max_evals: 4, average: 0.999, student_view: trivial}"
    choose = "choose: {schedule: [plateau, cosine], average: [0, 0.99]}"
    text = LINES.replace("training: {max_evals: 4, weight_decay: 1e-4}", training)
    grid = read(text.replace("choose: {lr: [0.1, 5e-2]}", choose))
    configs = grid.methods[0].configs("resnet8", seed=0)
    assert [(config.protocol.schedule, config.average) for config in configs] == [
        ("plateau", 0), ("plateau", 0.99), ("cosine", 0), ("cosine", 0.99),
    ]  # fmt: skip
    assert {config.student_view for config in configs} == {"trivial"}


def test_n_can_be_a_list_and_seeds_too(read):
    grid = read(LINES.replace("{from: 100, to: 300, step: 100}", "[300, 64]").replace("seeds: 2", "seeds: [5, 3]"))
    assert (grid.sizes, grid.seeds) == ((64, 300), (5, 3))


@pytest.mark.parametrize(("written", "meant"), [("3", (0, 1, 2)), ("[4, 0]", (4, 0))])
def test_samples_are_a_list_or_how_many_and_multiply_the_runs(read, written, meant):
    grid = read(LINES + f"sample_seeds: {written}\n")
    assert grid.samples == grid.sample_seeds == meant
    assert grid.num_runs == len(plan_runs(grid, "fp32")) == len(meant) * read(LINES).num_runs


def test_a_grid_without_samples_has_the_one_of_its_store(read):
    assert read(LINES).samples == (0,)
    assert read(LINES.replace("views: 2", "views: 2, seed: 5")).samples == (5,)


def test_a_choice_of_one_method_replaces_that_of_the_grid(read):
    text = LINES.replace("  - kd\n", "  - {method: kd, choose: {batch_size: [32]}}\n")
    grid = read(text)
    assert [(c.lr, c.batch_size) for c in grid.methods[0].configs("resnet8", 0)] == [(0.05, 32)]


@pytest.mark.parametrize(
    ("found", "written", "line", "said"),
    [
        ("methods:\n  - kd", "methods:\n  - kdd", 6, "no method is called 'kdd'; did you mean kd"),
        ("  - kd\n", "  - kd:temprature=2\n", 6, "did you mean temperature"),
        ("  - kd\n", "  - {method: kd, losses: [ce]}\n", 6, "give one of them"),
        ("  - kd\n", "  - {label: nothing}\n", 6, "give one of them"),
        ("  - kd\n", "  - {method: kd, comparison: all}\n", 6, "comparison goes with losses"),
        ("  - kd\n", "  - kd\n  - kd\n", 6, "two methods are called kd"),
        ("student: resnet8", "student: resnet9", 4, "resnet8"),
        ("teacher: wrn40_2", "teacher: wrn40", 4, "wrn_40"),
        ("student: resnet8", "studnet: resnet8", 4, "did you mean student"),
        (", student: resnet8", "", 4, "lacks student"),
        ("from: 100", "from: 1", 9, "whole number of at least 2, got '1'"),
        ("from: 100", "from: 400", 9, "backwards"),
        ("step: 100", "step: 0", 9, "at least 1"),
        ("to: 300, step: 100", "to: 1000000000000, step: 1", 9, "100000 runs is the most"),
        ("{from: 100, to: 300, step: 100}", "[100, many]", 9, "whole number"),
        ("{from: 100, to: 300, step: 100}", "[100, 100]", 9, "100 twice"),
        ("{from: 100, to: 300, step: 100}", "[]", 9, "at least one item"),
        ("{from: 100, to: 300, step: 100}", "[040]", 9, "n is '040', which YAML reads as 32; write 40, or 32"),
        ("{from: 100, to: 300, step: 100}", "[0o40]", 9, "n is '0o40', which YAML reads as 32; write 32"),
        ("{from: 100, to: 300, step: 100}", "[0x20]", 9, "n is '0x20', which YAML reads as 32; write 32"),
        ("{from: 100, to: 300, step: 100}", "[0b100]", 9, "n is '0b100', which YAML reads as 4; write 4"),
        ("{from: 100, to: 300, step: 100}", "[1_000]", 9, "n is '1_000', which YAML reads as 1000; write 1000"),
        ("{from: 100, to: 300, step: 100}", "[089]", 9, "whole number of at least 2, got '089'"),
        ("{from: 100, to: 300, step: 100}", "[4e2]", 9, "whole number of at least 2, got '4e2'"),
        ("{from: 100, to: 300, step: 100}", "[2024-01-01]", 9, "whole number of at least 2"),
        ("{from: 100, to: 300, step: 100}", "['400']", 9, "whole number of at least 2"),
        ("{from: 100, to: 300, step: 100}", f"[{'9' * 5000}]", 9, "whole number of at least 2"),
        ("{from: 100, to: 300, step: 100}", f"[0{'7' * 5000}]", 9, "whole number of at least 2"),
        ("budget: 700", "budget: 1:30", 13, "budget is '1:30', which YAML reads as 90; write 90"),
        ("budget: 700", "budget: yes", 13, "whole number of at least 1, got 'yes'"),
        ("lr: [0.1, 5e-2]", "lr: [1:30.5]", 11, "lr is '1:30.5', which YAML reads as 90.5; write 90.5"),
        ("lr: [0.1, 5e-2]", "lr: [1_0.5]", 11, "lr is '1_0.5', which YAML reads as 10.5; write 10.5"),
        ("lr: [0.1, 5e-2]", "lr: [010]", 11, "lr is '010', which YAML reads as 8; write 10, or 8 if that is meant"),
        ("lr: [0.1, 5e-2]", "lr: [.inf]", 11, "lr must be a number, got '.inf'"),
        ("lr: [0.1, 5e-2]", "lr: [.nan]", 11, "lr must be a number, got '.nan'"),
        ("lr: [0.1, 5e-2]", "lr: [on]", 11, "lr must be a number, got 'on'"),
        ("seeds: 2", "seeds: 0", 10, "from 1 to"),
        ("seeds: 2", "sedes: 2", 10, "did you mean seeds"),
        ("seeds: 2", "seeds: true", 10, "whole number"),
        ("seeds: 2", "seeds: 2\nsample_seeds: []", 11, "at least one item"),
        ("seeds: 2", "seeds: 2\nsample_seeds: 0", 11, "from 1 to"),
        ("seeds: 2", "seeds: 2\nsample_seeds: [1, 1]", 11, "1 twice"),
        ("seeds: 2", "seeds: 2\nsample_seeds: [-1]", 11, "from 0 to"),
        ("seeds: 2", "seeds: 2\nsample_seed: [1]", 11, "did you mean sample_seeds"),
        ("views: 2, budget: 700}", "views: 2, seed: 1}\nsample_seeds: 2", 13, "sample_seeds draws several; give one"),
        ("views: 2", "sample_seeds: [0]", 13, "sample_seeds stands beside seeds, not below store"),
        ("lr: [0.1, 5e-2]", "lr: [0.1, fast]", 11, "must be a number, got 'fast'"),
        ("lr: [0.1, 5e-2]", "lr: [0.1, 0.1]", 11, "0.1 twice"),
        ("lr: [0.1, 5e-2]", f"lr: [1{'0' * 400}]", 11, "must be a number"),
        ("lr: [0.1, 5e-2]", f"lr: {list(range(1, 1002))}", 6, "more than 1000 trainings"),
        ("max_evals: 4", "max_evals: 4, average: 1", 6, "--average must be at least 0, which is none, and below 1"),
        ("max_evals: 4", "max_evals: 4, schedule: cosin", 12, "no schedule is called 'cosin'; did you mean cosine"),
        ("max_evals: 4", "schedule: cosine", 6, "say after how many evaluations it ends"),
        ("max_evals: 4", "max_evals: 4, student_view: trival", 12, "did you mean trivial"),
        ("max_evals: 4", "max_evals: 4, momentum: -1", 6, "momentum must be a finite number of at least 0"),
        ("lr: [0.1, 5e-2]", "lr: [-0.1]", 6, "finite number above 0"),
        ("max_evals: 4", "max_eval: 4", 12, "did you mean max_evals"),
        ("max_evals: 4", "max_evals: 0", 12, "at least 1"),
        ("max_evals: 4", "max_evals: 4, steps_per_eval: 0", 12, "at least 1"),
        ("max_evals: 4", "max_evals: 4, test_every: 0", 12, "at least 1"),
        ("lr: [0.1, 5e-2]", "test_every: [1, 2]", 11, "test_every"),
        ("views: 2", "views: 0", 13, "from 1 to"),
        ("views: 2", "view_policy: plane", 13, "did you mean plain"),
        ("views: 2", "views: 2, view_policy: plain", 13, "every plain view"),
        ("[0.5]", "[50]", 14, "between 0 and 1"),
        ("test_images: 20", "test_images: [20]", 15, "whole number"),
        ("test_images: 20", "test_images: 1", 15, "0 or at least 2"),
        ("name: good", "name: ../elsewhere", 1, "name of a folder"),
        ("dataset: digits\n", "dataset: digits\ndataset: digits\n", 3, "given twice"),
        ("dataset: digits\n", "dataset: !!python/object/apply:os.system [ls]\n", 2, "the tag"),
        ("dataset: digits\n", "dataset: &a [*a]\n", 2, "references"),
        ("name: good\n", "name: [unclosed\n", 2, "this is no YAML"),
        ("dataset: digits\n", 'dataset: "dig\\eits"\n', 2, "control characters"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(read, tmp_path, found, written, line, said):
    assert found in LINES
    with pytest.raises(InvalidInput, match=re.escape(said)) as refused:
        read(LINES.replace(found, written, 1))
    assert str(refused.value).startswith(f"{tmp_path / 'grid.yaml'}, line {line}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("5.0e-4", 5e-4),
        (".5", 0.5),
        ("1.", 1.0),
        ("+2", 2.0),
        ("0", 0.0),
        ("'0.25'", 0.25),
    ],
)
def test_numbers_that_everybody_reads_alike_are_taken(read, written, number):
    grid = read(LINES.replace("weight_decay: 1e-4", f"weight_decay: {written}"))
    assert grid.methods[0].configs("resnet8", 0)[0].weight_decay == number


@pytest.mark.parametrize("written", ["yes", "no", "040", "1_000", "2024-01-01"])
def test_a_text_is_what_is_written_though_yaml_may_read_something_else(read, written):
    assert read(LINES.replace("name: good", f"name: {written}")).name == written


def test_an_empty_or_absent_or_foreign_file_is_refused(read, tmp_path):
    with pytest.raises(InvalidInput, match="is empty"):
        read("# nothing\n")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_grid(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="no YAML"):
        read_grid(tmp_path / "binary.yaml")
    with pytest.raises(InvalidInput, match="must be a mapping"):
        read("- a\n- b\n")


def test_references_cannot_grow_a_small_file_into_a_large_one(read):
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\n" + LINES
    with pytest.raises(InvalidInput, match="references"):
        read(bomb)


def test_more_runs_than_anybody_can_train_are_refused(read):
    with pytest.raises(InvalidInput, match="line 9: this asks for 1800000 runs, and 100000 is the most"):
        read(LINES.replace("seeds: 2", "seeds: 100000"))
    with pytest.raises(InvalidInput, match="this asks for 1800000 runs"):
        read(LINES + "sample_seeds: 50000\n")


def test_an_n_too_small_for_a_method_names_the_line(read):
    with pytest.raises(InvalidInput, match=r"line 9: ckd:positives=3: --n 3 is too small .* at least 4"):
        plan_runs(
            read(LINES.replace("{from: 100, to: 300, step: 100}", "[3]").replace("  - kd\n", "  - ckd:positives=3\n")),
            "fp32",
        )


def test_labels_that_name_one_folder_are_refused_with_their_line(read):
    methods = "  - {label: a b, method: kd}\n  - {label: a-b, method: kd}\n"
    with pytest.raises(InvalidInput, match="line 6: 'a b' and 'a-b' name the same folder"):
        plan_runs(read(LINES.replace("  - kd\n", methods)), "fp32")


def test_a_layer_that_the_teacher_lacks_names_the_methods_line(read):
    grid = read(LINES.replace("  - kd\n", "  - kd\n  - fitnets:layers=layer9\n"))
    with pytest.raises(InvalidInput, match=r"line 7: fitnets:layers=layer9: .*layer9"):
        plan_stores(grid)


def test_stores_keep_what_all_methods_together_need(read):
    grid = read(
        LINES.replace("  - kd\n", "  - kd\n  - fitnets\n  - vid\n").replace("store: {views: 2, budget: 700}\n", "")
    )
    [need] = plan_stores(grid)
    assert need.features == ("layer1", "layer2", "layer3")
    [plain] = plan_stores(read(LINES))
    assert plain.features == ()


@pytest.mark.slow
def test_the_published_grids_ask_for_what_the_paper_did():
    grids = {path.stem: read_grid(path) for path in (Path(__file__).parents[2] / "grids").glob("*.yaml")}
    table1 = grids["table1"]
    assert table1.sizes == tuple(range(1600, 6401, 400))
    assert len(table1.sizes) == 13
    assert {(pair.teacher, pair.student) for pair in table1.pairs} == {
        ("wrn_40_2", "wrn_16_2"),
        ("resnet110", "resnet32"),
        ("vgg13", "vgg8"),
    }
    assert len(table1.seeds) == 5
    # The paper's, and its own in both forms: ours has an anchor.
    paper = ["vanilla", "kd", "rkd", "dist", "mixup", "crd", "ckd"]
    assert [entry.text for entry in table1.methods] == [*paper, "ckd_paper"]
    assert table1.methods[0].configs("wrn_16_2", 0)[0].protocol == ProtocolConfig()
    assert [config.lr for config in table1.methods[0].configs("wrn_16_2", 0)] == [0.1, 0.05, 0.025]
    assert grids["cars"].sizes == (1400, 1600, 1800, 2000)
    assert grids["table2"].sizes == (1600, 2400, 3200)
    assert {entry.text for entry in grids["table2"].methods} == {
        "fitnets",
        "fitnets+crd",
        "fitnets+ckd",
        "vid",
        "vid+crd",
        "vid+ckd",
    }
    assert {entry.text for entry in grids["figure4"].methods} == {
        "rkd",
        "rkd_d:dims=10",
        "rkd_d:dims=50",
        "rkd_d:dims=100",
    }
    for grid in grids.values():
        assert plan_stores(grid)
        assert len(plan_runs(grid, "fp32")) == grid.num_runs


@pytest.mark.parametrize("name", ["python:mine:teacher", "export:teacher.pt2"])
def test_networks_that_are_code_are_refused_with_what_takes_them(read, name):
    with pytest.raises(
        InvalidInput, match="is code from outside this program, and grids take none; build with ckd-cache"
    ):
        read(LINES.replace("student: resnet8", f"student: '{name}'", 1))
