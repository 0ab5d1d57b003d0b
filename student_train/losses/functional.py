"""The mathematics of the losses, as plain functions of tensors.

At least float32 inside: half precision is raised, float64 is kept. No state; teachers get no gradient unless they
ask for one. Each returns a scalar, but for `standardise`, which returns logits. Each is written in the module of its
family, next to the class that binds it.
"""

from __future__ import annotations

from student_train.losses.ab import activation_boundary
from student_train.losses.attention import attention_transfer
from student_train.losses.catkd import catkd
from student_train.losses.correlation import correlation_congruence, kernel_correlation_congruence
from student_train.losses.crd import crd
from student_train.losses.cwd import cwd
from student_train.losses.dist import dist
from student_train.losses.dist_plus import dist_plus
from student_train.losses.dkd import dkd
from student_train.losses.fsp import fsp
from student_train.losses.ft import factor_transfer
from student_train.losses.hint import hint
from student_train.losses.ickd import ickd
from student_train.losses.ikl import dkl, ikl
from student_train.losses.kd import kd
from student_train.losses.kdsvd import kdsvd
from student_train.losses.match import all_pairs_comparison, comparison
from student_train.losses.mgd import mgd
from student_train.losses.mlkd import mlkd
from student_train.losses.nkd import nkd
from student_train.losses.nst import nst
from student_train.losses.ofa import ofa
from student_train.losses.ofd import partial_l2
from student_train.losses.pkt import pkt
from student_train.losses.review import hierarchical_context
from student_train.losses.rkd import rkd_angle, rkd_distance
from student_train.losses.rld import rld
from student_train.losses.sdd import sdd
from student_train.losses.semckd import semckd
from student_train.losses.similarity import similarity_preserving
from student_train.losses.simkd import simkd
from student_train.losses.soft_targets import jsd, reverse_kl, soft_cross_entropy
from student_train.losses.srd import srd
from student_train.losses.srrl import srrl
from student_train.losses.standardise import standardise
from student_train.losses.ttm import ttm, wttm
from student_train.losses.vid import vid
from student_train.losses.vkd import vkd
from student_train.losses.wsld import wsld

__all__ = [
    "activation_boundary",
    "all_pairs_comparison",
    "attention_transfer",
    "catkd",
    "comparison",
    "correlation_congruence",
    "crd",
    "cwd",
    "dist",
    "dist_plus",
    "dkd",
    "dkl",
    "factor_transfer",
    "fsp",
    "hierarchical_context",
    "hint",
    "ickd",
    "ikl",
    "jsd",
    "kd",
    "kdsvd",
    "kernel_correlation_congruence",
    "mgd",
    "mlkd",
    "nkd",
    "nst",
    "ofa",
    "partial_l2",
    "pkt",
    "reverse_kl",
    "rkd_angle",
    "rkd_distance",
    "rld",
    "sdd",
    "semckd",
    "similarity_preserving",
    "simkd",
    "soft_cross_entropy",
    "srd",
    "srrl",
    "standardise",
    "ttm",
    "vid",
    "vkd",
    "wsld",
    "wttm",
]
