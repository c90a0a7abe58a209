"""ConsistentSamplerDistiller: a one-step sampler distilled from a diffusion sampler."""

import copy
import numbers

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ._base import BaseSampler, check_count, positive_integer, register_model, warn_not_converged
from ._diffusion import DiffusionSampler
from .consistency import ConsistencyLoss, LikelihoodLoss, ReverseKLLoss, TrajectoryBank
from .energy import StandardizedTarget
from .importance import WeightedSample, truncate_log_weights
from .injectivity import InjectivityCheck
from .maps import OneStepModel
from .mcmc import Population
from .networks import seeded
from .pilot import systematic_index
from .process import noise_levels
from .training import Budget, train

register_model(OneStepModel)
