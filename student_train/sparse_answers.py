"""Answers that speak of some classes only: what becomes of the others, on the teacher's side and on the student's.

The three rules for the probability that a top-k leaves out, each applied to both sides alike:

- *spread*: the missing mass is shared evenly by the classes that are not named. So is what the student gives to these
  classes, sample by sample: both sides are distributions over k + 1 cells, written over all K classes, so that samples
  that name different classes still have the same coordinates.
- *renormalise*: both sides are restricted to the named classes and normalised there, (B, k).
- *zero*: the rest is left out, and what remains is not normalised: weights that sum to less than 1.

Everything is dense for a batch alone, (B, K), whatever the store holds of n rows.
Sources: *zero* and its bias, and why a random sample of ids has none: Anshumann et al., ACL 2025, Sparse Logit
Sampling, arXiv:2503.16870.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from storage.answers import NO_CLASS

# In place of minus infinity, whose differences are NaN: the probability is exactly 0, at any temperature in use.
NOTHING = -1e9
# The smallest probability that is told from 0, as a logarithm: what is kept in float32 goes no lower.
LEAST = math.log(torch.finfo(torch.float32).tiny)
# A missing mass is 1 less a sum of float32 numbers: what is below their precision is noise.
_PRECISION = torch.finfo(torch.float32).eps


def log_of(probabilities: Tensor) -> Tensor:
    """Log-probabilities of probabilities (B, K), none below `LEAST`."""
    return probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()


def spread_teacher(ids: Tensor, values: Tensor, classes: int) -> Tensor:
    """Log-probabilities over all classes, what is missing shared evenly by those that are not named.

    No class that is not named gets more than the least of those that are: they are the largest.

    Args:
        ids: (B, k) int64, distinct in each row.
        values: (B, k) log-probabilities at temperature 1.
        classes: K.

    Returns:
        (B, K); with k = K the values themselves, in the order of the classes.
    """
    values = values.clamp_min(LEAST)
    missing = (1 - values.double().exp().sum(dim=1, keepdim=True)).clamp_min(_PRECISION).log().to(values.dtype)
    share = missing - math.log(max(classes - ids.shape[1], 1))
    share = torch.minimum(share, values.amin(dim=1, keepdim=True))
    return share.expand(-1, classes).scatter(1, ids, values)


def spread_student(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits whose classes that are not named have equal shares of the probability that these have together.

    The softmax of the named classes stays what it was.

    Args:
        logits: (B, K).
        ids: (B, k) int64, distinct in each row: of the teacher's answer.
    """
    classes, kept = logits.shape[1], ids.shape[1]
    if kept == classes:
        return logits
    named = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)
    rest = logits.masked_fill(named, NOTHING).logsumexp(dim=1, keepdim=True) - math.log(classes - kept)
    return torch.where(named, logits, rest)


def restricted(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits (B, K) of the named classes alone: (B, k), in the order of the ids (B, k)."""
    return logits.gather(1, ids)


def dense_weights(ids: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Weights over all classes, 0 for those that are not named: (B, K).

    Args:
        ids: (B, k) int64; -1 for a slot that is not used.
        weights: (B, k), at least 0.
        classes: K.
    """
    used = ids != NO_CLASS
    # Added up, not set: unused slots all point to the first class, with nothing.
    return weights.new_zeros(len(ids), classes).scatter_add(1, ids.clamp_min(0), torch.where(used, weights, 0.0))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B,) int64 as (B, K) float32."""
    return (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)).float()


def log_one_hot(labels: Tensor) -> Tensor:
    """The logarithm of one-hot labels (B, K), with `NOTHING` for minus infinity."""
    return torch.where(labels > 0, 0.0, NOTHING)
