"""A method as data: compared, hashed, sent to another process, and described as its runs record it."""

from __future__ import annotations

import pickle
import sys

import pytest

from ground.errors import InvalidInput
from ground.user_code import UserCode
from student_train.losses import LOSSES
from student_train.method_spec import LossSpec, MethodSpec
from student_train.methods import method_names, parse_losses, parse_method
from student_train.mixing import Mixup
from student_train.sampling import AllViews, EpochSampling

OWN = """
from student_train.losses import DistillationLoss


class Halved(DistillationLoss):
    def __init__(self, share: float = 0.5):
        super().__init__()
        self.share = share

    def forward(self, signals):
        return self.share * self.logits(signals)[0].mean()
"""


@pytest.mark.parametrize("name", method_names())
def test_a_method_equals_itself_parsed_again_or_sent_elsewhere(name):
    spec = parse_method(name)
    sent = pickle.dumps(spec)
    assert b"torch" not in sent, "a spec holds nothing that learns"
    for again in (parse_method(name), pickle.loads(sent)):  # noqa: S301
        assert again == spec
        assert hash(again) == hash(spec)
        assert again.describe() == spec.describe()


def test_methods_that_differ_in_anything_are_unlike():
    texts = ["kd", "kd:temperature=2", "kd:ce=2", "ckd", "ckd:pairs=all", "ckd:anchor=false", "ckd:joint=true", "mixup"]
    assert len({parse_method(text) for text in texts}) == len(texts)


def test_a_default_that_is_written_out_makes_no_difference():
    assert parse_method("kd:temperature=4,weight=1") == parse_method("kd")
    assert LossSpec("kd", (("temperature", 4.0),)) == LossSpec("kd")
    assert LossSpec("kd", (("temperature", 2.0),)).settings == (("temperature", 2.0),)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_made_as_it_was_specified(name):
    spec = LossSpec(name)
    assert type(spec.make()) is LOSSES[name]
    assert spec.make() is not spec.make()
    flags = {"weight": 1.0, "compared": False, "standardised": False}
    revision = {"revision": 2} if name == "srrl" else {}
    assert spec.describe() == {"loss": name, **revision, **LOSSES[name]().settings, **flags}


def test_a_loss_of_another_revision_is_another_recipe(monkeypatch):
    before = parse_method("kd").describe()
    monkeypatch.setattr(LOSSES["kd"], "revision", 2)
    assert parse_method("kd").describe() != before


def test_a_users_class_is_sent_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "sent_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    sent = pickle.dumps(parse_losses(["sent_losses:Halved:share=0.25,weight=2"], code=UserCode.ALLOWED))
    # As in a process that has not imported it.
    sys.modules.pop("sent_losses")
    (loss,) = pickle.loads(sent).losses  # noqa: S301
    assert "sent_losses" not in sys.modules
    assert (loss.name, loss.settings, loss.weight) == ("sent_losses:Halved", (("share", 0.25),), 2.0)
    assert loss.make().share == 0.25
    sys.modules.pop("sent_losses")


def test_a_class_of_ours_by_its_address_is_the_same_spec():
    assert LossSpec("student_train.losses.kd:KD") == LossSpec("kd")


def test_losses_of_weight_0_are_left_out():
    spec = parse_losses(["ce", "kd:weight=0"])
    assert [loss.name for loss in spec.losses] == ["ce"]


def test_every_loss_of_a_method_has_a_name_of_its_own():
    spec = parse_losses(["kd", "ce", "kd:temperature=2", "kd:temperature=3", "kd:compared=true"])
    assert spec.term_names == ("kd", "ce", "kd.2", "kd.3", "kd.4")


def test_a_loss_of_all_views_repeats_what_is_drawn():
    assert parse_method("mlkd").sampling_of(3) == AllViews(EpochSampling(), 3)
    assert parse_method("kd").sampling_of(3) == EpochSampling()


def test_a_loss_that_follows_single_images_is_not_mixed():
    with pytest.raises(InvalidInput, match="crd follows single images through the training"):
        MethodSpec("both", (LossSpec("ce"), LossSpec("crd")), mixing=Mixup())
