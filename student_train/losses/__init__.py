"""Losses by the names that `--loss` takes; this table is the only place that lists them."""

from __future__ import annotations

from student_train.losses.ab import ActivationBoundary
from student_train.losses.attention import AttentionTransfer
from student_train.losses.base import DistillationLoss, Recipe
from student_train.losses.catkd import CATKD
from student_train.losses.correlation import CC
from student_train.losses.crd import CRD
from student_train.losses.cross_entropy import CrossEntropy
from student_train.losses.ctkd import CTKD
from student_train.losses.cwd import CWD
from student_train.losses.dist import DIST
from student_train.losses.dist_plus import DISTPlus
from student_train.losses.dkd import DKD
from student_train.losses.fsp import FSP
from student_train.losses.ft import FactorTransfer
from student_train.losses.hint import Hint
from student_train.losses.ickd import ICKD
from student_train.losses.ikl import IKL
from student_train.losses.kd import KD
from student_train.losses.kdsvd import KDSVD
from student_train.losses.match import MatchLabels, MatchLogits
from student_train.losses.mgd import MGD
from student_train.losses.mlkd import MLKD
from student_train.losses.nkd import NKD
from student_train.losses.nst import NST
from student_train.losses.ofa import OFA
from student_train.losses.ofd import OFD
from student_train.losses.pkt import PKT
from student_train.losses.review import ReviewKD
from student_train.losses.rkd import RKD
from student_train.losses.rld import RLD
from student_train.losses.sdd import SDD
from student_train.losses.semckd import SemCKD
from student_train.losses.similarity import SP
from student_train.losses.simkd import SimKD
from student_train.losses.soft_targets import JensenShannon, ReverseKL, SoftCrossEntropy
from student_train.losses.srd import SRD
from student_train.losses.srrl import SRRL
from student_train.losses.ttm import TTM, WTTM
from student_train.losses.vid import VID
from student_train.losses.vkd import VkD
from student_train.losses.wsld import WSLD
from student_train.needs import Needs

# In the order of docs/losses.md.
FAMILIES: dict[str, tuple[type[DistillationLoss], ...]] = {
    "Logits and labels": (
        CrossEntropy,
        MatchLogits,
        MatchLabels,
        KD,
        SoftCrossEntropy,
        JensenShannon,
        ReverseKL,
        DIST,
        DKD,
        NKD,
        WSLD,
        TTM,
        WTTM,
        OFA,
        CTKD,
        IKL,
        RLD,
        MLKD,
    ),
    "Relations between samples and channels": (
        CRD,
        RKD,
        CC,
        SP,
        PKT,
        NST,
        FSP,
        KDSVD,
        ICKD,
    ),
    "Features": (
        Hint,
        AttentionTransfer,
        VID,
        ActivationBoundary,
        FactorTransfer,
        OFD,
        ReviewKD,
        SemCKD,
        CWD,
        MGD,
        SRD,
        VkD,
        DISTPlus,
    ),
    "With the teacher's last layer": (
        SimKD,
        SRRL,
        SDD,
        CATKD,
    ),
}

LOSSES: dict[str, type[DistillationLoss]] = {loss.name: loss for family in FAMILIES.values() for loss in family}

__all__ = ["FAMILIES", "LOSSES", "DistillationLoss", "Needs", "Recipe"]
