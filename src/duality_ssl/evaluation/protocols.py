"""The offline protocols by name, and the function that runs those which the settings name.

There are three kinds, each with a table and a signature of its own:

- `LABELLED`: ``(sets, settings, device)``, of the features of a training and a validation set;
- `LABEL_FREE`: ``(z, settings)``, of the rows of one matrix: run once on the validation embeddings,
  and once on the validation features, where ``_features`` is added to each name;
- `OF_NETWORK`: ``(network, data, settings)``, of images: ``network(images)`` are features ``(N,
  F)``, and ``network.projector(features)`` embeddings ``(N, D)``. The network is in eval mode, on
  its device, under ``torch.no_grad()``; a protocol leaves it as it was.

A protocol returns a dictionary of floats. It may also hold nested entries, which are written but
not logged; those under ``arrays``, lists of at most 128 numbers each, are joined with the arrays of
other protocols. All accuracies are fractions in [0, 1], as torchmetrics logs them; tables print
them in percent. Samples of label -1 (unlabelled) do not count in `LABELLED`.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from duality_ssl.data import SSLDataModule
from duality_ssl.evaluation.few_label import few_label, low_shot
from duality_ssl.evaluation.finetune import finetune
from duality_ssl.evaluation.knn import knn
from duality_ssl.evaluation.label_free import RANKME_SAMPLES, evenly_spaced, geometry, spectrum
from duality_ssl.evaluation.linear import linear
from duality_ssl.evaluation.linear_sgd import linear_sgd
from duality_ssl.evaluation.sets import Device, LabelledSets, check_set, labelled_sets
from duality_ssl.evaluation.settings import DEFAULTS, Settings
from duality_ssl.evaluation.views import views
from duality_ssl.functional import rankme

Results = dict[str, Any]


def ranks(z: Tensor, settings: Settings) -> Results:
    """Effective rank, ``rankme``."""
    return {"rankme": effective_rank(z)}


LABELLED: dict[str, Callable[[LabelledSets, Settings, Device], Results]] = {
    "linear": linear,
    "knn": knn,
    "few_label": few_label,
    "low_shot": low_shot,
}
LABEL_FREE: dict[str, Callable[[Tensor, Settings], Results]] = {
    "ranks": ranks,
    "spectrum": spectrum,
    "geometry": geometry,
}
OF_NETWORK: dict[str, Callable[[nn.Module, SSLDataModule, Settings], Results]] = {
    "views": views,
    "linear_sgd": linear_sgd,
    "finetune": finetune,
}


def check_protocols(settings: Settings) -> None:
    """Raise ``ValueError`` if the settings name a protocol that does not exist."""
    known = [*LABELLED, *LABEL_FREE, *OF_NETWORK]
    for name in settings.protocols:
        if name not in known:
            raise ValueError(
                f"Expected `evaluation.protocols` to be among {', '.join(known)}, but got {name!r}."
            )


def evaluate(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    *,
    val_embeddings: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    settings: Settings = DEFAULTS,
    device: Device = None,
    network: nn.Module | None = None,
    data: SSLDataModule | None = None,
) -> Results:
    """Run the protocols that the settings name on one set of frozen features.

    If the training or the validation set has no labels, or the training set only one class, the
    result holds label-free measures only, with a warning.

    Args:
        train_features: Features of the training set, of shape ``(N, F)``.
        train_labels: Classes ``0..C-1`` of shape ``(N,)``; -1 is unlabelled.
        val_features: Features of the validation set, of shape ``(M, F)``.
        val_labels: Classes of shape ``(M,)``; -1 is unlabelled.
        val_embeddings: Projector outputs of the validation set, of shape ``(M, D)``; without them
            the label-free protocols measure the features alone.
        class_names: Names of the classes, for ``per_class``; by default their numbers.
        settings: Options of the protocols, and which to run.
        device: Device that computes; by default that of the features.
        network: The frozen network, for the protocols `OF_NETWORK`; without it they are left out.
        data: The images, for the same.

    Returns:
        The results of all protocols; by default ``linear_top1``, ``linear_c``, ``per_class`` and
        ``confusion``; ``knn_top1``; ``few_label_top1`` and ``few_label_std`` (the spread over the
        draws); ``rankme``, the effective rank of the validation embeddings, and
        ``rankme_features``, that of the validation features.

    Raises:
        ValueError: If shapes do not match, a feature is NaN or infinite, or there is no such
            protocol.
    """
    check_protocols(settings)
    check_set(train_features, train_labels, "train")
    check_set(val_features, val_labels, "val")
    labelled = _labelled(train_labels, val_labels)
    results: Results = {}
    for name in settings.protocols:
        if name in LABELLED and labelled:
            sets = labelled_sets(train_features, train_labels, val_features, val_labels)
            _add(results, LABELLED[name](sets, settings, device))
        elif name in LABEL_FREE:
            if val_embeddings is not None:
                _add(results, LABEL_FREE[name](val_embeddings, settings))
            _add(results, LABEL_FREE[name](val_features, settings), suffix="_features")
        elif name in OF_NETWORK and network is not None and data is not None:
            _add(results, OF_NETWORK[name](network, data, settings))
    if class_names is not None and "per_class" in results:
        named = results["per_class"].items()
        results["per_class"] = {class_names[int(number)]: value for number, value in named}
    return results


def effective_rank(features: Tensor, max_samples: int = RANKME_SAMPLES) -> float:
    """RankMe of at most ``max_samples`` rows, spread evenly over the set.

    Args:
        features: Features or embeddings of shape ``(N, F)``.
        max_samples: Most rows.

    Returns:
        Effective rank in ``[1, min(N, F)]``.

    Reference: Garrido et al., RankMe, ICML 2023, https://arxiv.org/abs/2210.02885
    """
    return rankme(evenly_spaced(features, max_samples).float()).item()


def _labelled(train_labels: Tensor, val_labels: Tensor) -> bool:
    """Whether accuracies can be computed; warn if they cannot."""
    known = train_labels[train_labels >= 0]
    classes = known.unique().tolist()
    if len(classes) > 1 and (val_labels >= 0).any():
        return True
    why = (
        f"All {len(known)} labelled training samples are of one class, {classes[0]}"
        if len(classes) == 1 and (val_labels >= 0).any()
        else "The training or the validation set has no labels"
    )
    warnings.warn(
        f"{why}: only label-free measures are computed. Set a labelled set of two or more classes "
        "for evaluation (--data.probe_source, --data.probe_root) to get accuracies.",
        stacklevel=3,
    )
    return False


def _add(results: Results, found: Results, suffix: str = "") -> None:
    """Add what a protocol found; arrays are joined in one dictionary."""
    for name, value in found.items():
        if name == "arrays":
            _add(results.setdefault("arrays", {}), value, suffix)
        else:
            results[f"{name}{suffix}"] = value
