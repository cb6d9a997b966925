"""Baselines of the class scenario that keep statistics of features which never change.

The features are those of a network that learned the first task, or random ones of the pixels: then
nothing is learned but statistics, and the row says what a stream is worth without a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import FeCAMClassifier, NCMClassifier, TrainEvalModel
from avalanche.training.plugins.update_fecam import CurrentDataFeCAMUpdate
from avalanche.training.plugins.update_ncm import CurrentDataNCMUpdate
from avalanche.training.supervised import Naive, StreamingLDA
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avalanche_compress import NormPlugin
from benchmarks.runs.backbones import float_bytes
from benchmarks.runs.learners import Learner, body_and_head, learner_of
from benchmarks.runs.settings import RunSettings


def ncm(settings: RunSettings) -> Learner:
    """Nearest class mean, features of length 1 (Avalanche's classifier).

    Of a class in two tasks Avalanche takes the mean of both means.
    """
    classifier = NCMClassifier(normalize=True)
    return _learner(settings, classifier, CurrentDataNCMUpdate(), lambda d: 4 * d)


def fecam(settings: RunSettings) -> Learner:
    """FeCAM (Goswami et al., 2023): Mahalanobis distance, a covariance a class (Avalanche's)."""
    classifier = FeCAMClassifier()
    return _learner(
        settings, classifier, CurrentDataFeCAMUpdate(), lambda d: 4 * (d + d * (d + 1) // 2)
    )


def slda(settings: RunSettings, shrinkage: float = 1e-4) -> Learner:
    """Deep SLDA (Hayes et al., 2020): class means and one covariance (Avalanche's arithmetic).

    :param settings: of the run.
    :param shrinkage: part of the identity in the covariance.
    """
    width = body_and_head(settings)[1].in_features
    classifier = _StreamingLDA(width, settings.stream.max_classes, shrinkage)
    shared = 2 * width * (width + 1)
    return _learner(settings, classifier, _AddSamples(), lambda d: 4 * d, shared)


def random_gaussians(settings: RunSettings, features: int = 100, rank: int = 20) -> Learner:
    """No network: random projections of the pixels, and each class a low-rank Gaussian of them.

    The projections are drawn from the run's seed and kept nowhere. Int8 vectors.

    :param settings: of the run.
    :param features: d.
    :param rank: directions a class that have a variance of their own.
    """
    classifier = _Gaussians(settings.stream.max_classes, features, rank)
    projection = RandomFeatures(settings, features, nn.Identity())
    each = (rank + 1) * features + 4 * (rank + 2)
    return _learner(settings, classifier, _AddSamples(), lambda d: each, body=projection)


def random_ridge(settings: RunSettings, features: int = 500, strength: float = 0.01) -> Learner:
    """No network: ridge regression of the classes on ``relu(R x)`` with random R.

    As RanPAC (McDonnell et al., 2023) does behind a pretrained network. Sums in float32.

    :param settings: of the run.
    :param features: M, rows of R, which are drawn from the run's seed and kept nowhere.
    :param strength: of the penalty, in parts of the mean variance.
    """
    classifier = _Ridge(settings.stream.max_classes, features, strength)
    projection = RandomFeatures(settings, features, nn.ReLU())
    shared = 2 * features * (features + 1)
    return _learner(settings, classifier, _AddSamples(), lambda d: 4 * features, shared, projection)


class RandomFeatures(nn.Module):
    """``f(R x)`` with normal numbers R of variance 1 / inputs, from the run's seed.

    :param settings: of the run.
    :param features: M.
    :param activation: f.
    """

    projection: Tensor

    def __init__(self, settings: RunSettings, features: int, activation: nn.Module) -> None:
        super().__init__()
        inputs = math.prod(settings.stream.input_shape)
        generator = torch.Generator().manual_seed(settings.seed)
        drawn = torch.randn(inputs, features, generator=generator) / math.sqrt(inputs)
        self.register_buffer("projection", drawn)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """``(N, M)`` of ``x (N, ...)``."""
        features: Tensor = self.activation(x.flatten(1) @ self.projection)
        return features


class _Model(TrainEvalModel):
    """Answers as it is trained until there are statistics to answer by."""

    has_statistics = False

    def forward(self, x: Tensor) -> Tensor:
        by_statistics = self.has_statistics and not self.training
        classifier = self.eval_classifier if by_statistics else self.train_classifier
        logits: Tensor = classifier(self.feature_extractor(x))
        return logits


class _Statistics(nn.Module):
    """A classifier whose class means and other sums grow with the samples that it is shown."""

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Count samples ``(N, d)`` of the classes ``(N,)`` in."""
        raise NotImplementedError


class _StreamingLDA(_Statistics):
    def __init__(self, width: int, classes: int, shrinkage: float) -> None:
        super().__init__()
        self._lda = StreamingLDA(
            slda_model=nn.Identity(),
            criterion=nn.CrossEntropyLoss(),
            input_size=width,
            num_classes=classes,
            shrinkage_param=shrinkage,
            evaluator=None,
        )

    def add(self, features: Tensor, targets: Tensor) -> None:
        for sample, target in zip(features.cpu(), targets.cpu()):
            self._lda.fit(sample[None], target[None])

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self._lda.predict(features.cpu())
        return scores.to(features.device)


class _Gaussians(_Statistics):
    """``S_c = U' diag(l) U + s (I - U' U)``, probabilistic PCA (Tipping and Bishop, 1999)."""

    counts: Tensor
    sums: Tensor
    squares: Tensor

    def __init__(self, classes: int, width: int, rank: int) -> None:
        super().__init__()
        self.rank = min(rank, width - 1)
        # float64 and whole while a task is seen; what is kept of it is rounded when it is asked
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(classes, width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(classes, width, width, dtype=torch.float64))

    def add(self, features: Tensor, targets: Tensor) -> None:
        features = features.double()
        for target in targets.unique().tolist():
            of_class = features[targets == target]
            self.counts[target] += len(of_class)
            self.sums[target] += of_class.sum(dim=0)
            self.squares[target] += of_class.T @ of_class

    def forward(self, features: Tensor) -> Tensor:
        logits = features.new_full((len(features), len(self.counts)), -1e30)
        for target in self.counts.nonzero()[:, 0].tolist():
            mean, directions, variances, rest = self._gaussian(target)
            moved = features.double() - mean
            along = moved @ directions.T
            outside = (moved.square().sum(dim=1) - along.square().sum(dim=1)) / rest
            distance = (along.square() / variances).sum(dim=1) + outside
            volume = variances.log().sum() + (len(mean) - self.rank) * rest.log()
            logits[:, target] = (-0.5 * (distance + volume)).to(logits.dtype)
        return logits

    def _gaussian(self, target: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count = self.counts[target]
        mean = self.sums[target] / count
        covariance = self.squares[target] / count - torch.outer(mean, mean)
        floor = 0.01 * covariance.diagonal().mean().clamp_min(1e-9)
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(0).flip(0)
        variances, rest = values[: self.rank] + floor, values[self.rank :].mean() + floor
        directions = vectors.flip(1).T[: self.rank]
        return _rounded(mean), _rounded(directions), variances, rest


def _rounded(rows: Tensor) -> Tensor:
    """Each row as 127 steps of its largest entry on either side, which is what is kept of it."""
    scale = rows.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30) / 127
    return (rows / scale).round() * scale


class _Ridge(_Statistics):
    """``(G / n + a I)^-1 Q / n`` of centred features and one-hot targets."""

    counts: Tensor
    sums: Tensor
    gram: Tensor

    def __init__(self, classes: int, width: int, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(classes, width, dtype=torch.float64))
        self.register_buffer("gram", torch.zeros(width, width, dtype=torch.float64))

    def add(self, features: Tensor, targets: Tensor) -> None:
        features = features.double()
        self.counts += torch.bincount(targets, minlength=len(self.counts))
        self.sums.index_add_(0, targets, features)
        self.gram.addmm_(features.T, features)

    def forward(self, features: Tensor) -> Tensor:
        count = self.counts.sum().clamp_min(1)
        mean, prior = self.sums.sum(dim=0) / count, self.counts / count
        covariance = self.gram / count - torch.outer(mean, mean)
        penalty = self.strength * covariance.diagonal().mean().clamp_min(1e-30)
        covariance.diagonal().add_(penalty)
        targets = self.sums.T / count - torch.outer(mean, prior)
        weight = torch.linalg.solve(covariance, targets)
        return ((features.double() - mean) @ weight + prior).to(features.dtype)


class _AddSamples(SupervisedPlugin):
    """Shows the samples of each task to the classifier, once, when its features are final."""

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Count the task's samples in."""
        model = strategy.model.eval()
        for x, targets, *_ in DataLoader(strategy.experience.dataset.eval(), batch_size=500):
            features = model.feature_extractor(x.to(strategy.device))
            model.eval_classifier.add(features, targets.to(strategy.device))


class _FirstTaskOnly(SupervisedPlugin):
    """The features are trained on the first task and are fixed for those that follow."""

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Neither epochs nor other norms from now on."""
        strategy.train_epochs = 0
        strategy.model.has_statistics = True
        strategy.plugins = [own for own in strategy.plugins if not isinstance(own, NormPlugin)]


def _learner(
    settings: RunSettings,
    classifier: nn.Module,
    update: SupervisedPlugin,
    bytes_of_class: Callable[[int], int],
    shared_bytes: int = 0,
    body: nn.Module | None = None,
) -> Learner:
    """A learner whose features come from the first task, or from ``body`` if that is given.

    :param settings: of the run.
    :param classifier: answers from features.
    :param update: shows it the samples of a task that is finished.
    :param bytes_of_class: that are kept of a class, by the number of features.
    :param shared_bytes: that are kept of all classes together.
    :param body: features that nothing is learned of, nor kept.
    """
    learned, head = body_and_head(settings)
    model = _Model(learned if body is None else body, head, classifier)
    arguments = settings.arguments(model)
    if body is not None:
        arguments["train_epochs"] = 0
    plugins = settings.plain_plugins() if body is None else settings.plugins
    strategy = Naive(**arguments, plugins=[*plugins, update, _FirstTaskOnly()])
    network = 0 if body is not None else float_bytes(learned)

    def statistics() -> int:
        classes = {number for task in settings.stream.tasks for number in task}
        return len(classes) * bytes_of_class(head.in_features) + shared_bytes

    return learner_of(settings, strategy, lambda: network + statistics(), statistics)
