"""RankMe: the effective rank of validation embeddings and features, without labels."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from duality_ssl.callbacks.labelled import is_validation_set
from duality_ssl.callbacks.outputs import OutputStore
from duality_ssl.distributed import world_size
from duality_ssl.evaluation import RANKME_SAMPLES
from duality_ssl.functional import rankme

_NAMES = {"embeddings": "val/rankme", "features": "val/rankme_features"}


class RankMe(Callback):
    r"""Effective rank of the validation set's embeddings and features.

    .. math:: \exp\Big(-\sum_k p_k \log p_k\Big), \quad p_k = \sigma_k / \sum_l \sigma_l

    with the singular values of the ``(N, D)`` matrix, not centred. Logs ``val/rankme_features``
    (backbone features) and, if ``validation_step`` returns ``embeddings``, ``val/rankme``
    (projector outputs), over all processes; NaN if a value is not finite.

    Args:
        max_samples: Most samples over all processes, the same share of each batch.

    Raises:
        ValueError: If ``max_samples`` is below 2.

    Source: Garrido et al., RankMe, ICML 2023, https://arxiv.org/abs/2210.02885 (25,600 samples)
    """

    def __init__(self, max_samples: int = RANKME_SAMPLES) -> None:
        if max_samples < 2:
            raise ValueError(f"Expected `max_samples` of at least 2, but got {max_samples}.")
        self.max_samples = max_samples
        self._store: OutputStore

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._store = OutputStore(("features",), optional=("embeddings",))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or not is_validation_set(trainer, dataloader_idx):
            return
        per_process = max(1, self.max_samples // world_size())
        batches = min(trainer.num_val_batches[dataloader_idx], per_process)
        # the set may be sorted by class: take a part of every batch
        limit = max(0, min(per_process // int(batches), per_process - len(self._store)))
        self._store.add(outputs, "validation_step", limit)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not len(self._store):
            return
        rows = self._store.gather(pl_module.device)
        ranks = {key: rankme(rows[name]).item() for name, key in _NAMES.items() if name in rows}
        # every process has the first one's value: sync_dist only silences Lightning's advice
        pl_module.log_dict(trainer.strategy.broadcast(ranks), sync_dist=True)
