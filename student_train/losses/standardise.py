"""Logit standardisation (LSKD): logits as z-scores, for any loss on logits.

Source: Sun et al., CVPR 2024, arXiv:2403.01427, algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from student_train.losses.tensors import raised, root


def standardise(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """Each row with mean 0 and standard deviation 1 (that of K - 1 degrees of freedom, as in the released code).

    Departure: a row whose standard deviation is at most eps becomes zeros, with gradient zero; the released code has
    no gradient there (NaN).

    Source: Sun et al., CVPR 2024, arXiv:2403.01427, algorithm 1.

    Args:
        logits: (..., K).
        eps: added to the standard deviation.

    Returns:
        (..., K), at least float32.
    """
    (logits,) = raised(logits)
    centred = logits - logits.mean(dim=-1, keepdim=True)
    # Once more: the mean of large equal logits is rounded, and what is left of them must vanish.
    centred = centred - centred.mean(dim=-1, keepdim=True)
    deviation = root(centred.square().sum(dim=-1, keepdim=True) / max(logits.shape[-1] - 1, 1))
    return torch.where(deviation <= eps, 0.0, centred / (deviation + eps))
