"""The smaller side of the Gram matrices of a batch that processes share."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from duality_ssl.distributed import Processes
from duality_ssl.functional._products import pieces


class Side:
    """The smaller side of the vectors, and what one process computes of its matrix.

    Where it is the side of dimensions, that is the part that its own samples add to the whole, and
    the matrix is sent; where it is that of samples, the rows of its own, and the embeddings are
    sent. Either is the smaller thing to send, and 1/W of the multiplications.

    Args:
        x: This process's part of the vectors.
        samples: Axis of ``x`` that samples lie on.
        processes: Who has the others.
    """

    def __init__(self, x: Tensor, samples: int, processes: Processes) -> None:
        shape = list(x.shape)
        shape[samples] *= processes.world_size
        self.own = shape[0] <= shape[1]
        """Whether it is the vectors' own, ``K x K``."""
        self.by_rows = processes.world_size > 1 and self.own == (samples == 0)
        """Whether this process has rows of the matrix; else it has a part of the sum, or all."""
        self.columns = processes.own(x.shape[samples]) if self.by_rows else slice(None)
        """Where the rows that this process has are among the columns."""
        self._samples, self._processes = samples, processes

    def pieces(self, x: Tensor) -> Iterator[tuple[slice, slice]]:
        """Where to cut ``x``: along the axis that is not this side's."""
        if self.own:
            return ((slice(None), entries) for entries in pieces(x, 1))
        return ((vectors, slice(None)) for vectors in pieces(x, 0))

    def zeros(self, x: Tensor) -> Tensor:
        """An empty matrix: the rows that this process has."""
        rows = x.shape[0 if self.own else 1]
        return x.new_zeros(rows, rows * (self._processes.world_size if self.by_rows else 1))

    def add(self, gram: Tensor, a: Tensor, b: Tensor) -> None:
        """Add the products of a piece of this process's with the same piece of :meth:`all`."""
        gram.addmm_(a, b.T) if self.own else gram.addmm_(a.T, b)

    def times(self, weights: Tensor, b: Tensor) -> Tensor:
        """Gradient of :meth:`add` in ``a``, with rows in memory that are samples, as in ``z``."""
        left, right = (weights, b) if self.own else (b, weights.T)
        return left @ right if self._samples == 0 else (right.T @ left.T).T

    def all(self, x: Tensor) -> Tensor:
        """The vectors that this process's are multiplied with."""
        if not self.by_rows:
            return x
        return self._processes.rows(x) if self._samples == 0 else self._processes.rows(x.T).T

    def per_vector(self, values: Tensor) -> Tensor:
        """Values of this process's vectors to those of all."""
        return self._processes.rows(values) if self._samples == 0 else values

    def total(self, gram: Tensor) -> Tensor:
        """Make the matrix of what :meth:`add` has added up."""
        return gram if self.by_rows else self._processes.sum(gram)

    def complete(self, gram: Tensor) -> Tensor:
        """All rows of a matrix that :meth:`total` has made."""
        return self._processes.rows(gram) if self.by_rows else gram

    def transposed(self, gram: Tensor) -> Tensor:
        """This process's rows of the transpose."""
        return self.complete(gram)[:, self.columns].T

    def diagonal(self, gram: Tensor) -> Tensor:
        """This process's part of the diagonal, to be written to."""
        return gram[:, self.columns].diagonal()

    def over_rows(self, sums: Tensor) -> Tensor:
        """Sums over this process's rows of the matrix to sums over all."""
        return self._processes.sum(sums) if self.by_rows else sums

    def over_vectors(self, sums: Tensor) -> Tensor:
        """Sums over this process's vectors to sums over all."""
        return self._processes.sum(sums) if self._samples == 0 else sums

    def over_entries(self, sums: Tensor) -> Tensor:
        """Sums over this process's entries of each vector to sums over all."""
        return self._processes.sum(sums) if self._samples == 1 else sums

    def gradients(self, grads: Sequence[Tensor], of_vectors: int) -> list[Tensor]:
        """Incoming gradients summed over processes, of one of them what belongs to its vectors."""
        totals = [self._processes.sum(grad) for grad in grads]
        if self._samples == 0:
            at = self._processes.own(totals[of_vectors].shape[-1] // self._processes.world_size)
            totals[of_vectors] = totals[of_vectors][..., at]
        return totals
